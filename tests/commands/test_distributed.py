"""One run on several processes, as a user starts it: the same training as in one, a kill, a stop, other numbers."""

import json
import re
import signal
from pathlib import Path

import jax
import numpy as np
import pytest
from helpers import endings, mesh_of, processes, timeless_records, wait_for_line

from jaxresnet.config.files import dump_config
from jaxresnet.config.schema import Config
from jaxresnet.fit import fit
from jaxresnet.runs.checkpoint import Checkpoints
from jaxresnet.runs.workdir import Workdir
from jaxresnet.trained.load import load_run


def saved_steps(workdir: Path) -> list[int]:
    with Checkpoints(workdir / "checkpoints", read_only=True) as checkpoints:
        return checkpoints.saved_steps()


def test_a_run_on_several_processes_is_that_of_one(
    short_config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """Two processes, of which one is killed; three go on and are stopped; one ends it; two evaluate."""
    config = short_config.replace({"epochs": 3})
    file, workdir, alone = tmp_path / "config.toml", tmp_path / "run", tmp_path / "alone"
    file.write_text(dump_config(config))
    arguments = ("--config", file, "--workdir", workdir)
    fit(config, alone, mesh_of(2))

    with processes(2, "train", *arguments, "--cpu-devices", 2) as started:
        wait_for_line(started[0], "epoch 2/3")
        started[1].kill()
        (code, _, err), _ = endings(started)
    assert code == 1
    assert re.fullmatch(r"error: process 1 of 2 was lost: .* run the same command again to go on.*\n", err)
    # With the same number of devices, to the bit: after 24 steps, in what was evaluated and in the weights.
    assert timeless_records(workdir) == timeless_records(alone)[:2]
    weights, expected = (load_run(folder, "24").variables for folder in (workdir, alone))
    jax.tree.map(np.testing.assert_array_equal, weights, expected)

    with processes(3, "train", "--workdir", workdir) as started:  # its two devices are no wish
        wait_for_line(started[0], "resuming at step 24")
        wait_for_line(started[0], "compiled")
        started[2].send_signal(signal.SIGTERM)
        (code, out, err), *others = endings(started)
    step = saved_steps(workdir)[-1]
    assert 24 < step < 36
    assert (code, out) == (143, "")
    assert err == f"interrupted: saved at step {step} in {workdir}; run the same command again to resume\n"
    assert others == [(143, "", ""), (143, "", "")]
    first, second = json.loads((workdir / "environment.json").read_text())
    assert (first["processes"], len(first["devices"])) == (2, 2)
    assert (second["processes"], len(second["devices"]) % 3) == (3, 0)

    fit(config, workdir, mesh_of(2))
    assert f"resuming at step {step}" in capsys.readouterr().out
    # The steps on three devices were the same to rounding.
    found, expected = timeless_records(workdir)[2], timeless_records(alone)[2]
    for key, value in expected.items():
        assert found[key] == pytest.approx(value, rel=1e-3, abs=5e-3 if "accuracy" in key else 0), key

    output = tmp_path / "evaluation.json"
    with processes(2, "evaluate", "--workdir", workdir, "--output", output) as started:
        (code, out, err), second = endings(started)
    assert (code, err, second) == (0, "", (0, "", ""))
    by_two, by_one = json.loads(output.read_text()), Workdir(workdir).evaluation()
    assert by_one
    assert f"test accuracy {by_one.accuracy:.2%}" in out
    assert by_two["confusion_matrix"] == by_one.confusion_matrix
    assert by_two["loss"] == pytest.approx(by_one.loss, rel=1e-6)


def test_a_finished_run_that_one_process_does_not_see_ends_all(
    finished: Path, short_config: Config, tmp_path: Path
):
    file = tmp_path / "config.toml"
    file.write_text(dump_config(short_config))
    own = {0: ["--workdir", str(finished)], 1: ["--workdir", str(tmp_path / "run")]}
    with processes(2, "train", "--config", file, own=own) as started:
        first, second = endings(started)
    problem = "expected the same in every process as in process 0: "
    problem += "a finished run in the workdir is False here and True there"
    assert first == (1, "", f"error: process 1 of 2 ended: {problem}\n")
    assert second == (1, "", f"process 1: error: {problem}\n")
    assert not (tmp_path / "run").exists()


def test_another_configuration_in_one_process_ends_all(tmp_path: Path):
    arguments = ("train", "--workdir", tmp_path / "run", "--data.name", "digits")
    with processes(2, *arguments, own={1: ["--seed", "1"]}) as started:
        first, second = endings(started)
    problem = "expected the same in every process as in process 0: seed is 1 here and 0 there"
    assert first == (2, "", f"error: process 1 of 2 ended: {problem}\n")
    assert second == (2, "", f"process 1: error: {problem}\n")
    assert not (tmp_path / "run").exists()
