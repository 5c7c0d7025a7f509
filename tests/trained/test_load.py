"""Trained networks from run folders and weights files: whole, with the facts of their data, and of any version."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest
from helpers import at_step, initial_state, mesh_of, plan_of

from jaxresnet.config.schema import Config
from jaxresnet.data.sources import open_source
from jaxresnet.data.splits import Split, load_split
from jaxresnet.errors import UserError
from jaxresnet.learning.learner import make_learner
from jaxresnet.learning.state import TrainState
from jaxresnet.plan import Plan, resolve
from jaxresnet.runs.checkpoint import Checkpoints
from jaxresnet.runs.records import EpochRecord
from jaxresnet.runs.workdir import Workdir
from jaxresnet.trained import shipped
from jaxresnet.trained.evaluation import evaluate_whole, predict_split
from jaxresnet.trained.load import TrainedNetwork, load_network, load_run, load_weights_file
from jaxresnet.trained.weights import save_weights

OTHER_NAMES = tuple("klmnopqrst")


def state_at(plan: Plan, step: int = 7) -> TrainState:
    """The state before a plan's first step, but for its number."""
    return at_step(initial_state(make_learner(plan)), step)


def save_run(workdir: Path, plan: Plan) -> TrainState:
    """The folder of a run of `plan` with the checkpoints of steps 7, which is the best, and 9.

    Returns the state of step 9. At step 7 all weights are larger by 1.
    """
    state = state_at(plan, 9)
    params = jax.tree.map(lambda leaf: leaf + 1, state.params)
    with Workdir(workdir).open(plan), Checkpoints(Workdir(workdir).checkpoints) as checkpoints:
        checkpoints.save(state.replace(step=jax.numpy.int32(7), params=params), accuracy=0.5)
        checkpoints.save(state, accuracy=0.25)
    return state


def from_run(place: Path, plan: Plan) -> TrainedNetwork:
    save_run(place / "run", plan)
    return load_run(place / "run")


def from_file(place: Path, plan: Plan) -> TrainedNetwork:
    save_weights(place / "weights.safetensors", plan, state_at(plan).variables)
    return load_weights_file(place / "weights.safetensors")


@pytest.fixture(scope="module")
def other_plan(tiny_plan: Plan) -> Plan:
    """The tiny network for smaller images, in classes of other names, than its data set's name stands for."""
    info = dataclasses.replace(tiny_plan.info, image_shape=(16, 16, 3), class_names=OTHER_NAMES)
    return resolve(tiny_plan.config, info)


@pytest.mark.parametrize("load", [from_run, from_file])
def test_the_facts_of_the_data_travel_with_the_weights(
    tmp_path: Path, other_plan: Plan, load: Callable[[Path, Plan], TrainedNetwork]
):
    network = load(tmp_path, other_plan)
    assert network.plan == other_plan
    assert network.info.image_shape == (16, 16, 3)
    assert network.info.class_names == OTHER_NAMES
    images = np.zeros((2, 16, 16, 3), np.uint8)
    assert network.predict(images).shape == (2, 10)
    refusal = r"expected images \[B, 16x16x3\] as of digits, found \[2, 28, 28, 3\]"
    with pytest.raises(ValueError, match=refusal):
        network.predict(np.zeros((2, 28, 28, 3), np.uint8))
    with pytest.raises(UserError, match=r"not what the network was trained on: .* found .*32, 32, 3"):
        load_split(open_source(network.config.data), "test", expected=network.info)


@pytest.mark.parametrize("load", [from_run, from_file])
def test_images_of_another_size_are_refused(
    tmp_path: Path, tiny_plan: Plan, load: Callable[[Path, Plan], TrainedNetwork]
):
    network = load(tmp_path, tiny_plan)
    with pytest.raises(ValueError, match=r"expected images \[B, 32x32x3\] .* found \[1, 28, 28, 3\]"):
        network.predict(np.zeros((1, 28, 28, 3), np.uint8))
    with pytest.raises(TypeError, match="expected uint8 images, found float32"):
        network.predict(np.zeros((1, 32, 32, 3), np.float32))


