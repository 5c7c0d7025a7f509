"""The finished epochs of runs that train elsewhere."""

from pathlib import Path

from jaxresnet.engines.watch import EpochWatch
from jaxresnet.runs.records import EpochRecord
from jaxresnet.runs.workdir import Workdir


def record(epoch: int) -> EpochRecord:
    return EpochRecord(epoch, 45 * epoch, 0.1, 1.0, 0.5, 1.0, 1.0)


def test_each_epoch_is_found_once(tmp_path: Path):
    a, b = tmp_path / "a", tmp_path / "b"
    b.mkdir()
    Workdir(b).epochs.append(record(1))
    watch = EpochWatch([a, b])
    assert list(watch.new([a, b])) == []
    a.mkdir()
    Workdir(a).epochs.append(record(1))
    Workdir(b).epochs.append(record(2))
    assert [(path, found.epoch) for path, found in watch.new([a, b])] == [(a, 1), (b, 2)]
    Workdir(b).epochs.cut(45)  # its worker was lost
    assert list(watch.new([a, b])) == []
    Workdir(b).epochs.append(record(2))
    Workdir(b).epochs.append(record(3))
    (a / "metrics.jsonl").write_text("damaged\n")
    assert [(path, found.epoch) for path, found in watch.new([a, b])] == [(b, 3)]
