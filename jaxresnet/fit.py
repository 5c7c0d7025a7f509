"""A whole training run: `fit` and its stages."""

import functools
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax
from jax.sharding import Mesh

from jaxresnet.config.schema import Config
from jaxresnet.data.batches import train_batches, zero_batch
from jaxresnet.data.resolution import Size
from jaxresnet.data.sources import open_source
from jaxresnet.data.splits import Source, Split, load_splits
from jaxresnet.errors import UserError
from jaxresnet.learning.learner import Learner, make_hyperparameters, make_learner, random_key
from jaxresnet.learning.state import TrainState, make_init, state_template
from jaxresnet.learning.step import make_train_step
from jaxresnet.machine.devices import (
    check_batch_size,
    device_batches,
    local_mesh,
    on_cpu,
    own_rows,
    replicate,
    replicated,
    shard_batch,
)
from jaxresnet.machine.environment import describe_environment, peak_device_bytes
from jaxresnet.machine.hosts.peers import Peers
from jaxresnet.machine.memory import check_memory, free_bytes, out_of_memory_told
from jaxresnet.machine.signals import Background, Stop
from jaxresnet.machine.workarounds import load_tensorflow
from jaxresnet.network.cpu_convolution import convolution_for
from jaxresnet.plan import Plan, resolve
from jaxresnet.programs import Program, TrainPrograms
from jaxresnet.reporting.progress import Reporter, closing_lines, headline, schedule_notes, size_notes
from jaxresnet.runs.checkpoint import Checkpoints
from jaxresnet.runs.records import EvaluationRecord, evaluated_split
from jaxresnet.runs.unwritten import UnwrittenCheckpoints, UnwrittenWorkdir, check_same_place
from jaxresnet.runs.workdir import Workdir
from jaxresnet.session import CompiledSteps, Saving, Session, evaluate_end
from jaxresnet.trained.evaluation import jit_eval_step
from jaxresnet.trained.initial import Initial, load_initial


def fit(
    config: Config,
    workdir: Path | str,
    mesh: Mesh | None = None,
    stop: Stop | None = None,
    source: Source | None = None,
    peers: Peers | None = None,
) -> EvaluationRecord:
    """Train as `config` says in the folder `workdir`, from its newest checkpoint on if it has one.

    `mesh` holds the devices, by default all of this process. A request by `stop` is noticed after each step. `source`
    is the data set of `config`, if it is open already. With `peers`, all of them call this, and `mesh` holds the
    devices of all; process 0 writes the folder. The run in it is finished for all of them or for none. Returns the
    evaluation of the last step on the test split, which is also written to evaluation.json. If the run is finished
    already, only its result is printed and returned; the data is not needed. Raises UserError if the user can fix the
    problem, and Interrupted on a request to stop, after saving.
    """
    began = time.monotonic()
    folder, stop, peers = Workdir(workdir), stop or Stop(), peers or Peers()
    source = source or open_source(config.data)
    plan = resolve(config, folder.facts(config) or source.outline)
    evaluation = folder.finished(config.epochs)
    if evaluation is None:
        mesh = mesh or local_mesh()
        peers.meet(mesh)
        check_batch_size(config.batch_size, mesh.devices.size)
        stop.run(lambda: peers.in_turn(source.prepare), "downloading the data")
        plan, saved = with_devices(resolve(config, source.outline), mesh), folder.config()
        here = mesh if peers.count == 1 else local_mesh()
        initial = functools.cache(functools.partial(load_initial, plan, here, folder.initial_weights()))
        # Of a new run at once, so that what does not fit is told before there is a folder.
        begins = initial().source if config.init and saved is None else None
        say(headline(plan, mesh), *size_notes(plan, saved), *schedule_notes(plan, saved))
        # Import TensorFlow, compile and load the data at the same time, because none of them keeps two cores busy.
        Background(load_tensorflow)
        plan = resolve(plan.config, stop.run(lambda: source.info, "reading the data"))
        folder.check(plan)
        learner = make_learner(plan, convolution_for(mesh, small_maps=len(plan.phases) > 1))
        template = state_template(learner, replicated(mesh))
        say(*frozen_notes(learner, template))
        size = plan.size_at(folder.newest_saved_step())  # where the run goes on, unless that one is damaged
        compiling = Background(lambda: compile_steps(learner, template, mesh, size))
        names = {"train", "test", config.evaluation.split}
        held_out = config.data.validation_examples
        splits = stop.run(
            lambda: peers.in_turn(lambda: load_splits(source, names, held_out)), "loading the data"
        )
        folder = folder if peers.first else UnwrittenWorkdir(workdir)
        with folder.open(plan, begins), out_of_memory_told(config.batch_size, mesh):
            stop.run(lambda: check_same_place(peers, splits, folder.path), "meeting the other processes")
            environment = describe_environment(mesh, plan.config.precision, ["python", *sys.orig_argv[1:]])
            with folder.starts.recorded(environment, began, lambda: peak_device_bytes(mesh)):
                evaluation = run_to_end(
                    learner, template, folder, mesh, splits, compiling, stop, initial, peers
                )
    say(closing_lines(plan, folder.path, folder.epochs.read(), evaluation))
    return evaluation


