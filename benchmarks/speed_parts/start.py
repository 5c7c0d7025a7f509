"""A run's start, as a user meets it: the whole command, with an empty and with a filled compilation cache."""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from jaxresnet.config.flags import to_arguments
from jaxresnet.plan import Plan
from jaxresnet.runs.workdir import Workdir

ROOT = Path(__file__).parent.parent.parent


def measure_start(config_file: Path, plan: Plan, device: str) -> list[dict[str, Any]]:
    """The seconds of the command `train` on a tenth of the training images, twice; its cache is empty, then filled.

    The first step's time is known to the first epoch's end: its line's time, less the epoch's own seconds.
    """
    settings = {
        "epochs": 1,
        "batch_size": plan.config.batch_size,
        "cpu_devices": plan.config.cpu_devices,
        "data.validation_examples": plan.info.train_examples * 9 // 10,
        "evaluation.split": "none",
    }
    command = [sys.executable, "-m", "jaxresnet.train", "--config", str(config_file.resolve())]
    command += ["--device", device, *to_arguments(settings)]
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(Path(folder, "cache"))}
        for cache in ("empty", "filled"):
            workdir = Workdir(Path(folder, cache))
            began = time.time()
            subprocess.run(
                [*command, "--workdir", str(workdir.path)],
                env=environment,
                cwd=ROOT,
                check=True,
                stdout=subprocess.DEVNULL,
            )
            total = time.time() - began
            (record,) = workdir.epochs.read()
            ended = (workdir.path / "metrics.jsonl").stat().st_mtime
            rows.append(
                {
                    "compilation_cache": cache,
                    "seconds_to_first_step": ended - began - record.seconds,
                    "compile_seconds": workdir.starts.read()[-1].compile_seconds,
                    "images_per_second": record.images_per_second,
                    "seconds": total,
                }
            )
    return rows
