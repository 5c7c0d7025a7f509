"""What each part of a recipe brings: configs/fast16.toml with one part changed, against itself, paired by seed.

    python benchmarks/recipe_parts.py train --seeds 0 1     # one sweep; it can be stopped and started again
    python benchmarks/recipe_parts.py table --output results/recipes

The networks have a quarter of the paper's width and train for ten epochs of CIFAR-10; `--width 1 --epochs 4` takes the
whole network for four, and `--parts` some of the parts only. 5,000 training images are held out, and the accuracies are
of these. `table` copies the configuration and the epochs of each run that is done to OUTPUT/runs, and makes the table
of all that are there, so that it can grow by runs of several machines. `commands` prints the runs that are still
missing there as arguments of `python -m jaxresnet.train`, seed by seed, for who has a queue of his own. On a CPU, two
runs with one core and `--cpu-devices 1` each train 490 images a second together, one run on both cores 430.
"""

import argparse
import json
import shlex
import shutil
import statistics
import textwrap
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxresnet.config.files import dump_config, find_config, load_config
from jaxresnet.config.flags import to_arguments
from jaxresnet.config.schema import Config, differing_settings
from jaxresnet.errors import UserError, run_command
from jaxresnet.reporting.tables import as_markdown, mean_and_spread
from jaxresnet.runs.files import write_json, write_whole
from jaxresnet.runs.groups import NEUTRAL_SETTINGS
from jaxresnet.runs.workdir import Workdir
from jaxresnet.sweep import sweep

RECIPE, HELD_OUT = "fast16", 5_000


class Scale(NamedTuple):
    """How much smaller than the recipe all runs of a comparison are."""

    divisor: int = 4
    """Of the channels of the recipe's network."""

    epochs: int = 10


SCALE = Scale()

WIDTHS = {1: "at the whole width", 2: "at half of the width", 4: "at a quarter of the width"}
"""What is said of each divisor."""

PARTS: dict[str, dict[str, Any]] = {
    "recipe": {},
    "no_smoothing": {"label_smoothing": 0.0},
    "dropout": {"model.dropout_rate": 0.1},
    "dirac": {"model.dirac": True},
    "random_flip": {"augment.alternating_flip": False},
    "black_padding": {"augment.padding": "black"},
    "rotation": {"augment.rotation_degrees": 15.0},
    "brightness": {"augment.brightness": 0.2},
    "no_cutout": {"augment.cutout": 0},
    "erasing": {"augment.cutout": 0, "augment.random_erasing": 0.5},
    "trivial_augment": {"augment.cutout": 0, "augment.trivial_augment": True},
    "cutmix": {"augment.cutout": 0, "augment.cutmix": 1.0},
    "mixup": {"augment.cutout": 0, "augment.mixup": 0.2},
    "no_nesterov": {"optimizer.nesterov": False},
    "coupled_decay": {"optimizer.decoupled": False, "optimizer.weight_decay": 5e-4},
    "papers_decay": {"optimizer.weight_decay": 1e-5},
    "kernels_decayed": {"optimizer.decayed": "kernels"},
    "cosine": {"optimizer.schedule": "cosine"},
    "half_rate": {"optimizer.learning_rate": 0.05},
    "double_rate": {"optimizer.learning_rate": 0.2},
    "fourfold_rate": {"optimizer.learning_rate": 0.4},
    "resolution": {"resolution.sizes": (16, 24), "resolution.shares": (0.25, 0.35)},
}
"""The runs: what each changes in the recipe."""

AVERAGE = {"optimizer.ema_decay": 0.998}
"""An average does not change the weights: the run of the recipe keeps one, whose accuracy is the row "average"."""


FEWEST_PARTS = 3
"""From fewer, the spread that the parts share would be a guess."""

