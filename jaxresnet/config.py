"""The typed, frozen configuration: every default, unit and bound of the project stands here.

The defaults are the paper's recipe with decoupled weight decay; `configs/paper.toml` spells them out
with their sources. TOML files and command-line flags carry the same names: `learning_rate` under
`[optimizer]` is `--optimizer.learning-rate`. Both pass the same validation and yield the same errors.
"""

import argparse
import difflib
import json
import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from jaxresnet.errors import UserError

MAX_STEPS = 2**31 - 1
"""The step counter is an int32."""


@dataclass(frozen=True)
class DatasetInfo:
    """What must be known of a data set before it is loaded.

    `mean` and `std` are those of all the training split's pixels, per channel, on a scale of 0 to 1.
    """

    image_shape: tuple[int, int, int]
    class_names: tuple[str, ...]
    train_examples: int
    test_examples: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


DATASETS = {
    "cifar10": DatasetInfo(
        image_shape=(32, 32, 3),
        class_names=(
            "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
        ),
        train_examples=50_000,
        test_examples=10_000,
        # The std over all pixels. The smaller (0.2023, 0.1994, 0.2010) of much code is a mean of
        # per-image stds.
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2470, 0.2435, 0.2616),
    ),
    "digits": DatasetInfo(
        image_shape=(32, 32, 3),
        class_names=tuple(str(digit) for digit in range(10)),
        train_examples=1_442,
        test_examples=355,
        mean=(0.3054, 0.3054, 0.3054),
        std=(0.3753, 0.3753, 0.3753),
    ),
}  # fmt: skip

PositiveInt = Annotated[int, Field(ge=1)]
Width = Annotated[int, Field(ge=1, le=65_536)]
Depth = Annotated[int, Field(ge=1, le=1_000)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)


class ModelConfig(_Section):
    """The network: a stem, stages of residual blocks, a pooled linear head."""

    stem_kernel: int = Field(7, ge=1, le=63)
    """Side of the stem convolution's kernel, in pixels; odd."""
    stem_channels: Width = 64
    """Channels of the stem."""
    stage_blocks: tuple[Depth, ...] = (2, 4, 4, 1)
    """Residual blocks in each stage."""
    stage_channels: tuple[Width, ...] = (64, 96, 128, 512)
    """Channels of each stage."""
    stage_strides: tuple[PositiveInt, ...] = (1, 2, 2, 2)
    """Stride of each stage's first block."""
    conv_bias: bool = True
    """Give every convolution a bias, shortcuts included."""
    dropout_rate: float = Field(0.1, ge=0, lt=1)
    """Dropout in front of the average pooling; 0 switches it off."""
    initializer: Literal["pytorch", "he_normal"] = "pytorch"
    """pytorch: uniform within 1/sqrt(fan_in), biases too. he_normal: normal, variance 2/fan_out, biases 0."""


class DataConfig(_Section):
    """The data set and its hold-out."""

    name: Literal["cifar10", "digits"] = "cifar10"
    """Data set. digits ships with scikit-learn and needs no download."""
    dir: str = ""
    """Folder of the prepared TFDS data sets; empty: $TFDS_DATA_DIR, else ~/tensorflow_datasets."""
    validation_examples: int = Field(0, ge=0)
    """Examples held out of the training split: a fixed, stratified part, the same for every seed."""


class AugmentConfig(_Section):
    """Random changes of the training images, drawn anew for each image and step."""

    horizontal_flip: bool = True
    """Mirror an image with probability 1/2."""
    crop_padding: int = Field(4, ge=0)
    """Shift by up to this many pixels in each direction, filling with black; 0 switches it off."""
    rotation_degrees: float = Field(15.0, ge=0, le=180)
    """Rotate by an angle uniform within plus and minus this; 0 switches it off."""
    brightness: float = Field(0.2, ge=0, le=1)
    """Scale the pixel values by a factor uniform within 1 plus and minus this; 0 switches it off."""


