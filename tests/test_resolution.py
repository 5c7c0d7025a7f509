"""A run whose images grow: its steps' sizes, its programs, and going on anywhere in it, in one process."""

import signal
import threading
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from helpers import assert_same_run, plan_of

from jaxresnet import fit as fit_module
from jaxresnet.config.schema import Config
from jaxresnet.data.batches import Batch
from jaxresnet.data.resolution import Size, size_text
from jaxresnet.errors import Interrupted, UserError
from jaxresnet.fit import fit
from jaxresnet.learning.learner import make_learner
from jaxresnet.learning.metrics import Metrics
from jaxresnet.learning.state import TrainState
from jaxresnet.machine.signals import Stop
from jaxresnet.programs import TrainPrograms
from jaxresnet.reporting.progress import Reporter, size_notes
from jaxresnet.reporting.sections.curves import curve_marks, curves_section
from jaxresnet.runs.groups import History, RunGroup
from jaxresnet.runs.records import EpochRecord
from jaxresnet.runs.workdir import Workdir
from jaxresnet.session import Session
from jaxresnet.summary import training_notes

SCHEDULE: dict[str, Any] = {"resolution.sizes": (16, 24), "resolution.shares": (0.25, 0.35)}
SIDES = [16] * 6 + [24] * 8 + [32] * 10
"""Of the images in the 24 steps: a quarter of them are 6, and 0.6 are 14.4. The first epoch ends after 12."""


@pytest.fixture(scope="module")
def config(short_config: Config) -> Config:
    return short_config.replace(SCHEDULE)


class Watched:
    """What a run does: the sizes that it traces and compiles, the side of each step's images, its messages.

    After step number `last` of the run's start it is asked to stop.
    """

    def __init__(self, patch: pytest.MonkeyPatch, last: int = -1):
        self.stop, self.sides, self.messages = Stop(), list[int](), list[str]()
        self.held = ""
        self.traced, self.compiled, self.free = Counter[int](), Counter[int](), list[Any]()
        make_step, take_step, message = fit_module.make_train_step, TrainPrograms.__call__, Reporter.message
        check = fit_module.check_memory

        def make_traced(learner: Any) -> Any:
            step = make_step(learner)

            def traced(hyperparameters: Any, state: Any, batch: Batch) -> Any:
                self.traced[batch.image.shape[1]] += 1
                return step(hyperparameters, state, batch)

            return traced

        def take(programs: TrainPrograms, state: TrainState, batch: Batch) -> Any:
            self.sides.append(batch.image.shape[1])
            if len(self.sides) == last and not self.held:
                self.stop.number = signal.SIGINT
            return take_step(programs, state, batch)

        def tell(reporter: Reporter, text: str) -> None:
            self.messages.append(text)
            if text == f"waiting for the step on {self.held} to be compiled":
                self.stop.number = signal.SIGTERM
            message(reporter, text)

        def checked(batch_size: int, mesh: Any, step: Any, free: int | None) -> None:
            images = step.in_avals[0][2].image
            self.compiled[images.shape[1]] += 1
            self.free.append(free)
            check(batch_size, mesh, step, free)

        patch.setattr(fit_module, "make_train_step", make_traced)
        patch.setattr(fit_module, "check_memory", checked)
        patch.setattr(TrainPrograms, "__call__", take)
        patch.setattr(Reporter, "message", tell)

    def stop_when_waiting_for(self, patch: pytest.MonkeyPatch, held: Size) -> None:
        """Have the program for that size never be ready, and the signal come when the run waits for it."""
        self.held, ready = size_text(held), TrainPrograms.ready
        patch.setattr(
            TrainPrograms,
            "ready",
            lambda programs, size, seconds=0.0: size != held and ready(programs, size, seconds),
        )


@pytest.fixture(scope="module")
def whole(config: Config, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Watched]:
    """A run that was not interrupted, and what it did."""
    workdir = tmp_path_factory.mktemp("whole") / "run"
    with pytest.MonkeyPatch.context() as patch:
        watched = Watched(patch)
        fit(config, workdir)
    return workdir, watched


def test_each_size_has_its_steps_and_one_program(whole: tuple[Path, Watched]):
    _, watched = whole
    assert watched.sides == SIDES
    assert watched.traced == watched.compiled == {16: 1, 24: 1, 32: 1}
    # Later, the step in progress holds memory that the next program will have.
    assert watched.free == 3 * watched.free[:1]
    changes = [line for line in watched.messages if "from step" in line]
    assert changes == [
        "from step 7 on, images have 24 x 24 pixels",
        "from step 15 on, images have 32 x 32 pixels",
    ]


