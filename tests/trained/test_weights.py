"""Weights as PyTorch state dicts and safetensors files."""

import json
import os
import pickle
import re
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from helpers import initial_state, plan_of
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from jaxresnet.config.files import dump_config
from jaxresnet.errors import UserError
from jaxresnet.learning.learner import Learner
from jaxresnet.learning.state import Variables
from jaxresnet.plan import Plan
from jaxresnet.trained.weights import from_state_dict, load_weights, save_weights, to_state_dict


@pytest.fixture(scope="module")
def variables(tiny_learner: Learner) -> Variables:
    """Variables whose leaves are all different, vectors included."""
    variables = jax.device_get(initial_state(tiny_learner).variables)
    generator = np.random.default_rng(0)
    variables = jax.tree.map(lambda leaf: generator.normal(size=leaf.shape).astype(np.float32), variables)
    return variables | {"batch_stats": jax.tree.map(np.abs, variables["batch_stats"])}


def test_names_and_layouts_are_pytorchs(variables: Variables):
    state_dict, params = to_state_dict(variables), variables["params"]
    assert sorted(name for name in state_dict if not name.startswith("layer2")) == [
        "bn1.bias", "bn1.running_mean", "bn1.running_var", "bn1.weight", "conv1.bias", "conv1.weight",
        "layer1.0.bn1.bias", "layer1.0.bn1.running_mean", "layer1.0.bn1.running_var", "layer1.0.bn1.weight",
        "layer1.0.bn2.bias", "layer1.0.bn2.running_mean", "layer1.0.bn2.running_var", "layer1.0.bn2.weight",
        "layer1.0.conv1.bias", "layer1.0.conv1.weight", "layer1.0.conv2.bias", "layer1.0.conv2.weight",
        "linear.bias", "linear.weight",
    ]  # fmt: skip
    assert state_dict["conv1.weight"].shape == (4, 3, 3, 3)
    assert state_dict["conv1.weight"][1, 2, 0, 1] == params["stem_conv"]["kernel"][0, 1, 2, 1]
    assert state_dict["linear.weight"].shape == (10, 6)
    assert state_dict["linear.weight"][7, 5] == params["head"]["kernel"][5, 7]
    np.testing.assert_array_equal(
        state_dict["layer2.0.shortcut.0.weight"][:, :, 0, 0],
        params["stage1_block0"]["shortcut_conv"]["kernel"][0, 0].T,
    )
    np.testing.assert_array_equal(
        state_dict["layer2.0.shortcut.1.running_var"],
        variables["batch_stats"]["stage1_block0"]["shortcut_norm"]["var"],
    )


def test_a_safetensors_file_gives_back_the_same_bits(tmp_path: Path, tiny_plan: Plan, variables: Variables):
    path = tmp_path / "weights.safetensors"
    save_weights(path, tiny_plan, variables)
    plan, loaded = load_weights(path)
    assert plan == tiny_plan
    jax.tree.map(np.testing.assert_array_equal, loaded, variables)
    np.testing.assert_array_equal(load_file(path)["bn1.weight"], to_state_dict(variables)["bn1.weight"])


def test_a_file_can_be_read_by_whom_the_umask_allows(tmp_path: Path, tiny_plan: Plan, variables: Variables):
    before = os.umask(0o022)
    try:
        save_weights(tmp_path / "weights.safetensors", tiny_plan, variables)
    finally:
        os.umask(before)
    assert [path.name for path in tmp_path.iterdir()] == ["weights.safetensors"]
    assert (tmp_path / "weights.safetensors").stat().st_mode & 0o777 == 0o644


def test_a_file_by_others_needs_a_configuration(tmp_path: Path, tiny_plan: Plan, variables: Variables):
    path = tmp_path / "theirs.safetensors"
    extra = {"bn1.num_batches_tracked": np.array(3)}
    doubled = {name: array.astype(np.float64) for name, array in to_state_dict(variables).items()}
    save_file(doubled | extra, path)
    with pytest.raises(UserError, match="expected a configuration in its metadata, found none"):
        load_weights(path)
    _, loaded = load_weights(path, tiny_plan)
    jax.tree.map(np.testing.assert_array_equal, loaded, variables)
    assert {leaf.dtype for leaf in jax.tree.leaves(loaded)} == {np.dtype(np.float32)}