OF_THE_RECIPE = ("recipe", "average")
"""Rows of the same runs, whose differences have another spread than those between runs."""


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("action", choices=["train", "commands", "table"])
    parser.add_argument("--workdir", type=Path, default=Path("runs/recipes"), help="folder of the runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--output", type=Path, default=Path("results/recipes"), help="folder of the table")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="default: all")
    parser.add_argument(
        "--width",
        type=int,
        choices=WIDTHS,
        default=SCALE.divisor,
        help="what the recipe's numbers of channels are divided by",
    )
    parser.add_argument("--epochs", type=int, default=SCALE.epochs)
    args = parser.parse_args(argv)
    scale = Scale(args.width, args.epochs)
    args.parts = dict.fromkeys(["recipe", *args.parts])  # every difference is to the recipe
    if args.action == "train":
        configs = args.workdir / "configs"
        configs.mkdir(parents=True, exist_ok=True)
        for name in args.parts:
            write_whole(configs / f"{name}.toml", dump_config(make_config(name, scale)))
        failed = sweep([configs / f"{name}.toml" for name in args.parts], args.seeds, args.workdir)
        if failed:
            raise UserError("\n".join(f"{path}: {said}" for path, said in failed.items()))
    elif args.action == "commands":
        for seed in args.seeds:
            for name in args.parts:
                if seed not in last_accuracies(args.output / "runs", name, scale):
                    arguments = to_arguments(settings_of(name, scale) | {"seed": seed})
                    print(f"{name}/seed{seed}", "--config", RECIPE, shlex.join(arguments))
    else:
        keep_records(args.workdir, args.output / "runs", args.parts, scale)
        write_table(args.output / "runs", args.output, args.parts, scale)