def test_going_on_in_each_phase_and_at_its_borders_changes_no_bit(
    tmp_path: Path, whole: tuple[Path, Watched], config: Config
):
    """And what a start no longer needs is not compiled: it begins with the size at which it goes on."""
    workdir, done = tmp_path / "run", 0
    for saved in (6, 9, 14, 20, 24):
        with pytest.MonkeyPatch.context() as patch:
            watched = Watched(patch, last=saved - done)
            if saved == 6:  # heard while the next size is compiled
                watched.stop_when_waiting_for(patch, (24, 24))
            if saved == 24:
                fit(config, workdir)
            else:
                with pytest.raises(Interrupted, match=f"saved at step {saved} "):
                    fit(config, workdir, stop=watched.stop)
        assert watched.sides == SIDES[done:saved]
        # Those that come later may not be traced yet when the run stops.
        assert next(iter(watched.traced)) == SIDES[done]
        assert set(watched.traced) <= set(SIDES[done:])
        done = saved
    assert_same_run(workdir, whole[0], config)


def test_a_size_that_does_not_fit_is_told_before_its_phase():
    """Programs are compiled one at a time in their order, none twice."""
    order, first_may_end = list[Size](), threading.Event()

    def compile_for(size: Size) -> Any:
        order.append(size)
        if size == (16, 16):
            first_may_end.wait()
        if size == (32, 32):
            raise UserError("out of memory")
        return lambda state, batch: (size, state, batch)

    programs = TrainPrograms(compile_for)
    programs.begin([(16, 16)])
    programs.begin([(16, 16), (24, 24), (32, 32)])
    assert not programs.ready((24, 24), 0.01)
    assert order == [(16, 16)]
    first_may_end.set()
    programs.of((24, 24))
    with pytest.raises(UserError, match="out of memory"):
        programs.of((32, 32))
    assert order == [(16, 16), (24, 24), (32, 32)]
    with pytest.raises(UserError, match="out of memory"):  # although 24 x 24 is there
        programs.ready((24, 24))
    batch = Batch(np.zeros((2, 24, 24, 3), np.uint8), None, None)
    state: Any = "state"
    assert programs(state, batch) == ((24, 24), state, batch)


def test_the_time_left_counts_pixels(config: Config):
    shown = []
    reporter: Any = SimpleNamespace(step=lambda *given: shown.append(given))
    saving: Any = SimpleNamespace(require_finite=lambda *_: None)
    nothing: Any = None
    session = Session(make_learner(plan_of(config)), nothing, nothing, nothing, saving, reporter)
    metrics = Metrics(np.float32(60), np.eye(10, dtype=np.int32), np.int32(0))
    session.report(0, 2, 8, metrics, 3.0)
    [(epoch, step, _, _, rate, left)] = shown
    assert (epoch, step, rate) == (1, 8, 120 * 6 / 3)
    # 4 steps of 16 x 16 and 2 of 24 x 24 took 3 s; 6 of 24 x 24 and 10 of 32 x 32 are left.
    assert left == pytest.approx(3 * (6 * 24**2 + 10 * 32**2) / (4 * 16**2 + 2 * 24**2))


def test_the_schedule_is_told_at_the_start(config: Config):
    plan = plan_of(config)
    first = (
        "training images: 16 x 16 pixels to step 6, 24 x 24 pixels to step 14, then 32 x 32 pixels to step 24"
    )
    assert size_notes(plan, None) == size_notes(plan, config) == [first]
    assert (
        size_notes(
            plan_of(config.replace(SCHEDULE | {"resolution.sizes": (), "resolution.shares": ()})), None
        )
        == []
    )
    assert size_notes(plan, config.replace({"epochs": 4}))[1] == (
        "note: the steps at which their size changes follow --epochs; they were: 12 and 28"
    )
    assert training_notes(plan.phases, [10, 20, 40]) == [
        "MACs per image of 16 x 16 pixels, in 25.0% of the steps: 10",
        "MACs per image of 24 x 24 pixels, in 33.3% of the steps: 20",
        "MACs per image of 32 x 32 pixels, in 41.7% of the steps: 40",
        "mean MACs per training image: 26 (64.6% of the last)",
    ]
    assert training_notes(plan.phases[-1:], [40]) == []


def test_the_report_says_where_the_size_changes(config: Config):
    history = History(
        Workdir("run"), "run", plan_of(config), [EpochRecord(1, 12, 0.1, 2.0, 0.5, 1.0, 9.0)], []
    )
    group = RunGroup("run", [history])
    # Batches of 120 from 1,442 images: steps 6 and 14 are in the middle of an epoch and after one.
    assert curve_marks([group]) == pytest.approx([6 * 120 / 1442, 14 * 120 / 1442])
    assert curve_marks([group, group]) == []
    sizes = "16 x 16 pixels, 24 x 24 pixels, 32 x 32 pixels"
    assert f"the size of the training images changes ({sizes}), as planned for 2 epochs." in str(
        curves_section([group])
    )
    assert "Dotted" not in str(curves_section([group, group]))
