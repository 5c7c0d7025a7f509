"""What a run shows, and what TensorBoard is given."""

import errno
import io
import re
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import tensorflow as tf
from helpers import largest_file, plan_of
from tensorboardX import event_file_writer
from tensorboardX.proto import event_pb2

from jaxresnet.machine.signals import Stop
from jaxresnet.reporting.events import Events
from jaxresnet.reporting.progress import Reporter, closing_lines
from jaxresnet.runs.records import EpochRecord, EvaluationRecord

RECORD = EpochRecord(
    epoch=1,
    step=7,
    learning_rate=0.5,
    train_loss=2.25,
    train_accuracy=0.5,
    seconds=3.0,
    images_per_second=10.0,
    test_loss=1.5,
    test_accuracy=0.125,
)


MESSAGES = vars(event_pb2)  # generated code


def events_in(file: Path) -> list[Any]:
    content = tf.data.TFRecordDataset(str(file)).as_numpy_iterator()
    return [MESSAGES["Event"].FromString(event) for event in content]


def test_each_start_writes_its_epochs_and_voids_what_came_after_its_step(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    with Reporter(tmp_path / "tensorboard", epochs=2, steps=14, start=3, stop=Stop()) as reporter:
        reporter.epoch(RECORD)
        (file,) = (tmp_path / "tensorboard").iterdir()  # all is written before the end
        version, start, *events = events_in(file)
    assert capsys.readouterr().out == (
        "epoch 1/2  train loss 2.2500 accuracy 50.00%  test loss 1.5000 accuracy 12.50%  rate 0.5  10 images/s\n"
    )
    assert version.file_version == "brain.Event:2"
    assert (start.step, start.session_log.status) == (4, MESSAGES["SessionLog"].START)
    assert {event.step for event in events} == {7}
    values = {value.tag: value.simple_value for event in events for value in event.summary.value}
    assert values == {
        "learning_rate": 0.5,
        "train/loss": 2.25,
        "train/accuracy": 0.5,
        "test/loss": 1.5,
        "test/accuracy": 0.125,
        "seconds": 3.0,
        "images_per_second": 10.0,
    }


def test_a_disk_that_takes_no_events_stops_the_run(tmp_path: Path):
    with (
        pytest.raises(OSError, match="File too large"),
        Reporter(tmp_path, epochs=2, steps=14, start=0, stop=Stop()) as reporter,
        largest_file(50),
    ):
        reporter.epoch(RECORD)


def test_two_starts_within_a_second_have_a_file_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(event_file_writer.time, "time", lambda: 1_000_000_000.0)
    for start in (0, 7):
        events = Events(tmp_path, start)
        events.add(start + 7, {"train_loss": 1.0})
        events.close()
    files = sorted(tmp_path.iterdir())  # in the order in which TensorBoard reads them
    assert [[event.step for event in events_in(file)] for file in files] == [[0, 1, 7], [0, 8, 14]]


def test_events_go_on_in_a_new_file_if_theirs_is_removed(tmp_path: Path):
    folder = tmp_path / "tensorboard"
    events = Events(folder, 0)
    events.add(7, {"train_loss": 1.0})
    shutil.rmtree(folder)
    events.add(14, {"train_loss": 2.0})
    (file,) = folder.iterdir()
    assert [event.step for event in events_in(file)] == [0, 14, 14]
    shutil.rmtree(tmp_path)
    with pytest.raises(
        FileNotFoundError, match="tensorboard"
    ):  # the run's folder itself: nothing to go on in
        events.add(21, {"train_loss": 3.0})
    assert not tmp_path.exists()


def test_the_commands_that_a_run_prints_can_be_pasted():
    evaluation = EvaluationRecord("latest", 7, "test", None, 1, 0.5, 1.0, {"a": 1.0}, [[1]])
    lines = closing_lines(plan_of(), Path("my runs/$x"), [RECORD], evaluation).splitlines()
    assert lines[2:] == [
        "evaluate with: python -m jaxresnet.evaluate 'my runs/$x'",
        "see it with: python -m jaxresnet.report 'my runs/$x'",
    ]


class ClosedTerminal(io.StringIO):
    closed_now = False

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        if self.closed_now:
            raise OSError(errno.EIO, "Input/output error")
        return len(text)


@pytest.mark.parametrize("term", ["xterm", "dumb"])
def test_a_run_that_stops_does_not_need_its_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, term: str
):
    """Its terminal has closed, or `tee` has ended with the same Ctrl-C. The checkpoint is still to be saved."""
    monkeypatch.setenv("TERM", term)
    monkeypatch.setattr(sys, "stdout", output := ClosedTerminal())
    stop = Stop()
    with Reporter(tmp_path, epochs=2, steps=14, start=0, stop=stop) as reporter:
        output.closed_now = True
        with pytest.raises(OSError, match="Input/output error"):
            reporter.epoch(RECORD)
        stop.number = signal.SIGHUP
        reporter.epoch(RECORD)
    (file,) = tmp_path.iterdir()
    assert [event.step for event in events_in(file)] == [0, 1, *(7 * [7])]


@pytest.mark.parametrize(("columns", "step", "bar"), [(80, True, True), (60, False, False)])
def test_the_live_line_fits_into_the_terminal(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    columns: int,
    step: bool,
    bar: bool,
):
    """The longest figures of the paper's run on a CPU, whole, and three columns short of the edge."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", str(columns))
    with Reporter(tmp_path, epochs=40, steps=15_625, start=0, stop=Stop()) as reporter:
        reporter.step(39, 15_234, 0.1234, 0.9876, 12_345, 203_000)
        assert reporter._bar is not None
        reporter._bar.refresh()
        text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", capsys.readouterr().out)
    last = text.replace("\n", "\r").split("\r")[-1].rstrip()
    assert last.startswith("epoch 39/40")
    assert ("step 15,234" in last) == step
    assert ("━" in last) == bar
    assert last.endswith("loss 0.123  98.8%  12,345/s  2 d 8 h left")
    assert len(last) <= columns - 3
