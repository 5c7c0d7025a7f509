"""The run's folder: locked, checked, and never half-written."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import largest_file

from jaxresnet.config import Config
from jaxresnet.errors import UserError
from jaxresnet.workdir import Workdir, write_json

OTHER = Config(seed=1)


def test_a_second_process_is_refused_and_told_of_the_first(tmp_path: Path):
    code = (
        "import sys; from pathlib import Path; from jaxresnet.config import Config\n"
        "from jaxresnet.workdir import Workdir\n"
        "with Workdir(Path(sys.argv[1])).open(Config()): print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, tmp_path / "run"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as first:
        assert first.stdout.readline() == b"held\n"
        with (
            pytest.raises(UserError, match=f"in use by process {first.pid}") as caught,
            Workdir(tmp_path / "run").open(Config()),
        ):
            pass
        assert caught.value.exit_code == 1
        first.kill()
        first.wait()
        with Workdir(tmp_path / "run").open(Config()):  # the kernel has freed it
            pass


def test_settings_that_may_change_on_resuming(tmp_path: Path):
    run = Workdir(tmp_path / "run")
    with run.open(Config()):
        pass
    longer = Config.model_validate(
        {"epochs": 80, "cpu_devices": 1, "data": {"dir": "elsewhere"}, "checkpoint": {"every_epochs": 5}}
    )
    with run.open(longer):
        assert run.config() == longer
    with pytest.raises(UserError, match="seed was 0, is 1"):
        run.check(OTHER)
    assert run.config() == longer


def test_a_start_that_was_killed_early_is_no_obstacle(tmp_path: Path):
    (tmp_path / "lock").touch()
    (tmp_path / "config.toml.tmp").write_text("epo")
    with Workdir(tmp_path).open(Config()):
        assert Workdir(tmp_path).config() == Config()


def test_a_file_in_the_folders_place(tmp_path: Path):
    (tmp_path / "run").touch()
    with pytest.raises(UserError, match="expected a folder for the run, found a file"):
        Workdir(tmp_path / "run").check(Config())
    with pytest.raises(UserError, match="no run in"):
        Workdir(tmp_path / "nothing").require_config()


def test_a_place_that_cannot_be_written(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write"), Workdir(tmp_path / "file" / "run").open(Config()):
        pass


def test_metrics_lines_are_added_read_and_cut(tmp_path: Path):
    run = Workdir(tmp_path)
    assert run.metrics() == []
    for epoch in (1, 2, 3):
        run.append_metrics({"epoch": epoch, "step": 10 * epoch})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 4')
    assert [record["epoch"] for record in run.metrics()] == [1, 2, 3]
    run.cut_metrics(20)
    assert (tmp_path / "metrics.jsonl").read_text().count("\n") == 2
    run.append_metrics({"epoch": 3, "step": 30})
    assert [record["epoch"] for record in run.metrics()] == [1, 2, 3]
    with pytest.raises(ValueError, match="JSON compliant"):
        run.append_metrics({"loss": float("nan")})


def test_a_line_that_the_disk_refuses_is_told_and_cut_on_resuming(tmp_path: Path):
    run = Workdir(tmp_path / "run")
    with run.open(Config()):
        run.append_metrics({"epoch": 1, "step": 10})
    with (
        pytest.raises(UserError, match=r"cannot write \S+/metrics.jsonl: File too large; .*intact") as caught,
        run.open(Config()),
        largest_file(30),
    ):
        run.append_metrics({"epoch": 2, "step": 20})
    assert caught.value.exit_code == 1
    assert (tmp_path / "run" / "metrics.jsonl").stat().st_size == 30  # half a line
    with run.open(Config()):
        run.cut_metrics(10)
        run.append_metrics({"epoch": 2, "step": 20})
    assert [record["epoch"] for record in run.metrics()] == [1, 2]


@pytest.mark.parametrize("content", ["{", "[1]", "null", "\xff"])
def test_a_damaged_file_is_named(tmp_path: Path, content: str):
    run = Workdir(tmp_path)
    (tmp_path / "evaluation.json").write_bytes(content.encode("latin1"))
    with pytest.raises(UserError, match=r"evaluation.json: expected .*: mend or remove it"):
        run.evaluation()
    (tmp_path / "metrics.jsonl").write_bytes(b'{"epoch": 1}\n' + content.encode("latin1") + b"\n")
    with pytest.raises(UserError, match=r"metrics.jsonl, line 2: expected"):
        run.metrics()


def test_json_is_replaced_whole_or_not_at_all(tmp_path: Path):
    write_json(tmp_path / "a.json", {"x": 1})
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(tmp_path / "a.json", {"x": float("inf")})
    assert json.loads((tmp_path / "a.json").read_text()) == {"x": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