def say(*lines: str) -> None:
    """Print lines, without buffering."""
    for line in lines:
        print(line, flush=True)


def frozen_notes(learner: Learner, template: TrainState) -> list[str]:
    """A line that says which part of the network is trained, unless it is the whole. `template` is of its state."""
    stages = learner.plan.config.freeze_stages
    if not stages:
        return []
    trained, frozen = (
        sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(part))
        for part in learner.divide(template.params)
    )
    of = len(learner.plan.config.model.stage_blocks)
    return [
        f"frozen: the stem and {stages} of {of} stages; {trained:,} of {trained + frozen:,} parameters are trained"
    ]


def with_devices(plan: Plan, mesh: Mesh) -> Plan:
    """The plan with the number of CPU devices that `mesh` has, so that the run's folder records it.

    It may have another than was asked for: XLA_FLAGS can set it, too.
    """
    if not on_cpu(mesh):
        return plan
    return plan.with_config(plan.config.replace({"cpu_devices": mesh.devices.size}))


def compile_steps(
    learner: Learner, template: TrainState, mesh: Mesh, size: Size | None = None
) -> CompiledSteps:
    """Trace and compile the two steps of a run, for states like `template`.

    The train step is compiled for images of `size`, by default the data's own, and once for each other size that its
    programs are asked to begin with. The evaluation has the data's own size. Apart from these steps only the
    initialisation is jitted. Raises UserError if the train step needs more memory than is free.
    """
    began = time.monotonic()
    config, (*own, channels) = learner.plan.config, learner.plan.info.image_shape
    hyperparameters = replicate(mesh, make_hyperparameters(learner.plan))
    train_step = jax.jit(make_train_step(learner), donate_argnums=1, out_shardings=replicated(mesh))
    free = functools.cache(free_bytes)  # later, steps in progress hold memory that the next program will have

    def compile_train(size: Size) -> Program:
        batch = shard_batch(mesh, zero_batch(config, (*size, channels)))
        compiled = train_step.lower(hyperparameters, template, batch).compile()
        check_memory(config.batch_size, mesh, compiled, free())
        return functools.partial(compiled, hyperparameters)

    train, first = TrainPrograms(compile_train), size or (own[0], own[1])
    train.begin([first])
    train.of(first)
    plain = shard_batch(mesh, zero_batch(config, (own[0], own[1], channels)))
    plain = plain._replace(other=None, share=None)
    eval_step = jit_eval_step(learner, mesh).lower(template.variables, template.metrics, plain).compile()
    return CompiledSteps(train, eval_step, round(time.monotonic() - began, 1))


def run_to_end(
    learner: Learner,
    template: TrainState,
    folder: Workdir,
    mesh: Mesh,
    splits: dict[str, Split],
    compiling: Background[CompiledSteps],
    stop: Stop,
    initial: Callable[[], Initial],
    peers: Peers,
) -> EvaluationRecord:
    """Restore or initialise the state, train the remaining epochs, evaluate. Returns the final evaluation.

    `initial` is called if the run begins, and its setting `init` names other weights than random ones.
    """
    plan, config = learner.plan, learner.plan.config
    with open_checkpoints(folder, config) as checkpoints:
        state = stop.run(
            lambda: peers.begin(
                lambda like, here: restore_or_init(learner, like, checkpoints, here, initial), template, mesh
            ),
            "preparing the network",
        )
        start, pending = int(state.step), state.metrics.count > 0
        check_start(plan, start)
        if peers.first:  # the others read nothing in the folder, and may not see all of it yet
            check_records(folder, checkpoints.newest_step(), first_epoch(plan, state))
        folder.go_on(config, start - 1 if pending else start)
        batches = stop.run(
            lambda: device_batches(
                train_batches(config, splits["train"], start, own_rows(mesh, config.batch_size)), mesh
            ),
            "starting the input pipeline",
        )
        compiled = stop.wait(compiling, "compiling")
        stop.run(peers.barrier, "waiting until the others have compiled")
        folder.starts.extend(compile_seconds=compiled.seconds)
        say(f"compiled in {compiled.seconds} s")
        saving, last_evaluation = Saving(learner, folder, checkpoints, stop, peers), None
        events = folder.tensorboard if peers.first else None
        with Reporter(events, config.epochs, plan.total_steps, start, stop) as reporter:
            session = Session(learner, mesh, splits, compiled, saving, reporter)
            for epoch in range(first_epoch(plan, state), config.epochs):
                state, last_evaluation = session.run_epoch(epoch, state, batches)
        checkpoints.wait()
        return evaluate_end(session, state, last_evaluation)


