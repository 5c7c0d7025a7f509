"""The tables under results/ are what the benchmarks make of the runs that are committed there."""

import json
import shutil
from pathlib import Path

import accuracy
import pytest
import recipe_parts

from jaxresnet.config.files import dump_config
from jaxresnet.errors import UserError
from jaxresnet.runs.files import write_whole

RESULTS = Path(__file__).parent.parent / "results"


def make_run(
    folder: Path,
    name: str,
    accuracies: list[float],
    average: float | None = None,
    scale: recipe_parts.Scale = recipe_parts.SCALE,
) -> None:
    folder.mkdir(parents=True)
    write_whole(folder / "config.toml", dump_config(recipe_parts.make_config(name, scale)))
    lines = [
        {
            "epoch": epoch,
            "step": 351 * epoch,
            "learning_rate": 0.1,
            "train_loss": 1.0,
            "train_accuracy": 0.5,
            "validation_accuracy": value,
            "validation_average_accuracy": average,
            "seconds": 1.0,
            "images_per_second": 1.0,
        }
        for epoch, value in enumerate(accuracies, 1)
    ]
    write_whole(folder / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in lines))


def test_the_parts_of_a_recipe_are_compared_by_seed(tmp_path: Path):
    """Differences of -1 and -5, and twice 0 and 0: variances 8, 0 and 0, a spread of 1.63, errors of 1.63 / sqrt(2)."""
    runs, output = tmp_path / "runs", tmp_path / "results"
    before = [0.1] * 9
    make_run(runs / "recipe" / "seed0", "recipe", [*before, 0.80], average=0.82)
    make_run(runs / "recipe" / "seed1", "recipe", [*before, 0.84], average=0.83)
    make_run(runs / "dropout" / "seed0", "dropout", [*before, 0.79])
    make_run(runs / "dropout" / "seed1", "dropout", [*before, 0.79])
    make_run(runs / "cosine" / "seed0", "cosine", [*before, 0.80])
    make_run(runs / "cosine" / "seed1", "cosine", [*before, 0.84])
    make_run(runs / "cutmix" / "seed0", "cutmix", [*before, 0.80])
    make_run(runs / "mixup" / "seed0", "mixup", [*before, 0.81])
    recipe_parts.main(["table", "--workdir", str(runs), "--output", str(output)])
    assert "spread" not in (output / "README.md").read_text()  # of two parts it would be a guess
    make_run(runs / "cutmix" / "seed1", "cutmix", [*before, 0.84])
    make_run(runs / "dirac" / "seed0", "dirac", before)  # not done

    recipe_parts.main(["table", "--workdir", str(runs), "--output", str(output)])
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in (output / "README.md").read_text().splitlines()
        if line.startswith("|")
    ]
    # The order of equals is that of PARTS.
    assert rows[2:] == [
        ["mixup", "cutout 0, mixup 0.2", "1", "81.00", "+1.00", "1.63"],
        ["average", "ema_decay 0.998", "2", "82.50 ± 0.71", "+0.50", ""],
        ["recipe", "-", "2", "82.00 ± 2.83", "", ""],
        ["cutmix", "cutout 0, cutmix 1.0", "2", "82.00 ± 2.83", "+0.00", "1.15"],
        ["cosine", "schedule cosine", "2", "82.00 ± 2.83", "+0.00", "1.15"],
        ["dropout", "dropout_rate 0.1", "2", "79.00 ± 0.00", "-3.00", "1.15"],
    ]
    text = (output / "README.md").read_text()
    assert "all parts share, 1.63 points." in " ".join(text.split())
    assert "\n\nNot trained yet: `no_smoothing`, `dirac`, `random_flip`, " in text
    assert {path.parent.name for path in (output / "runs").glob("*/seed*")} == {
        "recipe",
        "dropout",
        "cosine",
        "mixup",
        "cutmix",
    }


