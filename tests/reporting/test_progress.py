"""What a run shows, and what TensorBoard is given."""

import re
from pathlib import Path

import pytest
import tensorflow as tf
from helpers import largest_file
from tensorboardX.proto import event_pb2

from jaxresnet.reporting.progress import Reporter
from jaxresnet.runs.records import EpochRecord

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


def test_each_start_writes_its_epochs_and_voids_what_came_after_its_step(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    messages = vars(event_pb2)  # generated code
    with Reporter(tmp_path / "tensorboard", epochs=2, steps=14, start=3) as reporter:
        reporter.epoch(RECORD)
        (file,) = (tmp_path / "tensorboard").iterdir()  # all is written before the end
        content = tf.data.TFRecordDataset(str(file)).as_numpy_iterator()
        version, start, *events = [messages["Event"].FromString(event) for event in content]
    assert capsys.readouterr().out == (
        "epoch 1/2  train loss 2.2500 accuracy 50.00%  test loss 1.5000 accuracy 12.50%  rate 0.5  10 images/s\n"
    )
    assert version.file_version == "brain.Event:2"
    assert (start.step, start.session_log.status) == (4, messages["SessionLog"].START)
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
        Reporter(tmp_path, epochs=2, steps=14, start=0) as reporter,
        largest_file(50),
    ):
        reporter.epoch(RECORD)


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
    with Reporter(tmp_path, epochs=40, steps=15_625, start=0) as reporter:
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