class OptimizerConfig(_Section):
    """SGD with momentum, weight decay and a learning-rate schedule."""

    learning_rate: float = Field(0.05, gt=0, le=1e30)
    """Initial learning rate."""
    momentum: float = Field(0.9, ge=0, lt=1)
    """Decay of the momentum buffer; not Nesterov's."""
    weight_decay: float = Field(1e-5, ge=0, le=1e30)
    """Weight decay of all parameters, biases and BatchNorm included."""
    decoupled: bool = True
    """True: theta -= lr * (buffer + decay * theta). False: decay * theta enters the buffer, as in PyTorch's SGD."""
    schedule: Literal["constant", "cosine"] = "cosine"
    """cosine: from learning_rate to 0 along half a cosine wave, changing every step."""
    schedule_epochs: int = Field(200, ge=0)
    """Epochs until the cosine reaches 0, where it stays; 0: the run's own epochs."""


class EvaluationConfig(_Section):
    """Evaluation during training; the end of a run is always evaluated on the test split."""

    split: Literal["test", "validation", "none"] = "test"
    """Split evaluated during training, which also selects the best checkpoint."""
    every_epochs: PositiveInt = 1
    """Epochs between evaluations; the last epoch is always evaluated."""


class CheckpointConfig(_Section):
    """When to save besides the end of the run and an interruption."""

    every_epochs: PositiveInt = 1
    """Epochs between checkpoints."""
    every_minutes: float = Field(10.0, ge=0)
    """Minutes between checkpoints inside a long epoch; 0 switches these off."""


class Config(_Section):
    """One run, wholly described. The defaults are the paper's recipe (configs/paper.toml)."""

    seed: int = Field(0, ge=0, lt=2**31)
    """Seed of initialisation, example order, augmentation and dropout."""
    epochs: PositiveInt = 40
    """Passes over the training examples."""
    batch_size: PositiveInt = 128
    """Examples per step, over all devices."""
    precision: Literal["float32", "tensorfloat32", "bfloat16"] = "float32"
    """Arithmetic of the network; parameters and statistics are float32 in each case."""
    loss: Literal["cross_entropy", "mse"] = "cross_entropy"
    """cross_entropy, or mse: squared error of the class probabilities, averaged over classes."""
    cpu_devices: int = Field(4, ge=1, le=256)
    """Virtual devices that a CPU is divided into: the batch is sharded over them. Ignored on a GPU."""
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    augment: AugmentConfig = AugmentConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()

    @model_validator(mode="after")
    def _check_fields_together(self) -> "Config":
        model, info = self.model, DATASETS[self.data.name]
        size = info.image_shape[0]
        lengths = {len(stage) for stage in (model.stage_blocks, model.stage_channels, model.stage_strides)}
        total_stride = math.prod(model.stage_strides)
        examples = self.train_examples
        problems = []
        if lengths == {0}:
            problems.append("model.stage_blocks: expected at least one stage, found an empty list")
        if len(lengths) > 1:
            problems.append(
                "model.stage_blocks, stage_channels and stage_strides: expected equal lengths, found "
                f"{len(model.stage_blocks)}, {len(model.stage_channels)} and {len(model.stage_strides)}"
            )
        if model.stem_kernel % 2 == 0:
            problems.append(f"model.stem_kernel: expected an odd number, found {model.stem_kernel}")
        if size % total_stride:
            problems.append(
                f"model.stage_strides: expected a product that divides the image size {size}, "
                f"found {total_stride}"
            )
        if self.augment.crop_padding >= size:
            problems.append(
                f"augment.crop_padding: expected less than the image size {size}, "
                f"found {self.augment.crop_padding}"
            )
        if self.data.validation_examples >= info.train_examples:
            problems.append(
                f"data.validation_examples: expected fewer than the {info.train_examples} training "
                f"examples of {self.data.name}, found {self.data.validation_examples}"
            )
        elif self.batch_size > examples:
            problems.append(
                f"batch_size: expected at most the {examples} training examples, found {self.batch_size}"
            )
        elif self.total_steps > MAX_STEPS:
            problems.append(
                f"epochs: expected at most {MAX_STEPS * self.batch_size // examples} "
                f"(2^31 - 1 steps), found {self.epochs}"
            )
        if self.evaluation.split == "validation" and not self.data.validation_examples:
            problems.append('evaluation.split: "validation" needs data.validation_examples > 0, found 0')
        if problems:
            raise ValueError("\n".join(problems))
        return self

    @property
    def dataset(self) -> DatasetInfo:
        """The facts about the configured data set."""
        return DATASETS[self.data.name]

    @property
    def train_examples(self) -> int:
        """Training examples left beside the hold-out."""
        return self.dataset.train_examples - self.data.validation_examples

    def steps(self, epochs: int) -> int:
        """Steps after which the first `epochs` epochs are over: floor(epochs * examples / batch_size)."""
        return epochs * self.train_examples // self.batch_size

    @property
    def total_steps(self) -> int:
        """Steps of the whole run."""
        return self.steps(self.epochs)

    @property
    def schedule_steps(self) -> int:
        """Steps until the learning-rate schedule ends."""
        return self.steps(self.optimizer.schedule_epochs or self.epochs)


