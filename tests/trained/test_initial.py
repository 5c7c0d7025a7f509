"""Which weights a run begins with: taken to the bit, its head taken or fresh, and what is refused."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import initial_state, mesh_of, plan_of
from safetensors.numpy import save_file

from jaxresnet import fit as fit_module
from jaxresnet.config.files import load_config
from jaxresnet.config.schema import Config
from jaxresnet.errors import UserError
from jaxresnet.fit import fit
from jaxresnet.learning.learner import make_learner
from jaxresnet.learning.state import TrainState, Variables
from jaxresnet.plan import Plan, resolve
from jaxresnet.runs.integrity import checksum
from jaxresnet.runs.records import InitialWeights
from jaxresnet.runs.workdir import Workdir
from jaxresnet.trained.initial import load_initial, with_initial_model
from jaxresnet.trained.weights import load_weights, save_weights, to_state_dict


@pytest.fixture(scope="module")
def begun(tiny_plan: Plan) -> TrainState:
    """The state of a run before its first step."""
    return initial_state(make_learner(tiny_plan))


@pytest.fixture(scope="module")
def trained(begun: TrainState) -> Variables:
    """Weights and statistics that are all others than those."""
    return jax.tree.map(lambda leaf: leaf + 0.25, begun.variables)


@pytest.fixture
def file(tmp_path: Path, tiny_plan: Plan, trained: Variables) -> Path:
    save_weights(tmp_path / "weights.safetensors", tiny_plan, trained)
    return tmp_path / "weights.safetensors"


def with_info(plan: Plan, init: Path, **facts: Any) -> Plan:
    """The plan of a run that begins with `init`, on data with other facts."""
    return resolve(plan.config.replace({"init": str(init)}), dataclasses.replace(plan.info, **facts))


def assert_equal(found: Any, expected: Any) -> None:
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(found), jax.device_get(expected))


def test_all_of_a_network_with_the_same_classes_is_taken_and_nothing_else(
    tiny_plan: Plan, file: Path, trained: Variables, begun: TrainState
):
    initial = load_initial(with_info(tiny_plan, file), mesh_of(1))
    assert initial.source == InitialWeights(str(file), None, checksum(trained), head=True)
    assert str(initial) == f"begins with the weights of {file}: the whole network (the same 10 classes)"
    state = initial.begin(begun)
    assert_equal(state.variables, trained)
    assert state.average is None
    assert_equal(state.replace(params=begun.params, batch_stats=begun.batch_stats), begun)
    averaged = initial.begin(begun.replace(average=jax.tree.map(jnp.zeros_like, trained)))
    assert_equal(averaged.average, trained)
    # The first step takes over the arrays of the state: none may be in it twice.
    jax.jit(lambda state: state, donate_argnums=0)(averaged)
    assert_equal(initial.variables, trained)


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        ("abcde", "10 classes there, 5 here"),
        ("0123456798", "class 8 is 8 there, 9 here"),
        ("\x1b123456789", "class 0 is 0 there, \\x1b here"),
    ],
)
def test_the_head_is_fresh_for_other_classes(
    tiny_plan: Plan, file: Path, trained: Variables, begun: TrainState, names: str, reason: str
):
    """Images of another size are no hindrance."""
    plan = with_info(tiny_plan, file, class_names=tuple(names), image_shape=(16, 16, 3))
    initial = load_initial(plan, mesh_of(1))
    assert not initial.source.head
    assert initial.source.sha256 == checksum(trained)
    assert str(initial).endswith(f"all but the head, which is fresh ({reason})")
    head = {"kernel": jnp.ones((6, len(names))), "bias": jnp.ones(len(names))}
    state = initial.begin(begun.replace(params=begun.params | {"head": head}))
    assert_equal(state.params, trained["params"] | {"head": head})
    assert_equal(state.batch_stats, trained["batch_stats"])


def test_a_file_by_others_is_taken_as_the_network_of_the_run(
    tmp_path: Path, tiny_plan: Plan, trained: Variables
):
    save_file(to_state_dict(trained), tmp_path / "theirs.safetensors")
    plan = with_info(tiny_plan, tmp_path / "theirs.safetensors")
    assert with_initial_model(plan.config) == plan.config
    initial = load_initial(plan, mesh_of(1))
    assert_equal(initial.variables, trained)
    assert str(initial).endswith("the whole network (10 classes there, too; their names are not known)")
    assert initial.source.head
    # Of other classes, the head is fresh.
    fewer = with_info(tiny_plan, tmp_path / "theirs.safetensors", class_names=("cat", "dog"))
    initial = load_initial(fewer, mesh_of(1))
    assert str(initial).endswith("all but the head, which is fresh (10 classes there, 2 here)")
    body = {name: tree for name, tree in trained["params"].items() if name != "head"}
    assert_equal(initial.variables, trained | {"params": body})


@pytest.mark.parametrize("shape", [(0, 6), (10**9, 0), (10, 7), (10,)])
def test_a_head_by_others_that_is_none_is_refused_at_once(
    tmp_path: Path, tiny_plan: Plan, trained: Variables, shape: tuple[int, ...]
):
    arrays = to_state_dict(trained) | {"linear.weight": np.zeros(shape, np.float32)}
    save_file(arrays, tmp_path / "theirs.safetensors")
    with pytest.raises(UserError, match=r"linear\.weight: expected shape"):
        load_initial(with_info(tiny_plan, tmp_path / "theirs.safetensors"), mesh_of(1))


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"model.stem_kernel": 5}, "model.stem_kernel 5, there 3: leave"),
        ({"model.stem_channels": 8}, "model.stem_channels 8, there 4: leave"),
        ({"model.stage_blocks": (1, 2)}, r"model.stage_blocks \(1, 2\), there \(1, 1\): leave"),
        ({"model.stage_strides": (2, 2)}, r"model.stage_strides \(2, 2\), there \(1, 2\): leave"),
        (
            {"model.conv_bias": False, "model.stage_channels": (4, 8)},
            r"model.stage_channels \(4, 8\), there \(4, 6\); model.conv_bias False, there True: leave",
        ),
    ],
)
def test_another_network_is_refused_with_what_differs(
    tiny_config: Config, file: Path, settings: dict[str, Any], told: str
):
    config = tiny_config.replace(settings | {"init": str(file)})
    for refusing in (lambda: load_initial(plan_of(config), mesh_of(1)), lambda: with_initial_model(config)):
        with pytest.raises(UserError, match=told) as caught:
            refusing()
        assert caught.value.exit_code == 2
        assert len(str(caught.value).splitlines()) == 1


def test_images_of_other_channels_are_refused(tiny_plan: Plan, file: Path):
    grey = with_info(tiny_plan, file, image_shape=(32, 32, 1), mean=(0.5,), std=(0.5,))
    with pytest.raises(UserError, match="images of 1 channels, as digits has, found one for 3 in") as caught:
        load_initial(grey, mesh_of(1))
    assert caught.value.exit_code == 2


def test_what_was_not_given_of_the_model_is_as_the_weights_have_it(
    tmp_path: Path, tiny_config: Config, file: Path
):
    (tmp_path / "mine.toml").write_text("epochs = 3\n[model]\nstem_kernel = 3\ndropout_rate = 0.5\n")
    given = load_config(tmp_path / "mine.toml").replace({"init": str(file)})
    found = with_initial_model(given.replace({"data.name": "digits"}))
    expected = Config().replace({"epochs": 3, "data.name": "digits", "init": str(file)})
    model = {f"model.{name}": value for name, value in tiny_config.model.model_dump().items()}
    assert found == expected.replace(model | {"model.dropout_rate": 0.5})
    assert with_initial_model(Config()) == Config()


def test_of_a_run_that_has_begun_nothing_is_read_again(tmp_path: Path, tiny_config: Config):
    run, gone = Workdir(tmp_path / "run"), str(tmp_path / "gone")
    with run.open(plan_of(tiny_config, {"init": gone})):
        pass
    given = Config().replace({"init": gone, "epochs": 9})
    assert with_initial_model(given, run).model == tiny_config.model
    other = given.replace({"init": "other"})
    assert with_initial_model(other, run) == other  # refused by Workdir.check, without a look at it
    with pytest.raises(UserError, match=r"init was '\S+/gone', is 'other'"):
        run.check(plan_of(tiny_config, {"init": "other"}))


def test_a_run_that_has_no_checkpoint_yet_begins_with_the_same_weights_or_not_at_all(
    short_config: Config,
    tiny_plan: Plan,
    file: Path,
    trained: Variables,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(fit_module, "compile_steps", lambda *_: None)
    config = short_config.replace({"init": str(file)})
    with Workdir(tmp_path / "run").open(
        plan_of(config), InitialWeights(str(file), None, checksum(trained), True)
    ):
        pass  # killed here
    save_weights(file, tiny_plan, jax.tree.map(lambda leaf: leaf + 1, trained))
    with pytest.raises(
        UserError, match=r"the run began with other weights of .* name another --wor"
    ) as caught:
        fit(config, tmp_path / "run")
    assert caught.value.exit_code == 1
    assert checksum(trained)[:12] in str(caught.value)


def test_the_weights_of_such_a_run_do_not_name_where_they_began(
    tmp_path: Path, tiny_plan: Plan, trained: Variables
):
    plan = with_info(tiny_plan, Path("/home/somebody"))
    plan = plan.with_config(plan.config.replace({"freeze_stages": 2}))
    save_weights(tmp_path / "weights.safetensors", plan, trained)
    assert b"somebody" not in (tmp_path / "weights.safetensors").read_bytes()
    assert load_weights(tmp_path / "weights.safetensors")[0] == tiny_plan