def test_what_does_not_fit_is_named(tiny_plan: Plan, variables: Variables):
    state_dict = to_state_dict(variables)
    state_dict["fc.weight"] = state_dict.pop("linear.weight")
    state_dict["bn1.weight"] = np.zeros(5, np.float32)
    state_dict["bn1.bias"] = np.zeros(4, np.int64)
    with pytest.raises(UserError) as caught:
        from_state_dict(tiny_plan, state_dict)
    assert str(caught.value).splitlines() == [
        "linear.weight: expected by the network, not found",
        "fc.weight: found, not expected by the network",
        "bn1.bias: expected float64 or float32 or float16 or bfloat16, found int64",
        "bn1.weight: expected shape [4], found [5]",
    ]


def test_neither_a_damaged_file_nor_a_pickle_is_read(tmp_path: Path):
    class Payload:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "executed",))

    path = tmp_path / "weights.safetensors"
    for content in (pickle.dumps(Payload()), b"", b"\x10" * 100):
        path.write_bytes(content)
        with pytest.raises(UserError, match="cannot read the weights"):
            load_weights(path)
    with pytest.raises(UserError, match="cannot read the weights"):
        load_weights(tmp_path / "none.safetensors")
    assert not (tmp_path / "executed").exists()


def test_a_files_configuration_names_no_folder_of_this_machine(
    tmp_path: Path, tiny_plan: Plan, variables: Variables
):
    plan = plan_of(tiny_plan.config, {"data.dir": "/data"})
    save_weights(tmp_path / "weights.safetensors", plan, variables)
    loaded, _ = load_weights(tmp_path / "weights.safetensors")
    assert loaded == tiny_plan


def rewrite(path: Path, **changes: str | None) -> None:
    """Change a file's metadata; None takes an entry out."""
    with safe_open(path, framework="numpy") as file:
        metadata = file.metadata() | changes
    kept = {key: value for key, value in metadata.items() if value is not None}
    save_file(load_file(path), path, metadata=kept)


def test_a_file_of_a_later_version_is_refused(tmp_path: Path, tiny_plan: Plan, variables: Variables):
    path = tmp_path / "weights.safetensors"
    save_weights(path, tiny_plan, variables)
    for found in ("3", "two"):
        rewrite(path, jaxresnet_format=found)
        refusal = rf"weights.safetensors: expected at most format 2, found '{found}': .* later version"
        with pytest.raises(UserError, match=refusal) as caught:
            load_weights(path)
        assert len(str(caught.value).splitlines()) == 1


