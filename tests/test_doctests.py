"""The examples in the package's docstrings are true."""

import doctest
import importlib
import pkgutil
from pathlib import Path

import pytest

import jaxresnet

MODULES = ["jaxresnet", *(module.name for module in pkgutil.walk_packages(jaxresnet.__path__, "jaxresnet."))]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name: str, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "digits").symlink_to(finished)
    monkeypatch.chdir(tmp_path)
    result = doctest.testmod(importlib.import_module(name))
    assert result.failed == 0, f"{result.failed} of {result.attempted} examples: see above"


def test_there_are_modules_and_examples():
    assert {"jaxresnet.data.augment", "jaxresnet.fit", "jaxresnet.runs.checkpoint"} <= set(MODULES)
    finder = doctest.DocTestFinder(exclude_empty=True)
    with_examples = {
        name for name in MODULES if any(test.examples for test in finder.find(importlib.import_module(name)))
    }
    assert {"jaxresnet.config.files", "jaxresnet.data.splits"} <= with_examples
    assert len(with_examples) >= 5
