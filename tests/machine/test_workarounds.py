"""What mends other libraries' behaviour: it hits what it is meant for, and leaves the rest as it is."""

import itertools
import logging
from pathlib import Path
from types import SimpleNamespace

import jax
import pytest

from jaxresnet.machine import workarounds
from jaxresnet.machine.workarounds import first_reason, load_tensorflow


def test_other_warnings_are_shown():
    shown: list[str] = []
    workarounds._mend_compilation_cache(
        lambda message, *_: shown.append(str(message)), UserWarning("else"), UserWarning, "file", 1
    )
    assert shown == ["else"]


def test_a_cache_entry_of_no_use_is_removed_and_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    for name in ("jit_step-abc", "jit_step-def", "jit_stepping-abc"):
        (tmp_path / name).touch()
    before = getattr(jax.config, "jax_compilation_cache_dir")  # noqa: B009 - JAX declares no type for it
    jax.config.update("jax_compilation_cache_dir", str(tmp_path))
    monkeypatch.setattr(workarounds, "_tell_once", workarounds._tell_once.__wrapped__)
    try:
        workarounds._mend_compilation_cache(
            lambda *_: pytest.fail("shown"),
            "Error reading persistent compilation cache entry for 'jit_step': ValueError: short",
        )
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
    assert [path.name for path in tmp_path.iterdir()] == ["jit_stepping-abc"]
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("was of no use (ValueError: short) and is removed")


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (RuntimeError("Event loop is closed"), False),
        (RuntimeError("else"), True),
        (OSError("Event loop is closed"), True),
    ],
)
def test_only_closed_event_loops_are_silent(error: Exception, told: bool):
    heard: list[object] = []
    workarounds._ignore_closed_loops(heard.append, SimpleNamespace(exc_value=error))
    assert bool(heard) == told


def test_only_the_remark_that_a_manager_reads_is_left_out(caplog: pytest.LogCaptureFixture):
    logger = logging.getLogger("absl")
    with caplog.at_level(logging.WARNING, "absl"), workarounds.read_only_unremarked():
        logger.warning("Given directory is read only=%s", "folder")
        logger.warning("else")
    with caplog.at_level(logging.WARNING, "absl"):
        logger.warning("Given directory is read only=%s", "later")
    assert [record.getMessage() for record in caplog.records] == [
        "else",
        "Given directory is read only=later",
    ]


@pytest.mark.parametrize(
    ("message", "kept"),
    [
        ("Future exception was never retrieved: orbax", False),
        ("Task exception was never retrieved: Error reading OCDBT", False),
        ("Task exception was never retrieved: else", True),
        ("Executing orbax took 3 seconds", True),
    ],
)
def test_only_orbaxs_unawaited_reads_are_left_out(message: str, kept: bool):
    record = logging.LogRecord("asyncio", logging.ERROR, "file", 1, message, None, None)
    assert workarounds._not_of_checkpoints(record) == kept


def chain(*errors: BaseException) -> BaseException:
    """The last of the errors, each raised from the one before."""
    for cause, error in itertools.pairwise(errors):
        error.__cause__ = cause
    return errors[-1]


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (
            chain(OSError(28, "No space left on device"), ValueError("page of text")),
            "No space left on device",
        ),
        (ValueError("NOT_FOUND: Error\n reading x [source='a']"), "NOT_FOUND: Error reading x"),
        (
            ValueError("Error writing y: Failed: No space left on device [os_error_code='28'] [source='b']"),
            "No space left on device",
        ),
        (KeyError(), "KeyError"),
        (ValueError("x" * 300), "x" * 200),
    ],
)
def test_the_first_reason_is_one_line(error: BaseException, reason: str):
    assert first_reason(error) == reason


def test_tensorflow_says_only_what_it_raises():
    tf = load_tensorflow()  # the suite's process is the package's own
    assert tf.get_logger().level == logging.ERROR
    assert tf.config.get_visible_devices("GPU") == []