def test_a_file_of_the_first_version_is_read(tmp_path: Path, tiny_plan: Plan, variables: Variables):
    path = tmp_path / "weights.safetensors"
    metadata = {"format": "pt", "config": dump_config(tiny_plan.config)}  # no number, no facts of the data
    save_file(to_state_dict(variables), path, metadata=metadata)
    plan, loaded = load_weights(path)
    assert plan == tiny_plan
    jax.tree.map(np.testing.assert_array_equal, loaded, variables)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"dataset": "{}"}, "dataset: expected facts about a data set, found something else (name: Field"),
        ({"dataset": "[" * 100_000}, "dataset: expected facts about a data set, found something else"),
        ({"config": "epochs = 0"}, "epochs: expected greater than or equal to 1, found 0"),
        (
            {"config": 'data.name = "mnist"', "dataset": None},
            "data.name: expected cifar10 or digits where no",
        ),
        ({"config": "batch_size = 1443"}, "batch_size: expected at most the 1442 training examples"),
    ],
)
def test_metadata_that_makes_no_plan_is_named(
    tmp_path: Path, tiny_plan: Plan, variables: Variables, changes: dict[str, str | None], problem: str
):
    path = tmp_path / "weights.safetensors"
    save_weights(path, tiny_plan, variables)
    rewrite(path, **changes)
    with pytest.raises(UserError, match=re.escape(problem)) as caught:
        load_weights(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert len(str(caught.value).splitlines()) == 1


def test_arrays_are_read_as_float32_from_bfloat16(tmp_path: Path, tiny_plan: Plan, variables: Variables):
    path = tmp_path / "weights.safetensors"
    rounded = jax.tree.map(lambda leaf: leaf.astype(jax.numpy.bfloat16), variables)
    save_weights(path, tiny_plan, rounded)
    _, loaded = load_weights(path)
    jax.tree.map(
        np.testing.assert_array_equal, loaded, jax.tree.map(lambda leaf: leaf.astype(np.float32), rounded)
    )
    assert {leaf.dtype for leaf in jax.tree.leaves(loaded)} == {np.dtype(np.float32)}


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("conv1.weight", np.nan, "conv1.weight: expected finite numbers, found 1 of 108 that are not"),
        ("linear.bias", np.inf, "linear.bias: expected finite numbers, found 1 of 10 that are not"),
        (
            "linear.bias",
            1e39,
            "linear.bias: expected finite numbers, found 1 of 10 that are not",
        ),  # of float32
        (
            "bn1.running_var",
            -1,
            "bn1.running_var: expected finite numbers of at least 0, found 1 of 4 that are not",
        ),
    ],
)
def test_a_number_that_makes_no_sense_is_named(
    tiny_plan: Plan, variables: Variables, name: str, value: float, problem: str
):
    state_dict = {key: array.astype(np.float64) for key, array in to_state_dict(variables).items()}
    state_dict[name].flat[3] = value
    with pytest.raises(UserError) as caught:
        from_state_dict(tiny_plan, state_dict)
    assert str(caught.value) == problem
    state_dict["linear.weight"].flat[:2] = np.nan
    with pytest.raises(UserError, match=r"found \d of \d+ that are not, and such in 1 more arrays$"):
        from_state_dict(tiny_plan, state_dict)


def write_header(path: Path, config: str, **arrays: tuple[str, int]) -> None:
    """A file of vectors: name to dtype and length in bytes, all of them 0."""
    header: dict[str, Any] = {"__metadata__": {"config": config}}
    end = 0
    for name, (dtype, size) in arrays.items():
        header[name] = {"dtype": dtype, "shape": [size], "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(end))


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        (
            {"model.stage_blocks": (1000,), "model.stage_channels": (8,), "model.stage_strides": (1,)},
            "expected the arrays of a network of 1,000 blocks, found 2 arrays",
        ),
        (
            {"model.stem_channels": 65_536, "model.stage_channels": (65_536, 65_536)},
            "layer2.0.conv2.weight: expected by the network, not found",
        ),
        (
            {},
            "weights.safetensors: linear.bias: expected float64 or float32 or float16 or bfloat16, found F8_E4M3",
        ),
    ],
    ids=["deep", "wide", "float8"],
)
def test_what_the_header_shows_is_told_before_anything_is_built(
    tmp_path: Path, tiny_plan: Plan, settings: dict[str, Any], problem: str
):
    path = tmp_path / "weights.safetensors"
    config = dump_config(tiny_plan.config.replace(settings))
    write_header(path, config, **{"linear.bias": ("F8_E4M3", 10), "linear.weight": ("F8_E4M3", 1)})
    began = time.monotonic()
    with pytest.raises(UserError) as caught:
        load_weights(path)
    assert time.monotonic() - began < 5
    assert problem in str(caught.value)


def test_an_absurd_depth_is_refused_and_a_pipe_is_not_waited_for(tmp_path: Path):
    path = tmp_path / "weights.safetensors"
    stages = [
        f"{key} = {[value] * 200}" for key, value in (("blocks", 1000), ("channels", 1), ("strides", 1))
    ]
    write_header(path, "[model]\n" + "\n".join(f"stage_{line}" for line in stages))
    with pytest.raises(UserError) as caught:
        load_weights(path)
    expected = f"{path}: model.stage_blocks: expected at most 1000 in all, found 200000"
    assert (str(caught.value), caught.value.exit_code) == (expected, 2)
    write_header(path, "#" * 2**21)
    with pytest.raises(
        UserError, match="expected at most 1 MiB of configuration in its metadata, found more"
    ):
        load_weights(path)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(UserError, match=f"^expected a file, found a pipe: {path}$"):
        load_weights(path)
