"""A run's folder from a stranger: nothing in it is followed, waited for or overwritten through a link."""

import os
import secrets
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import at_step, plan_of

from jaxresnet.config.files import load_config
from jaxresnet.disk import CONFIG_LIMIT, kind_of, read_file
from jaxresnet.errors import UserError
from jaxresnet.learning.state import TrainState
from jaxresnet.runs.checkpoint import Checkpoints
from jaxresnet.runs.files import write_named, write_to_disk, write_together
from jaxresnet.runs.records import EpochLog, read_evaluation
from jaxresnet.runs.workdir import Workdir

PLAN = plan_of()


def make_link(path: Path) -> None:
    path.symlink_to(path.parent / "elsewhere")  # which does not exist


def make_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


RECORDS = ("config.toml", "dataset.json", "metrics.jsonl", "evaluation.json", "environment.json")


@pytest.mark.parametrize("name", RECORDS)
@pytest.mark.parametrize(
    ("make", "kind"), [(make_link, "a link"), (os.mkfifo, "a pipe"), (Path.mkdir, "a folder")]
)
def test_a_record_that_is_no_file_is_refused_at_once(
    tmp_path: Path, name: str, make: Callable[[Path], None], kind: str
):
    run = Workdir(tmp_path)
    with run.open(PLAN):
        pass
    (tmp_path / name).unlink(missing_ok=True)
    make(tmp_path / name)
    read = {
        "metrics.jsonl": run.epochs.read,
        "evaluation.json": run.evaluation,
        "environment.json": run.starts.read,
    }
    with pytest.raises(UserError, match=rf"expected a file, found {kind}: {tmp_path}/{name}$") as caught:
        read.get(name, run.require_plan)()
    assert caught.value.exit_code == (2 if name == "config.toml" else 1)
    if name != "metrics.jsonl":  # written in place of what is there
        return
    with pytest.raises(UserError, match=f"found {kind}"):
        write_to_disk(tmp_path / name, "a", "line\n")
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("name", ["checkpoints", "tensorboard", "report"])
def test_a_folder_of_a_run_that_is_a_link_is_refused(tmp_path: Path, name: str):
    run = Workdir(tmp_path / "run")
    with run.open(PLAN):
        pass
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "run" / name).symlink_to(tmp_path / "elsewhere")
    for use in (run.require_plan, lambda: run.check(PLAN)):
        with pytest.raises(
            UserError, match=rf"^expected a folder, found a link: {tmp_path}/run/{name}$"
        ) as caught:
            use()
        assert caught.value.exit_code == 1
    (tmp_path / "run" / name).unlink()
    (tmp_path / "link").symlink_to(tmp_path / "run")
    assert Workdir(tmp_path / "link").require_plan() == PLAN  # the folder itself may be one


def test_a_link_among_the_checkpoints_is_refused(tmp_path: Path, state: TrainState):
    victim, place = tmp_path / "victim", tmp_path / "checkpoints"
    victim.write_text("mine")
    with Checkpoints(place) as checkpoints:
        checkpoints.save(at_step(state, 1), accuracy=0.5)
    accuracy = place / "1" / "metrics" / "metrics"
    accuracy.unlink()
    for make in (lambda path: path.symlink_to(victim), os.mkfifo):
        make(accuracy)
        for read_only in (True, False):
            with pytest.raises(UserError, match=rf"^expected a file, found a (link|pipe): {accuracy}$"):
                Checkpoints(place, read_only=read_only)
        accuracy.unlink()
    assert victim.read_text() == "mine"


def test_what_is_written_goes_through_no_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(secrets, "token_hex", lambda _: "01234567")  # as if they could be guessed
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (tmp_path / "run").mkdir()
    for name in ("lock", "config.toml.01234567.tmp", "dataset.json.01234567.tmp"):
        (tmp_path / "run" / name).symlink_to(victim)
    with (
        pytest.raises(UserError, match=r"expected a file, found a link: .*/run/lock$"),
        Workdir(tmp_path / "run").open(PLAN),
    ):
        pass
    (tmp_path / "run" / "lock").unlink()
    (tmp_path / "run" / "dataset.json.01234567.tmp").unlink()
    with Workdir(tmp_path / "run").open(PLAN):
        assert kind_of(tmp_path / "run" / "config.toml") == "a file"
    (tmp_path / "page").symlink_to(victim)
    with pytest.raises(UserError, match=r"expected a file, found a link: .*/page$"):
        write_together({tmp_path / "other": "new", tmp_path / "page": "new"})
    assert victim.read_text() == "mine"
    assert not (tmp_path / "other").exists()


def test_what_a_user_names_may_be_a_link_a_device_or_a_pipe(tmp_path: Path):
    (tmp_path / "file").write_text("old")
    (tmp_path / "link").symlink_to("file")
    write_named(tmp_path / "link", "epochs = 3")
    assert (tmp_path / "file").read_text() == "epochs = 3"
    assert kind_of(tmp_path / "link") == "a link"
    assert load_config(tmp_path / "link").epochs == 3
    write_named(tmp_path / "new", "new")
    assert (tmp_path / "new").read_text() == "new"
    make_device(tmp_path / "device")
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    for name in ("device", "pipe"):
        write_named(tmp_path / name, "text")
        with pytest.raises(UserError, match=f"expected a file, found a {name}: {tmp_path}/{name}") as caught:
            load_config(tmp_path / name)
        assert caught.value.exit_code == 2
    assert os.read(reader, 9) == b"text"
    os.close(reader)
    assert kind_of(tmp_path / "device", follow=True) == "a device"
    assert kind_of(tmp_path / "pipe") == "a pipe"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["device", "file", "link", "new", "pipe"]


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path):
    large = tmp_path / "config.toml"
    large.write_text("#" * CONFIG_LIMIT)
    assert load_config(large).seed == 0
    os.truncate(large, 2**40)  # of which hardly any is on the disk
    with pytest.raises(UserError, match="expected a file of at most 1 MiB, found a larger one"):
        load_config(large)
    for read in (EpochLog(large).read, lambda: read_evaluation(large)):
        with pytest.raises(UserError, match="expected a file of at most 64 MiB, found a larger one"):
            read()
    with pytest.raises(UserError, match="expected a file, found a folder"):
        read_file(tmp_path, CONFIG_LIMIT)
