"""The typed, frozen configuration: every setting with its default, unit and bounds.

Checks that need the data set are in `jaxresnet.plan`.
"""

import difflib
import functools
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic.fields import FieldInfo

from jaxresnet.errors import UserError, printable

MOST = 2**63 - 1
"""The largest number: TOML's integers have 64 bits."""

PositiveInt = Annotated[int, Field(ge=1, le=MOST)]
Count = Annotated[int, Field(ge=0, le=MOST)]
Width = Annotated[int, Field(ge=1, le=65_536)]
Depth = Annotated[int, Field(ge=1, le=1_000)]

LARGEST_IMAGE = 4096
"""Side in pixels that images can be resized to."""

MOST_BLOCKS = 1_000
"""Of all stages together. To trace a network of as many takes some twenty seconds."""

LONGEST_SHOWN = 200
"""Characters of a wrong value that an error shows."""


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)


class ModelConfig(_Section):
    """The network: a stem, stages of residual blocks, average pooling and a linear head."""

    stem_kernel: Annotated[int, Field(ge=1, le=63)] = 7
    """Side of the stem convolution's kernel, in pixels; must be odd."""
    stem_channels: Width = 64
    """Output channels of the stem."""
    stage_blocks: tuple[Depth, ...] = (2, 4, 4, 1)
    """Number of residual blocks in each stage."""
    stage_channels: tuple[Width, ...] = (64, 96, 128, 512)
    """Output channels of each stage."""
    stage_strides: tuple[PositiveInt, ...] = (1, 2, 2, 2)
    """Stride of the first block of each stage."""
    conv_bias: bool = True
    """Give every convolution a bias, shortcuts included."""
    dropout_rate: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Probability of dropout in front of the average pooling; 0 switches it off."""
    initializer: Literal["pytorch", "he_normal"] = "pytorch"
    """pytorch: uniform within +-1/sqrt(fan_in), biases too. he_normal: normal with variance 2/fan_out, biases 0, for
    the convolutions, and the head as with pytorch."""
    dirac: bool = False
    """Let the second convolution of every residual block begin as the identity: a Dirac kernel, and a bias of 0."""


class DataConfig(_Section):
    """The data set and its hold-out."""

    name: str = "cifar10"
    """Data set: cifar10; digits, which comes with scikit-learn; folder, your own pictures in data.dir; or the name of
    an image data set of tensorflow-datasets, such as cifar100."""
    dir: Annotated[str, Field(max_length=4096)] = ""  # with a bound, pydantic also refuses what is not UTF-8
    """Folder of the prepared TFDS data sets. Empty: $TFDS_DATA_DIR if set, else ~/tensorflow_datasets. For the data
    set folder: that with the pictures, in train/CLASS and test/CLASS, or in CLASS."""
    image_size: Annotated[int, Field(ge=0, le=LARGEST_IMAGE)] = 0
    """Side of the images in pixels; others are resized to it, and cropped to a square. 0: the data set's own."""
    validation_examples: Count = 0
    """Number of training examples held out for validation. They are stratified and the same for every seed."""
    test_share: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Share of the examples held out as test split, stratified, if the data set has none. Unused otherwise."""


class AugmentConfig(_Section):
    """Random changes of the training images. They are drawn again for each image in each step."""

    horizontal_flip: bool = True
    """Mirror an image with probability 1/2."""
    alternating_flip: bool = False
    """Draw only once whether an image is mirrored, and mirror it in every other epoch from then on. Needs
    horizontal_flip."""
    crop_padding: Count = 4
    """Shift by up to this many pixels in each direction; 0 switches it off."""
    padding: Literal["black", "reflect"] = "black"
    """What a shift, rotation or shear moves into the image: black, or the image mirrored at its border."""
    rotation_degrees: Annotated[float, Field(ge=0, le=180)] = 15.0
    """Rotate by a uniform random angle between minus and plus this many degrees; 0 switches it off."""
    brightness: Annotated[float, Field(ge=0, le=1)] = 0.2
    """Multiply the pixel values by a uniform random factor between 1 - this and 1 + this; 0 switches it off."""
    trivial_augment: bool = False
    """Apply one random operation of TrivialAugment (wide) with a random strength."""
    cutout: Count = 0
    """Cover a square of this many pixels a side with grey, around a random position; 0 switches it off."""
    random_erasing: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Probability of covering a random rectangle, 2 to 33 % of the image, with grey."""
    mixup: Annotated[float, Field(ge=0, le=100)] = 0.0
    """Mixup: the parameter of the beta distribution of the weights; 0 switches it off."""
    cutmix: Annotated[float, Field(ge=0, le=100)] = 0.0
    """CutMix: the parameter of the beta distribution of the areas; 0 switches it off. With mixup as well, each batch
    has one of the two, with probability 1/2."""