def test_some_parts_are_compared_on_the_whole_network(tmp_path: Path):
    whole = recipe_parts.Scale(divisor=1, epochs=2)
    assert recipe_parts.make_config("recipe", whole).model.stage_channels == (64, 96, 128, 512)
    make_run(tmp_path / "recipe" / "seed0", "recipe", [0.1, 0.7], scale=whole)
    make_run(tmp_path / "double_rate" / "seed0", "double_rate", [0.1, 0.72], scale=whole)
    arguments = ["table", "--workdir", str(tmp_path), "--output", str(tmp_path / "results")]
    parts = ["--parts", "double_rate", "cosine", "--width", "1", "--epochs", "2"]
    recipe_parts.main([*arguments, *parts])
    text = " ".join((tmp_path / "results" / "README.md").read_text().split())
    assert "`configs/fast16.toml` at the whole width for 2 epochs of CIFAR-10" in text
    assert "| double_rate | learning_rate 0.2 | 1 | 72.00 | +2.00 | |" in text
    assert "`python benchmarks/recipe_parts.py --width 1 --epochs 2`" in text
    assert text.endswith("Not trained yet: `cosine`.")
    with pytest.raises(UserError, match=r"found another .*model\.stem_channels"):
        recipe_parts.main([*arguments, "--epochs", "2", "--parts", "recipe"])


def test_the_table_of_parts_is_of_the_committed_runs(tmp_path: Path):
    shutil.copy(RESULTS / "recipes" / "average_statistics.json", tmp_path)
    recipe_parts.write_table(RESULTS / "recipes" / "runs", tmp_path)
    (tmp_path / "whole").mkdir()
    whole = ["recipe", "double_rate"], recipe_parts.Scale(divisor=1, epochs=4)
    recipe_parts.write_table(RESULTS / "recipes" / "whole" / "runs", tmp_path / "whole", *whole)
    for name in ("README.md", "accuracies.json", "whole/README.md", "whole/accuracies.json"):
        assert (tmp_path / name).read_text() == (RESULTS / "recipes" / name).read_text()


def test_a_run_with_other_settings_is_refused(tmp_path: Path):
    make_run(tmp_path / "dropout" / "seed0", "cosine", [0.5] * 10)
    with pytest.raises(UserError, match=r"expected the settings of dropout, found another .*dropout_rate"):
        recipe_parts.last_accuracies(tmp_path, "dropout")


def test_the_table_of_accuracies_is_of_the_committed_runs():
    names = ("paper", "paper_cooldown", "fast16", "best40")
    page = accuracy.page(
        accuracy.read_published(),
        [accuracy.read_runs(RESULTS / name) for name in names],
        " ".join(f"results/{name}" for name in names),
    )
    assert (RESULTS / "accuracy" / "README.md").read_text() == page


def test_the_accuracy_of_several_seeds_is_their_mean(tmp_path: Path):
    """The standard deviation of 92.1, 92.3 and 92.8 is sqrt((0.3 ** 2 + 0.1 ** 2 + 0.4 ** 2) / 2)."""
    run = tmp_path / "fast16"
    make_seed(run, 0, 0.921, "six", 0.928)
    assert accuracy.read_runs(run).note == "seed 0, last step"
    make_seed(run / "seed1", 1, 0.923, "six", 0.93)
    make_seed(run / "seed2", 2, 0.928, "six", 0.935)
    result = accuracy.read_runs(run)
    assert result.note == "92.40 ± 0.36 of seeds 0, 1, 2, last step"
    assert (result.name, result.epochs, result.parameters) == ("ours: fast16", 16, 4_985_386)
    assert result.accuracy == pytest.approx(92.4)
    assert result.views == ("six", pytest.approx(93.1))

    make_seed(run / "seed2", 2, 0.928, "flip", 0.935)
    assert accuracy.read_runs(run).views is None  # the mean of unlike views would be of nothing

    (run / "seed2" / "evaluation.json").unlink()
    with pytest.raises(UserError, match=r"expected each run's evaluation\.json, of its last step; found 2"):
        accuracy.read_runs(run)
    make_seed(run / "seed2", 2, 0.928, "six", 0.935, momentum=0.8)
    with pytest.raises(UserError, match="expected runs that differ in their seed only, found 2 kinds"):
        accuracy.read_runs(run)


def make_seed(folder: Path, seed: int, plain: float, tta: str, views: float, momentum: float = 0.9) -> None:
    """The records of results/fast16, with other accuracies."""
    kept = RESULTS / "fast16"
    folder.mkdir(exist_ok=True)
    for name in ("dataset.json", "metrics.jsonl", "run.json"):
        write_whole(folder / name, (kept / name).read_text())
    settings = (kept / "config.toml").read_text()
    settings = settings.replace("seed = 0", f"seed = {seed}").replace(
        "momentum = 0.9", f"momentum = {momentum}"
    )
    write_whole(folder / "config.toml", settings)
    record = json.loads((kept / "evaluation.json").read_text())
    record |= {"accuracy": plain, "tta": tta, "tta_accuracy": views}
    write_whole(folder / "evaluation.json", json.dumps(record))