def open_checkpoints(folder: Workdir, config: Config) -> Checkpoints:
    """The checkpoints of the run. Raises UserError if it has finished an epoch and their folder is not there."""
    if isinstance(folder, UnwrittenWorkdir):
        return UnwrittenCheckpoints()
    records = folder.epochs.read()
    if records and not folder.checkpoints.is_dir():
        raise UserError(
            f"{folder.checkpoints} is missing, but metrics.jsonl has {records[-1].epoch} epochs: mount or restore that "
            "folder, or name another --workdir"
        )
    split = evaluated_split(records)
    accuracies = {record.step: record.accuracy(split) for record in records} if split else {}
    recorded = {step: accuracy for step, accuracy in accuracies.items() if accuracy is not None}
    return Checkpoints(folder.checkpoints, folder.identity(config), recorded=recorded)


def restore_or_init(
    learner: Learner,
    template: TrainState,
    checkpoints: Checkpoints,
    mesh: Mesh,
    initial: Callable[[], Initial],
) -> TrainState:
    """The state of the newest intact checkpoint; if there is none a new one, perhaps of `initial` weights."""
    state = checkpoints.restore_latest(template, report=lambda line: print(line, file=sys.stderr))
    if state is not None:
        say(f"resuming at step {int(state.step):,}")
        return state
    taken = initial() if learner.plan.config.init else None
    if taken:
        say(str(taken))
    # Not optimised, because it runs only once and so compiles in a fraction of the time.
    options = {"xla_backend_optimization_level": 0} if on_cpu(mesh) else None
    init = jax.jit(make_init(learner), out_shardings=replicated(mesh), compiler_options=options)
    state = init(random_key(learner.plan.config.seed))
    return jax.block_until_ready(taken.begin(state) if taken else state)


def check_start(plan: Plan, step: int) -> None:
    """Raise UserError (exit code 2) if `step` is already past the end of the run."""
    if step > plan.total_steps:
        raise UserError(
            f"epochs: the run is at step {step:,} already, expected more than {plan.config.epochs} "
            f"({plan.total_steps:,} steps)",
            2,
        )


def check_records(folder: Workdir, newest: int, finished: int) -> None:
    """Raise UserError if metrics.jsonl and the checkpoints do not tell of the same epochs, because a part is missing.

    `newest` is the step of the newest checkpoint, damaged or not. `finished` is the number of epochs that the run goes
    on after. A line is written before its epoch's checkpoint is saved, and that is waited for when the next one is due.
    So a run that is killed leaves the lines of two intervals between checkpoints more, at most.
    """
    folder.epochs.require(finished)
    ahead = {record.epoch for record in folder.epochs.read() if record.step > newest}
    before = folder.require_config()
    if len(ahead) > (most := 2 * before.checkpoint.every_epochs):
        raise UserError(
            f"{folder.checkpoints}: the newest checkpoint is of step {newest:,}, but metrics.jsonl has {len(ahead)} "
            f"later epochs, expected at most {most}: mount or restore that folder, or name another --workdir"
        )
    if ahead and not newest:
        print("no checkpoint was complete when the run was stopped: starting anew", file=sys.stderr)


def first_epoch(plan: Plan, state: TrainState) -> int:
    """The epoch (0 is the first) that a run continues from `state`.

    At the last step of an epoch, this is the same epoch if its evaluation is still to come. The sums in the state show
    it: they are reset after the evaluation.
    """
    step = int(state.step)
    epoch = step * plan.config.batch_size // plan.train_examples
    while plan.end_step(epoch + 1) <= step:
        epoch += 1
    pending = state.metrics.count > 0 and plan.end_step(epoch) == step
    return epoch - 1 if pending else epoch
