import dataclasses
from pathlib import Path
from typing import Any

from helpers import plan_of

from jaxresnet.config.schema import Config
from jaxresnet.reporting.tables import as_markdown, comparison_table, mean_and_spread
from jaxresnet.runs.groups import History, RunGroup
from jaxresnet.runs.records import EpochRecord, EvaluationRecord, write_evaluation
from jaxresnet.runs.workdir import Workdir


def history(config: Config, name: str, accuracies: list[float], **settings: Any) -> History:
    """A run with these test accuracies by epoch, of half a minute each."""
    epochs = [
        EpochRecord(epoch, epoch, 0.1, 1 / epoch, 0.5, 30.0, 10.0, test_loss=2.0, test_accuracy=accuracy)
        for epoch, accuracy in enumerate(accuracies, 1)
    ]
    return History(Workdir(Path(name)), name, plan_of(config, settings), epochs, [])


def test_a_group_is_a_row_of_means_and_deviations(tiny_config: Config):
    seeds = [
        history(tiny_config, "plain/seed0", [0.5, 0.4]),
        history(tiny_config, "plain/seed1", [0.2, 0.6], seed=1),
    ]
    wide = [history(tiny_config, "wide", [0.9], **{"model.stem_channels": 8})]
    header, first, second = comparison_table([RunGroup("plain", seeds), RunGroup("wide", wide)])
    assert header[:2] == ("runs", "number")  # not of seeds: they may be repetitions
    assert header[4:6] == ("last epoch (%)", "best epoch (%)")
    # The standard deviation of (40, 60) over n - 1 is 14.14, of (50, 60) 7.07; 2 x 30 s are a minute.
    assert first == (
        "plain",
        "2",
        "2",
        "test",
        "50.00 ± 14.14",
        "55.00 ± 7.07",
        "0.5000 ± 0.0000",
        "1.0 ± 0.0",
    )
    assert second == ("wide", "1", "1 of 2", "test", "90.00", "90.00", "1.0000", "0.5")


def test_the_evaluations_have_columns_of_their_own(tmp_path: Path, tiny_config: Config):
    """Where no epoch was evaluated on the test split, they alone tell the result."""
    quiet = {"evaluation.split": "none"}
    runs = [history(tiny_config, str(tmp_path / f"seed{n}"), [0.5, 0.5], seed=n, **quiet) for n in (0, 1)]
    for n, run in enumerate(runs):
        (tmp_path / f"seed{n}").mkdir()
        run.epochs[:] = [dataclasses.replace(each, test_loss=None, test_accuracy=None) for each in run.epochs]
        for average in (False, True):
            record = EvaluationRecord(
                "latest", 2 - (average and n), "test", None, 10, 1.0, 0.7 + n / 10, {"a": 0.7}, [[7]], average
            )
            write_evaluation(run.workdir.evaluation_path("latest", average=average), record)
    header, row = comparison_table([RunGroup("quiet", runs)])
    assert header[6:8] == ("test, last step (%)", "test, average (%)")
    # The second run's average is of an earlier step.
    assert row[3:8] == ("-", "-", "-", "75.00 ± 7.07", "70.00")


def test_unfinished_runs_tell_how_far_they_are(tiny_config: Config):
    runs = [history(tiny_config, f"seed{n}", [0.5] * n, seed=n, epochs=3) for n in (1, 2, 3)]
    assert [comparison_table([RunGroup("a", runs[k:])])[1][2] for k in range(3)] == [
        "1-3 of 3",
        "2-3 of 3",
        "3",
    ]


def test_a_run_without_an_epoch_has_dashes(tiny_config: Config):
    group = RunGroup("new", [history(tiny_config, "new", [])])
    assert comparison_table([group])[1] == ("new", "1", "0 of 2", "-", "-", "-", "-", "0.0")


def test_mean_and_spread():
    assert mean_and_spread([]) == "-"
    assert mean_and_spread([0.5], 100) == "50.00"
    assert mean_and_spread([1.0, 3.0], digits=1) == "2.0 ± 1.4"


def test_markdown():
    assert as_markdown([("a", "b"), ("1|2", "3")]) == "| a | b |\n|---|--:|\n| 1\\|2 | 3 |"
