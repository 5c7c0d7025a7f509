"""The modules' layers: imports go strictly from a higher to a lower one, heavy libraries have one owner."""

import ast
from pathlib import Path

import pytest

import jaxresnet

LAYERS = {
    "__init__": 0,
    "errors": 0,
    "memory": 0,
    "batch": 0,
    "config": 1,
    "convolution": 1,
    "model": 2,
    "optimizer": 2,
    "metrics": 2,
    "augment": 2,
    "step": 3,
    "data": 3,
    "workdir": 3,
    "progress": 3,
    "runtime": 3,
    "checkpoint": 4,
    "weights": 4,
    "comparison": 4,
    "figures": 5,
    "inference": 5,
    "loop": 6,
    "train": 7,
    "evaluate": 7,
    "summary": 7,
    "report": 7,
    "sweep": 7,
}

OWNERS = {
    "tensorflow": {"augment", "data"},
    "tensorflow_datasets": {"data"},
    "sklearn": {"data"},
    "orbax": {"checkpoint"},
    "optax": {"optimizer", "metrics", "step"},
    "flax": {"model", "metrics", "step", "weights"},
    "pydantic": {"config"},
    "safetensors": {"weights"},
    "rich": {"progress"},
    "matplotlib": {"figures"},
    "tensorboardX": {"progress"},
    # Nothing that only reads a configuration or the command line may load JAX.
    "jax": {
        "convolution",
        "model",
        "metrics",
        "step",
        "runtime",
        "checkpoint",
        "weights",
        "inference",
        "loop",
    },
}

MODULES = sorted(Path(jaxresnet.__file__).parent.glob("*.py"))


def imports(path: Path) -> set[str]:
    """Dotted names of everything a module imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path.name} line {node.lineno}: relative import"
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_imports_go_down_and_to_owned_libraries(path: Path):
    module = path.stem
    assert module in LAYERS, f"{module} has no layer: give it one in this table"
    for name in imports(path):
        package, _, rest = name.partition(".")
        imported = rest.split(".")[0]
        if package == "jaxresnet" and imported:
            assert LAYERS[imported] < LAYERS[module], f"{module} must not import {imported}"
        if package in OWNERS:
            assert module in OWNERS[package], f"{module} must not import {package}"


def test_table_lists_no_module_that_is_gone():
    assert set(LAYERS) == {path.stem for path in MODULES}
