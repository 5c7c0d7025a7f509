"""The weights that a new run begins with if its setting `init` names a trained network (fine-tuning).

The network must have the blocks of the run's own, and images of as many channels. Its head is taken as well if both
have the same classes in the same order, or as many if a file does not name its classes. Nothing else is taken: neither
the optimiser's state, nor step or average.
"""

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from jaxresnet.config.schema import Config, ModelConfig
from jaxresnet.errors import UserError, printable
from jaxresnet.plan import Plan
from jaxresnet.runs.records import InitialWeights
from jaxresnet.runs.workdir import Workdir
from jaxresnet.trained.shipped import find_network

if TYPE_CHECKING:  # JAX is loaded where it is used: a configuration is completed without it
    from jax.sharding import Mesh

    from jaxresnet.learning.state import TrainState, Variables

ARCHITECTURE = (
    "stem_kernel", "stem_channels", "stage_blocks", "stage_channels", "stage_strides", "conv_bias",
)  # fmt: skip
"""The settings of [model] that say which arrays a network has and what they mean."""


@dataclass(frozen=True)
class Initial:
    """The weights that a run begins with: `variables`, without the head if that is fresh, and where they come from.

    `head` says in words why the head is taken or fresh.
    """

    variables: "Variables"
    source: InitialWeights
    head: str

    def begin(self, state: "TrainState") -> "TrainState":
        """`state`, which is that before the first step, with these weights. An average begins with them, too."""
        import jax
        import jax.numpy as jnp

        merged = {name: getattr(state, name) | tree for name, tree in self.variables.items()}
        # Each has its own arrays, because the first step takes over those of the state.
        weights, average = (jax.tree.map(jnp.copy, merged) for _ in range(2))
        return state.replace(**weights, average=None if state.average is None else average)

    def __str__(self) -> str:
        taken = "the whole network" if self.source.head else "all but the head, which is fresh"
        return f"begins with the weights of {self.source.place}: {taken} ({self.head})"


def with_initial_model(config: Config, folder: Workdir | None = None) -> Config:
    """`config` with those settings of [model] that were not given as the network has them that `config.init` names.

    If `folder` holds a run with this `init`, they are that run's, and the network is not looked for. A file without a
    configuration changes nothing. Raises UserError if there is no such network, and UserError (exit code 2) if
    settings that were given describe another.
    """
    if not config.init:
        return config
    try:
        saved = folder.config() if folder else None
    except UserError:  # what is wrong with the folder, `Workdir.check` tells
        return config
    if saved is not None:
        model = saved.model if saved.init == config.init else None  # another is refused by `Workdir.check`
    else:
        plan = initial_plan(config.init)
        model = plan.config.model if plan else None
        if model:
            _refuse_another_model(config, model, config.model.model_fields_set)
    if model is None:
        return config
    own = model.model_dump(exclude=config.model.model_fields_set)
    return config.replace({f"model.{name}": value for name, value in own.items()})


def initial_plan(name: str) -> Plan | None:
    """The plan of the network that `name` means (`find_network`); None for a file that has none.

    Raises UserError if there is no such network or it cannot be read.
    """
    try:
        path = find_network(name)
    except UserError as error:
        raise UserError(f"init: {error}") from None
    if path.is_dir():
        return Workdir(path).require_plan()
    from jaxresnet.trained.weights import plan_in_file  # loads JAX

    return plan_in_file(path)


def load_initial(plan: Plan, mesh: "Mesh", recorded: InitialWeights | None = None) -> Initial:
    """The weights that a run of `plan` begins with, on all devices of `mesh`. `plan.config.init` names them.

    `recorded` is where the run has begun before. Raises UserError if the network cannot be loaded or has changed since
    then, and UserError (exit code 2) if it is another than the plan's.
    """
    from jaxresnet.runs.integrity import checksum
    from jaxresnet.trained.load import load_network

    source = plan.config.init
    theirs = initial_plan(source)
    if theirs:
        _refuse_another_model(plan.config, theirs.config.model, ARCHITECTURE)
        _refuse_other_channels(plan, theirs)
    network = load_network(source, mesh=mesh, plan=None if theirs else _with_their_classes(plan))
    sha256 = checksum(network.variables)
    if recorded and recorded.sha256 != sha256:
        raise UserError(
            f"init: the run began with other weights of {source}: expected SHA-256 {recorded.sha256[:12]}, found "
            f"{sha256[:12]}: put them back, or name another --workdir to begin with these"
        )
    same, reason = _compare_classes(plan.info.class_names, network.class_names, named=theirs is not None)
    params = {name: tree for name, tree in network.variables["params"].items() if same or name != "head"}
    return Initial(
        network.variables | {"params": params}, InitialWeights(source, network.step, sha256, same), reason
    )


def _with_their_classes(plan: Plan) -> Plan:
    """`plan` with as many classes as the file of another program has, which does not hold their names."""
    from jaxresnet.trained.weights import head_shape

    shape = head_shape(find_network(plan.config.init))
    if shape is None or len(shape) != 2 or 0 in shape or shape[1] != plan.config.model.stage_channels[-1]:
        return plan  # loading it tells what is wrong
    names = tuple(map(str, range(shape[0])))
    return dataclasses.replace(plan, info=dataclasses.replace(plan.info, class_names=names))


def _refuse_another_model(config: Config, theirs: ModelConfig, names: Iterable[str]) -> None:
    """Raise UserError (exit code 2) if settings of the architecture that are among `names` are not as in `theirs`."""
    pairs = {name: (getattr(config.model, name), getattr(theirs, name)) for name in names}
    differing = {name: pairs[name] for name in ARCHITECTURE if name in pairs and len(set(pairs[name])) > 1}
    if differing:
        listed = "; ".join(f"model.{name} {here}, there {there}" for name, (here, there) in differing.items())
        raise UserError(
            f"init: expected the network that [model] describes, found another in {config.init}: {listed}: leave these "
            "settings out, so that they are as there, or name other weights",
            2,
        )


def _refuse_other_channels(plan: Plan, theirs: Plan) -> None:
    """Raise UserError (exit code 2) if the images of the two plans have not the same number of channels."""
    here, there = plan.info.image_shape[2], theirs.info.image_shape[2]
    if here != there:
        raise UserError(
            f"init: expected a network for images of {here} channels, as {plan.info.name} has, found one for {there} "
            f"in {plan.config.init}: name other weights",
            2,
        )


def _compare_classes(here: tuple[str, ...], there: tuple[str, ...], *, named: bool) -> tuple[bool, str]:
    """Whether the classes are the same in the same order, and that in words.

    If the names in `there` are not known (`named`), as many classes are taken for the same.
    """
    if len(here) != len(there):
        return False, f"{len(there)} classes there, {len(here)} here"
    if not named:
        return True, f"{len(there)} classes there, too; their names are not known"
    for number, (ours, theirs) in enumerate(zip(here, there, strict=True)):
        if ours != theirs:
            return False, f"class {number} is {printable(theirs)} there, {printable(ours)} here"
    return True, f"the same {len(here)} classes"
