"""The scripts for Slurm, with stand-ins for `srun` and Python that print their arguments."""

import os
import subprocess
from pathlib import Path

import pytest
from helpers import ROOT

SCRIPTS = sorted((ROOT / "docs" / "slurm").glob("*.sh"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_a_script_is_correct_shell(script: Path):
    subprocess.run(["bash", "-n", str(script)], check=True)


def run_script(
    name: str, folder: Path, *arguments: str, **variables: str
) -> subprocess.CompletedProcess[str]:
    stub = folder / "srun"
    stub.write_text('#!/bin/bash\nprintf "%s\\n" "cpus $SRUN_CPUS_PER_TASK" "$@"\n')
    stub.chmod(0o755)
    variables |= {"PATH": f"{folder}:{os.environ['PATH']}", "SLURM_CPUS_PER_TASK": "4"}
    return subprocess.run(
        ["bash", str(ROOT / "docs" / "slurm" / name), *arguments],
        env=os.environ | variables,
        capture_output=True,
        text=True,
    )


def run_array(folder: Path, task: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    return run_script("array.sh", folder, *arguments, SLURM_ARRAY_TASK_ID=str(task))


def test_every_task_of_a_run_on_several_machines_is_one_of_its_processes(tmp_path: Path):
    process = run_script("multihost.sh", tmp_path, "--config", "paper", "--workdir", "my runs/paper")
    assert process.stdout.splitlines() == [
        "cpus 4", "--kill-on-bad-exit=1", ".venv/bin/python", "-m", "jaxresnet.train", "--device", "cuda",
        "--distributed", "--config", "paper", "--workdir", "my runs/paper",
    ]  # fmt: skip


def test_the_tasks_of_an_array_are_the_runs_of_a_sweep(tmp_path: Path):
    found = []
    for task in range(4):
        out = run_array(
            tmp_path, task, "2", "configs/paper.toml", "my configs/b.toml", "--", "--epochs", "3"
        ).stdout
        cpus, python, module, name, *rest = out.splitlines()
        assert (cpus, python, module, name) == ("cpus 4", ".venv/bin/python", "-m", "jaxresnet.train")
        assert rest[-2:] == ["--epochs", "3"]
        found.append(rest[:-2])
    assert found == [
        ["--config", file, "--seed", seed, "--workdir", f"runs/sweep/{name}/seed{seed}"]
        for file, name in (("configs/paper.toml", "paper"), ("my configs/b.toml", "b"))
        for seed in ("0", "1")
    ]


def test_an_array_with_too_many_tasks_is_refused(tmp_path: Path):
    process = run_array(tmp_path, 4, "2", "a.toml", "b.toml")
    assert (process.returncode, process.stdout) == (2, "")
    assert process.stderr == "error: task 4: expected --array=0-3\n"