def test_the_mean_and_std_are_those_of_the_file(tmp_path: Path, tiny_plan: Plan, digits: Split):
    """Images that are brighter and of more contrast give the same logits with a mean and std that are."""
    info = tiny_plan.info
    half = dataclasses.replace(
        info, mean=tuple(mean / 2 for mean in info.mean), std=tuple(std / 2 for std in info.std)
    )
    images = digits.images // 2 * 2  # even, so that the half is exact
    (tmp_path / "half").mkdir()
    whole, halved = (
        from_file(tmp_path, tiny_plan),
        from_file(tmp_path / "half", resolve(tiny_plan.config, half)),
    )
    np.testing.assert_allclose(
        halved.predict(images // 2),
        whole.predict(images),
        rtol=1e-4,
        atol=1e-5,
    )


def test_a_batch_of_any_size_on_any_number_of_devices_has_the_same_logits(
    tmp_path: Path, tiny_plan: Plan, digits: Split
):
    save_weights(tmp_path / "a.safetensors", tiny_plan, state_at(tiny_plan).variables)
    network = load_weights_file(tmp_path / "a.safetensors", mesh_of(4))
    expected = network.apply(network.variables, digits.images)
    for count in (0, 1, 4, 7):
        found = network.predict(digits.images[:count])
        assert (found.shape, found.dtype) == ((count, 10), np.float32)
        np.testing.assert_allclose(found, expected[:count], rtol=1e-4, atol=1e-5)
    of_jax = network.predict(jax.numpy.asarray(digits.images[:7]))
    np.testing.assert_array_equal(of_jax, network.predict(digits.images[:7]))


def test_probabilities_are_the_softmax_of_the_logits(tmp_path: Path, tiny_plan: Plan, digits: Split):
    network = from_file(tmp_path, tiny_plan)
    exponentials = np.exp(np.asarray(network.predict(digits.images[:3]), np.float64))
    expected = exponentials / exponentials.sum(1)[:, None]
    np.testing.assert_allclose(network.probabilities(digits.images[:3]), expected, rtol=1e-5)


def test_the_linen_module_takes_the_variables(tmp_path: Path, tiny_plan: Plan, digits: Split):
    network, info = from_file(tmp_path, tiny_plan), tiny_plan.info
    normalised = (digits.images[:3] / 255 - info.mean) / info.std
    logits = network.module.apply(network.variables, normalised.astype(np.float32), train=False)
    np.testing.assert_allclose(network.predict(digits.images[:3]), np.asarray(logits), rtol=1e-4, atol=1e-5)


def test_a_network_is_found_by_folder_file_or_name(
    tmp_path: Path, tiny_plan: Plan, monkeypatch: pytest.MonkeyPatch
):
    save_run(tmp_path / "run", tiny_plan)
    (tmp_path / "hub").mkdir()
    save_weights(tmp_path / "hub" / "model.safetensors", tiny_plan, state_at(tiny_plan).variables)
    monkeypatch.setattr(shipped, "_PRETRAINED", tmp_path / "hub")
    assert load_network(tmp_path / "run").step == 9
    assert load_network(str(tmp_path / "run"), "best").step == 7
    for name in (tmp_path / "hub", tmp_path / "hub" / "model.safetensors", "model"):
        assert load_network(name).checkpoint == "model.safetensors"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").rename(tmp_path / "model")  # a path wins over a shipped name
    assert load_network("model").step == 9


def test_a_network_that_is_not_there_is_told(
    tmp_path: Path, tiny_plan: Plan, monkeypatch: pytest.MonkeyPatch
):
    path = tmp_path / "weights.safetensors"
    save_weights(path, tiny_plan, state_at(tiny_plan).variables)
    with pytest.raises(
        UserError, match=r"^no network runs/x: expected the folder of a run, or a safetensors file"
    ):
        load_network("runs/x")
    monkeypatch.setattr(shipped, "_PRETRAINED", tmp_path)
    with pytest.raises(UserError, match="expected the name of a network, found an empty one"):
        load_network("")
    with pytest.raises(UserError, match=r"no network papr: .* one of the shipped networks: weights"):
        load_network("papr")
    with pytest.raises(
        UserError, match="--checkpoint: expected with the folder of a run, found with the file"
    ):
        load_network(path, "best")
    with pytest.raises(UserError, match="--average: expected with the folder of a run"):
        load_network(path, average=True)


def test_checkpoints_are_chosen_by_name(tmp_path: Path, tiny_plan: Plan):
    latest = jax.device_get(save_run(tmp_path, tiny_plan).params)
    for checkpoint, step, selected_on in (
        ("latest", 9, None),
        ("best", 7, "test"),
        ("7", 7, None),
        (9, 9, None),
    ):
        network = load_run(tmp_path, checkpoint, mesh_of(2))
        assert (network.checkpoint, network.step, network.selected_on) == (str(checkpoint), step, selected_on)
        expected = latest if step == 9 else jax.tree.map(lambda leaf: leaf + 1, latest)
        jax.tree.map(np.testing.assert_array_equal, network.variables["params"], expected)
        assert len(jax.tree.leaves(network.variables)[0].sharding.device_set) == 2
    with pytest.raises(UserError, match=r"no checkpoint 8 in .* one of the steps 7, 9"):
        load_run(tmp_path, "8")
    with pytest.raises(UserError, match=r"no checkpoint 0 in "):
        load_network(tmp_path, 0)


def test_what_is_missing_or_damaged_is_told(tmp_path: Path, tiny_plan: Plan):
    with pytest.raises(UserError, match="no run in"):
        load_run(tmp_path / "none")
    with Workdir(tmp_path / "begun").open(tiny_plan):
        pass
    with pytest.raises(UserError, match=r"no checkpoint in .* yet"):
        load_run(tmp_path / "begun")
    Workdir(tmp_path / "begun").epochs.append(EpochRecord(1, 9, 0.1, 0.5, 0.5, 1.0))
    with pytest.raises(UserError, match=r"no checkpoint in \S*$"):  # as of a folder of results
        load_run(tmp_path / "begun")
    save_run(tmp_path / "run", tiny_plan)
    (tmp_path / "run" / "checkpoints" / "9" / "meta" / "metadata").write_text("{")
    with pytest.raises(UserError, match=r"checkpoint 9 .* is damaged: .*; other checkpoints to evaluate: 7"):
        load_run(tmp_path / "run")


def test_a_run_of_the_first_version_is_loaded(tmp_path: Path, tiny_config: Config):
    """It wrote neither dataset.json nor a checkpoint's format, and four CPU devices where none were named."""
    plan = plan_of(tiny_config, {"cpu_devices": 4})
    state = save_run(tmp_path, plan)
    (tmp_path / "dataset.json").unlink()
    meta = tmp_path / "checkpoints" / "9" / "meta" / "metadata"
    content = json.loads(meta.read_text())
    del content["format"], content["checksums"]["format"]
    meta.write_text(json.dumps(content))
    network = load_run(tmp_path)
    assert (network.plan, network.config.cpu_devices, network.step) == (plan, 4, 9)
    jax.tree.map(np.testing.assert_array_equal, network.variables, jax.device_get(state.variables))


def test_weights_that_are_not_finite_are_refused(tmp_path: Path, tiny_plan: Plan):
    state = state_at(tiny_plan)
    kernel = state.params["stem_conv"]["kernel"].at[0, 0, 0, 0].set(np.nan)
    state = state.replace(params=state.params | {"stem_conv": state.params["stem_conv"] | {"kernel": kernel}})
    with Workdir(tmp_path).open(tiny_plan), Checkpoints(tmp_path / "checkpoints") as checkpoints:
        checkpoints.save(state)
    refusal = r"checkpoint 7 in \S+: conv1.weight: expected finite numbers, found 1 of 108 that are not$"
    with pytest.raises(UserError, match=refusal):
        load_run(tmp_path)


def test_logits_that_are_not_finite_are_an_error(tiny_plan: Plan, digits: Split):
    learner, mesh = make_learner(tiny_plan), mesh_of(1)
    params = state_at(tiny_plan).params
    head = {name: array + 3e38 for name, array in params["head"].items()}  # finite, but not their sums
    variables = state_at(tiny_plan).variables | {"params": params | {"head": head}}
    for use in (evaluate_whole, predict_split):
        with pytest.raises(
            UserError, match="the evaluation gives numbers that are not finite: expected other weights"
        ):
            use(learner, variables, digits, 8, mesh)