def _problems(error: ValidationError, source: str) -> UserError:
    """Pydantic's errors as one line each: path, expected, found, and the nearest name if it is unknown."""
    lines = []
    for item in error.errors(include_url=False):
        path = ".".join(str(part) for part in item["loc"])
        if item["type"] == "value_error":
            lines += str(item["ctx"]["error"]).splitlines()
        elif item["type"] == "extra_forbidden":
            fields = _fields(Config)
            sections = {name.partition(".")[0] for name in fields if "." in name}
            near = difflib.get_close_matches(path, [*fields, *sections], n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            lines.append(f"{path}: no such setting{hint}")
        else:
            expected = item["msg"].removeprefix("Input should be ").replace("Input ", "")
            lines.append(f"{path}: expected {expected}, found {item['input']!r}")
    return UserError("\n".join(f"{source}{line}" for line in lines), exit_code=2)


def _fields(section: type[BaseModel], prefix: str = "") -> dict[str, Any]:
    """Every setting below `section` by its dotted name, as pydantic's FieldInfo."""
    fields = {}
    for name, field in section.model_fields.items():
        if isinstance(field.default, BaseModel):
            fields |= _fields(type(field.default), f"{prefix}{name}.")
        else:
            fields[prefix + name] = field
    return fields


def load_config(path: Path) -> Config:
    """Read a TOML file; what it leaves out keeps its default.

    Raises UserError (exit code 2), with one line per problem, if the file cannot be read, is no TOML,
    or holds settings that are unknown, of a wrong type, out of range or at odds with each other.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")  # a byte order mark is no error
    except OSError as error:
        raise UserError(f"cannot read the configuration {path}: {error.strerror}", 2) from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: expected a TOML file in UTF-8, found other bytes", 2) from None
    return parse_config(text, source=f"{path}: ")


def parse_config(text: str, source: str = "") -> Config:
    """The configuration in a TOML text; errors, as `load_config` raises them, begin with `source`."""
    try:
        # Through JSON, because there pydantic's strict mode takes lists for tuples and 1 for 1.0,
        # but neither "40" nor true for 40.
        return Config.model_validate_json(
            json.dumps(tomllib.loads(text), default=str, ensure_ascii=False), strict=True
        )
    except ValidationError as error:
        raise _problems(error, source) from None
    except (ValueError, RecursionError) as error:  # tomllib's own, and a number or nesting without end
        raise UserError(f"{source}expected TOML: {error}", 2) from None


def dump_config(config: Config) -> str:
    """The whole configuration as TOML, such that `load_config` gives back an equal one."""
    lines, sections = [], []
    for name, value in config.model_dump().items():
        if isinstance(value, dict):
            sections += ["", f"[{name}]", *(f"{key} = {_toml(item)}" for key, item in value.items())]
        else:
            lines.append(f"{name} = {_toml(value)}")
    return "\n".join([*lines, *sections, ""])


def _toml(value: bool | int | float | str | tuple[int, ...]) -> str:
    # JSON's literals for these types are TOML's too, but for the one character JSON leaves unescaped.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def differing_keys(one: Config, other: Config) -> dict[str, tuple[Any, Any]]:
    """The settings that differ, by dotted name, with both values."""

    def flat(config: Config) -> dict[str, Any]:
        dump = config.model_dump()
        return {
            name: dump[name] if "." not in name else dump[name.partition(".")[0]][name.partition(".")[2]]
            for name in _fields(Config)
        }

    ours, theirs = flat(one), flat(other)
    return {name: (ours[name], theirs[name]) for name in ours if ours[name] != theirs[name]}


class ArgumentParser(argparse.ArgumentParser):
    """argparse without abbreviations, whose errors are one line (UserError, exit code 2)."""

    def __init__(self, **options: Any):
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing the usage of thirty flags."""
        raise UserError(f"{message} (see --help)", exit_code=2)

    def parse(self, argv: Sequence[str]) -> argparse.Namespace:
        """Parse flags spelt with dashes or underscores; an unknown one is answered with the nearest."""
        argv = [
            "=".join([part.replace("_", "-") if not i else part for i, part in enumerate(arg.split("=", 1))])
            if arg.startswith("--")
            else arg
            for arg in argv
        ]
        args, unknown = self.parse_known_args(argv)
        if unknown:
            near = difflib.get_close_matches(unknown[0].split("=")[0], self._option_string_actions, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            before = argv[argv.index(unknown[0]) - 1]
            action = self._option_string_actions.get(before)
            if action is not None and action.nargs == 0:
                section, dot, key = before.rpartition(".")
                hint = (
                    f"; {before} takes no value, its opposite is {section}{dot}no-{key.removeprefix('no-')}"
                )
            self.error(f"unknown argument {unknown[0]}{hint}")
        return args


def add_device_argument(parser: ArgumentParser) -> None:
    """Add --device, which `jaxresnet.runtime.start_devices` reads."""
    parser.add_argument(
        "--device",
        choices=["auto", "cpu", "cuda"],
        default="auto",
        help="auto takes a GPU if there is one; cuda fails without one (default: auto)",
    )


def add_config_arguments(parser: ArgumentParser) -> None:
    """Add --config and one flag per setting, to be read by `config_from_arguments`."""
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="TOML file to start from; without it, the paper's recipe"
    )
    add_setting_arguments(parser)


def add_setting_arguments(parser: ArgumentParser) -> None:
    """Add one flag per setting."""
    groups: dict[str, argparse._ArgumentGroup] = {}
    for name, field in _fields(Config).items():
        section = name.rpartition(".")[0]
        if section not in groups:
            groups[section] = parser.add_argument_group(f"[{section}]" if section else "settings")
        flag = name.replace("_", "-")
        default = _toml(field.default)
        text = f"{field.description.replace('%', '%%')} (default: {default})"
        options: dict[str, Any] = {"dest": name, "default": argparse.SUPPRESS}
        if field.annotation is bool:
            group, _, key = flag.rpartition(".")
            no_flag = f"{group}.no-{key}" if group else f"no-{key}"
            groups[section].add_argument(f"--{flag}", action="store_true", help=text, **options)
            groups[section].add_argument(
                f"--{no_flag}", action="store_false", help=argparse.SUPPRESS, **options
            )
            continue
        if get_origin(field.annotation) is tuple:
            options["nargs"] = "*"
        if get_origin(field.annotation) is Literal:
            options["metavar"] = "{" + ",".join(field.annotation.__args__) + "}"
        else:
            options["metavar"] = {int: "INT", float: "FLOAT"}.get(field.annotation, "VALUE")
        groups[section].add_argument(f"--{flag}", help=text, **options)


def config_from_arguments(args: argparse.Namespace) -> Config:
    """The configuration of --config, or the default one, with the flags laid over it.

    Raises UserError (exit code 2), one line per problem.
    """
    return override(load_config(args.config) if args.config else Config(), setting_arguments(args))


def setting_arguments(args: argparse.Namespace) -> dict[str, Any]:
    """The settings that were given as flags, by dotted name, not yet validated."""
    return {name: getattr(args, name) for name in _fields(Config) if hasattr(args, name)}


def override(config: Config, settings: Mapping[str, Any]) -> Config:
    """`config` with other values for some settings, by dotted name.

    Raises UserError (exit code 2), one line per problem.
    """
    values = config.model_dump()
    for name, value in settings.items():
        section, _, key = name.rpartition(".")
        (values[section] if section else values)[key] = value
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise _problems(error, "") from None


def to_arguments(settings: Mapping[str, Any]) -> list[str]:
    """The flags that `config_from_arguments` reads as these settings, by dotted name."""
    arguments = []
    for name, value in settings.items():
        section, dot, key = name.replace("_", "-").rpartition(".")
        if isinstance(value, bool):
            arguments.append(f"--{section}{dot}{'' if value else 'no-'}{key}")
        elif isinstance(value, tuple):
            arguments += [f"--{section}{dot}{key}", *map(str, value)]
        else:
            arguments.append(f"--{section}{dot}{key}={value}")
    return arguments
