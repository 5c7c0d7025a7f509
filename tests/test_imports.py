"""Importing and using the package in a program of someone else's: nothing heavy unasked, nothing changed."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import pytest
from helpers import TINY_SETTINGS

COMMANDS = ("train", "evaluate", "predict", "export", "demo", "summary", "sweep", "report")


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_answers_without_loading_a_heavy_library(command: str):
    code = (
        f"import sys, jaxresnet.config.files, jaxresnet.config.flags, jaxresnet.{command}\n"
        f"try: jaxresnet.{command}.main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'jax', 'tensorflow', 'tensorflow_datasets', 'flax', 'optax', 'orbax', 'sklearn', 'numpy', "
        "'matplotlib', 'ray'}\n"
        "print(heavy & set(sys.modules))"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert process.stdout.splitlines()[-1] == "set()"


STATE = """
import json, logging, os, pkgutil, importlib, signal, sys, threading, warnings
from pathlib import Path

# The libraries below change a few things as they are imported, which is theirs to do.
import absl.logging, flax.linen, jax, matplotlib.figure, numpy, optax, orbax.checkpoint, pydantic, rich.console
import safetensors.numpy, sklearn.datasets, tensorboardX, tensorflow, tensorflow_datasets

def state():
    def logger(name):
        it = logging.getLogger(name)
        return it.level, list(map(repr, it.filters)), list(map(repr, it.handlers)), it.propagate, it.disabled
    return {
        "unraisablehook": repr(sys.unraisablehook),
        "excepthook": repr(sys.excepthook),
        "showwarning": repr(warnings.showwarning),
        "warning filters": list(map(repr, warnings.filters)),
        "logging": {name: logger(name) for name in (None, "absl", "asyncio", "jax", "tensorflow")},
        "signals": {int(n): repr(signal.getsignal(n)) for n in signal.valid_signals()},
        "environment": dict(os.environ),
        "jax": {name: repr(value) for name, value in jax.config.values.items()},
        "threading": repr(threading.excepthook),
    }

def changed(before, after):
    return [key for key in before if before[key] != after[key]]

before = state()
"""

USE = """
settings, folder = json.loads(sys.argv[1]), Path(sys.argv[2])
import jaxresnet
for module in pkgutil.walk_packages(jaxresnet.__path__, "jaxresnet."):
    importlib.import_module(module.name)
imported = changed(before, state())

from jaxresnet.config.schema import Config
from jaxresnet.data.sources import open_source
from jaxresnet.data.splits import Split, load_split
from jaxresnet.fit import fit
from jaxresnet.learning.learner import make_learner
from jaxresnet.machine.devices import local_mesh
from jaxresnet.trained.evaluation import predict_split
from jaxresnet.trained.load import load_run, load_weights_file
from jaxresnet.trained.weights import save_weights

fit(Config().replace(settings), folder / "run")
network = load_run(folder / "run")
split = load_split(open_source(network.config.data), "test", expected=network.info)
few = Split(split.images[:6], split.labels[:6])
logits = jax.jit(network.apply)(network.variables, few.images)
save_weights(folder / "weights.safetensors", network.plan, network.variables)
same = load_weights_file(folder / "weights.safetensors")
again = predict_split(make_learner(same.plan), same.variables, few, 8, local_mesh())
numpy.testing.assert_allclose(logits, again, rtol=1e-4, atol=1e-5)
print(json.dumps({"imported": imported, "used": changed(before, state()), "logits": logits.shape}))
"""

OWN = """
from jaxresnet.machine.workarounds import own_process
own_process()
once = state()
own_process()
print(json.dumps({"once": changed(before, once), "twice": changed(once, state())}))
"""


def in_a_fresh_process(code: str, *arguments: str, **variables: str) -> dict[str, Any]:
    """What a program prints last."""
    ours = ("TF_CPP_MIN_LOG_LEVEL", "TF_ENABLE_ONEDNN_OPTS", "TF_USE_LEGACY_KERAS")
    inherited = {key: value for key, value in os.environ.items() if key not in ours}
    process = subprocess.run(
        [sys.executable, "-c", STATE + code, *arguments],
        env=inherited | variables,
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout.splitlines()[-1])


def test_importing_training_and_predicting_change_nothing_of_the_process(tmp_path: Path):
    settings = json.dumps(TINY_SETTINGS | {"epochs": 1, "batch_size": 120})
    cache = getattr(jax.config, "jax_compilation_cache_dir")  # noqa: B009 - JAX declares no type for it
    found = in_a_fresh_process(USE, settings, str(tmp_path), JAX_COMPILATION_CACHE_DIR=cache)
    assert found == {"imported": [], "used": [], "logits": [6, 10]}


def test_a_commands_own_process_is_changed_once():
    found = in_a_fresh_process(OWN)
    assert set(found["once"]) == {"unraisablehook", "showwarning", "logging", "environment"}
    assert found["twice"] == []