def settings_of(name: str, scale: Scale = SCALE) -> dict[str, Any]:
    """All that a run changes in the recipe, its smaller size included."""
    model = load_config(find_config(RECIPE)).model
    return {
        "epochs": scale.epochs,
        "model.stem_channels": model.stem_channels // scale.divisor,
        "model.stage_channels": tuple(channels // scale.divisor for channels in model.stage_channels),
        "data.validation_examples": HELD_OUT,
        "evaluation.split": "validation",
        **(PARTS[name] or AVERAGE),
    }


def make_config(name: str, scale: Scale = SCALE) -> Config:
    return load_config(find_config(RECIPE)).replace(settings_of(name, scale))


def last_accuracies(
    workdir: Path, name: str, scale: Scale = SCALE, split: str = "validation"
) -> dict[int, float]:
    """The accuracy (0 to 1) on `split` after the last epoch, of the runs of a name that are done, by seed."""
    found = {}
    for folder in filter(Path.is_dir, (workdir / name).glob("seed*")):
        records = Workdir(folder).epochs.read()
        differing = differing_settings(make_config(name, scale), Workdir(folder).require_config())
        if wrong := [each for each in differing if not each.startswith(NEUTRAL_SETTINGS)]:
            raise UserError(f"{folder}: expected the settings of {name}, found another {', '.join(wrong)}")
        accuracy = records[-1].accuracy(split) if len(records) == scale.epochs else None
        if accuracy is not None:
            found[int(folder.name.removeprefix("seed"))] = accuracy
    return dict(sorted(found.items()))


def keep_records(workdir: Path, kept: Path, parts: Collection[str] = PARTS, scale: Scale = SCALE) -> None:
    """Copy to `kept` what the table needs of the runs in `workdir` that are done."""
    for name in parts:
        for seed in last_accuracies(workdir, name, scale):
            source, target = (folder / name / f"seed{seed}" for folder in (workdir, kept))
            target.mkdir(parents=True, exist_ok=True)
            for file in ("config.toml", "metrics.jsonl"):
                shutil.copyfile(source / file, target / file)


def write_table(workdir: Path, output: Path, parts: Collection[str] = PARTS, scale: Scale = SCALE) -> None:
    """Write README.md and accuracies.json, and print the table."""
    changes = PARTS | {"average": AVERAGE}
    accuracies = {name: last_accuracies(workdir, name, scale) for name in parts}
    accuracies["average"] = last_accuracies(workdir, "recipe", scale, "validation_average")
    recipe = accuracies["recipe"]
    if not recipe:
        raise UserError(f"{workdir}: expected a finished run of the recipe, found none; train it first")
    accuracies = {name: found for name, found in accuracies.items() if found.keys() & recipe.keys()}
    differences = {
        name: [100 * (found[seed] - recipe[seed]) for seed in found if seed in recipe]
        for name, found in accuracies.items()
    }
    # Of two or three differences alone a standard error would be a guess: all parts share one spread.
    variances = [
        statistics.variance(each)
        for name, each in differences.items()
        if len(each) > 1 and name not in OF_THE_RECIPE
    ]
    spread = statistics.mean(variances) ** 0.5 if len(variances) >= FEWEST_PARTS else None
    rows = [("run", "changed", "seeds", "accuracy (%)", "difference", "standard error")]
    for name in sorted(differences, key=lambda each: -statistics.mean(differences[each])):
        changed = ", ".join(f"{key.rpartition('.')[2]} {value}" for key, value in changes[name].items())
        mean = statistics.mean(differences[name])
        values = list(accuracies[name].values())
        against = "" if name == "recipe" else f"{mean:+.2f}"
        known = spread is not None and name not in OF_THE_RECIPE
        sure = f"{spread / len(differences[name]) ** 0.5:.2f}" if known else ""
        rows.append((name, changed or "-", str(len(values)), mean_and_spread(values, 100), against, sure))
    errors = (
        f"Their standard error is from the spread that all parts share, {spread:.2f} points. "
        if spread
        else ""
    )
    options = "" if scale == SCALE else f" --width {scale.divisor} --epochs {scale.epochs}"
    about = (
        f"`configs/{RECIPE}.toml` {WIDTHS[scale.divisor]} for {scale.epochs} epochs of CIFAR-10, with one part "
        f"changed. The accuracies are of {HELD_OUT:,} held-out training images after the last epoch, mean ± standard "
        "deviation over the seeds. The differences are to the recipe with the same seed, in points. "
        f"{errors}The recipe's own runs are in every difference, so the errors of the rows go together. The runs' "
        f"configurations and epochs are in [runs](runs). Made by `python benchmarks/recipe_parts.py{options}`."
    )
    missing = [name for name in parts if name not in accuracies]
    paragraphs = [about, as_markdown(rows), _of_statistics(output), _still_missing(missing)]
    title = "# What each part of a recipe brings"
    text = "\n\n".join([title, *filter(None, map(_wrapped, paragraphs))]) + "\n"
    write_whole(output / "README.md", text)
    write_json(
        output / "accuracies.json",
        {name: {str(k): v for k, v in each.items()} for name, each in accuracies.items()},
    )
    print(text)


def _of_statistics(output: Path) -> str:
    """A paragraph with what benchmarks/average_statistics.py found, if it has run."""
    if not (file := output / "average_statistics.json").exists():
        return ""
    runs = list(json.loads(file.read_text()).values())
    kept, computed = (
        mean_and_spread([run[way] for run in runs], 100) for way in ("average", "average, computed anew")
    )
    return (
        f"The average keeps averages of BatchNorm's statistics, too, and so has {kept} % ({len(runs)} seeds). With "
        f"statistics computed anew for the averaged weights it would have {computed} % ([{file.name}]({file.name}), by "
        "`python benchmarks/average_statistics.py`)."
    )


def _still_missing(names: Collection[str]) -> str:
    """A paragraph with the parts without a run beside the recipe's, if there are any."""
    return f"Not trained yet: {', '.join(f'`{name}`' for name in names)}." if names else ""


def _wrapped(text: str) -> str:
    """A paragraph in lines of 120 characters; a table as it is."""
    return text if text.startswith("|") else textwrap.fill(text, 120, break_on_hyphens=False)


if __name__ == "__main__":
    run_command(main)