class ResolutionConfig(_Section):
    """Training on smaller images first ("progressive resizing"). Off while both lists are empty."""

    sizes: tuple[PositiveInt, ...] = ()
    """Sides in pixels, in increasing order, of the smaller images that a run begins with; of oblong images, the
    shorter sides. Then it goes on at the data's own size, which every evaluation has."""
    shares: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = ()
    """Share of the run's steps for each of the sizes. What remains is trained at the data's own size."""


NO_AUGMENTATION: Mapping[str, Any] = {
    "augment.horizontal_flip": False,
    "augment.alternating_flip": False,
    "augment.crop_padding": 0,
    "augment.rotation_degrees": 0.0,
    "augment.brightness": 0.0,
    "augment.trivial_augment": False,
    "augment.cutout": 0,
    "augment.random_erasing": 0.0,
    "augment.mixup": 0.0,
    "augment.cutmix": 0.0,
}
"""The settings, by dotted name, that leave training images unchanged."""


class OptimizerConfig(_Section):
    """SGD with momentum, weight decay and a learning-rate schedule."""

    learning_rate: Annotated[float, Field(gt=0, le=1e30)] = 0.05
    """Highest learning rate: the first one, or with a warm-up the one that it rises to."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Decay of the momentum buffer per step."""
    nesterov: bool = False
    """Nesterov momentum, as in PyTorch: the step is gradient + momentum * buffer in place of the buffer."""
    weight_decay: Annotated[float, Field(ge=0, le=1e30)] = 1e-5
    """Weight decay, of the parameters that `decayed` names."""
    decayed: Literal["all", "kernels"] = "all"
    """all: every parameter, including biases and BatchNorm's. kernels: those of the convolutions and the head."""
    decoupled: bool = True
    """True: theta -= lr * (buffer + decay * theta). False: decay * theta goes into the buffer, as in PyTorch's SGD."""
    clip_norm: Annotated[float, Field(ge=0, le=1e30)] = 0.0
    """Scale the gradient down to this norm, over all parameters, if it is longer; 0 switches it off."""
    schedule: Literal["constant", "cosine", "linear"] = "cosine"
    """cosine: falls at every step from learning_rate to 0, along half a cosine wave. linear: along a straight line."""
    schedule_epochs: Count = 200
    """Epochs until the rate reaches 0, where it stays; of a constant rate, those that `warmup` is a share of. 0: as
    many as the run has."""
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the schedule in which the rate first rises along a straight line to learning_rate."""
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Decay per step of an exponential moving average of the weights, which is evaluated too; 0: none is kept."""


class EvaluationConfig(_Section):
    """Evaluation during training. A run's last step is always evaluated on the test split."""

    split: Literal["test", "validation", "none"] = "test"
    """Split that is evaluated during training. It also selects the best checkpoint."""
    every_epochs: PositiveInt = 1
    """Epochs between evaluations; the last epoch is always evaluated."""


class CheckpointConfig(_Section):
    """When to save a checkpoint. The best epoch so far, the end of a run and an interruption always save one."""

    every_epochs: PositiveInt = 1
    """Epochs between checkpoints."""
    every_minutes: Annotated[float, Field(ge=0)] = 10.0
    """Minutes between additional checkpoints inside a long epoch; 0 switches them off."""


class Config(_Section):
    """All settings of one run. The defaults are the paper's recipe with decoupled weight decay (configs/paper.toml)."""

    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Seed of initialisation, example order, augmentation and dropout."""
    epochs: PositiveInt = 40
    """Number of passes over the training examples."""
    batch_size: PositiveInt = 128
    """Examples per step, on all devices together."""
    precision: Literal["float32", "tensorfloat32", "bfloat16"] = "float32"
    """Arithmetic of the network. Parameters and BatchNorm statistics are always float32."""
    loss: Literal["cross_entropy", "mse"] = "cross_entropy"
    """cross_entropy, or mse: squared error of the class probabilities, averaged over the classes."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of each training target that is spread evenly over all classes."""
    cpu_devices: Annotated[int, Field(ge=0, le=256)] = 0
    """Number of virtual devices that a CPU, or those of all processes, are divided into, for the batch. 0: the largest
    that divides the batch and is at most the number of cores that the process may use. Ignored on a GPU."""
    init: Annotated[str, Field(max_length=4096)] = ""
    """Network whose weights a new run begins with: the folder of a run, of which the latest checkpoint counts, a
    safetensors file, or the name of shipped weights. Settings of [model] that are not given are then its own. Empty:
    random weights."""
    freeze_stages: Count = 0
    """Keep the stem and this many stages as `init` gives them: no gradient, no decay, and BatchNorm with their running
    statistics. 0: everything is trained."""
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    augment: AugmentConfig = AugmentConfig()
    resolution: ResolutionConfig = ResolutionConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()

    @model_validator(mode="after")
    def _check_fields_together(self) -> Self:
        """Raise ValueError, one line per problem, if settings contradict each other. Needs no data set."""
        model = self.model
        lengths = {len(stage) for stage in (model.stage_blocks, model.stage_channels, model.stage_strides)}
        problems = []
        if lengths == {0}:
            problems.append("model.stage_blocks: expected at least one stage, found an empty list")
        if len(lengths) > 1:
            problems.append(
                "model.stage_blocks, stage_channels and stage_strides: expected equal lengths, found "
                f"{len(model.stage_blocks)}, {len(model.stage_channels)} and {len(model.stage_strides)}"
            )
        if (blocks := sum(model.stage_blocks)) > MOST_BLOCKS:
            problems.append(f"model.stage_blocks: expected at most {MOST_BLOCKS} in all, found {blocks}")
        if model.stem_kernel % 2 == 0:
            problems.append(f"model.stem_kernel: expected an odd number, found {model.stem_kernel}")
        if self.augment.alternating_flip and not self.augment.horizontal_flip:
            problems.append("augment.alternating_flip: needs augment.horizontal_flip = true, found false")
        if self.evaluation.split == "validation" and not self.data.validation_examples:
            problems.append('evaluation.split: "validation" needs data.validation_examples > 0, found 0')
        if problems:
            raise ValueError("\n".join(problems))
        return self

    def replace(self, settings: Mapping[str, Any]) -> "Config":
        """A copy with new values for some settings, which are given by dotted name.

        Values may be strings, as they come from flags. Raises UserError (exit code 2) with one line per problem.

        >>> Config().replace({"epochs": 5, "model.stage_blocks": (1, 1, 1, 1)}).model.stage_blocks
        (1, 1, 1, 1)
        """
        # Without those that were never given, so that pydantic still tells them from the others.
        values, fields = self.model_dump(exclude_unset=True), setting_fields()
        for name, value in settings.items():
            section, _, key = name.rpartition(".")
            if section and name in fields:
                values.setdefault(section, {})[key] = value
            else:
                values[name] = value  # an unknown name is refused below, in full
        try:
            return Config.model_validate(values)
        except ValidationError as error:
            raise setting_error(error) from None


def setting_error(error: ValidationError, source: str = "") -> UserError:
    """Pydantic's errors as a UserError (exit code 2) with one line for each.

    A line has `source`, the setting's dotted name, and what was expected and found. For an unknown name it has the
    nearest known one.
    """
    lines = []
    for item in error.errors(include_url=False):
        path = printable(".".join(str(part) for part in item["loc"]))  # a stranger's file may hold any key
        if item["type"] == "value_error":
            lines += item["msg"].removeprefix("Value error, ").splitlines()
        elif item["type"] == "extra_forbidden":
            near = difflib.get_close_matches(path, [*setting_fields(), *Config.model_fields], n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            lines.append(f"{path}: no such setting{hint}")
        else:
            expected = item["msg"].removeprefix("Input should be ").removeprefix("String should have ")
            expected = expected.replace("Input ", "")
            found = repr(item["input"])
            found = found if len(found) <= LONGEST_SHOWN else f"{found[:LONGEST_SHOWN]}..."
            lines.append(f"{path}: expected {expected}, found {found}")
    return UserError("\n".join(f"{source}{line}" for line in lines), exit_code=2)


def setting_fields() -> dict[str, FieldInfo]:
    """The pydantic field of every setting, by dotted name."""
    fields: dict[str, FieldInfo] = {}
    for name, field in Config.model_fields.items():
        section = type(field.default).model_fields if isinstance(field.default, _Section) else {}
        fields |= {f"{name}.{key}": each for key, each in section.items()} or {name: field}
    return fields


def setting_values(config: Config) -> dict[str, Any]:
    """The value of every setting, by dotted name."""
    return {name: functools.reduce(getattr, name.split("."), config) for name in setting_fields()}


def differing_settings(one: Config, other: Config) -> dict[str, tuple[Any, Any]]:
    """The settings that differ: dotted name to the values in `one` and in `other`."""
    ours, theirs = setting_values(one), setting_values(other)
    return {name: (ours[name], theirs[name]) for name in ours if ours[name] != theirs[name]}
