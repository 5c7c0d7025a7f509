"""What the page tells: the same numbers as everywhere else, and nothing that is not known."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from helpers import initial_state, mesh_of
from PIL import Image

from jaxresnet.data.pictures import read_picture
from jaxresnet.data.sources import cifar10, open_source
from jaxresnet.data.splits import load_split
from jaxresnet.errors import UserError
from jaxresnet.learning.learner import Learner
from jaxresnet.network.describe import describe
from jaxresnet.plan import Plan, resolve
from jaxresnet.trained.load import TrainedNetwork, load_run
from jaxresnet.trained.weights import save_weights
from jaxresnet.web import answers
from jaxresnet.web.answers import answer, enlarged, facts_of, find_examples, known_evaluation, network_name


@pytest.fixture(scope="module")
def network(finished: Path) -> TrainedNetwork:
    return load_run(finished, "latest", mesh_of(1))


def test_an_answer_has_the_probabilities_of_the_picture_as_it_is_read(
    tmp_path: Path, network: TrainedNetwork
):
    pixels = np.random.default_rng(0).integers(0, 256, (50, 90, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "wide.png")
    answers = {}
    for fit in ("crop", "squash"):
        found = answer(network, tmp_path / "wide.png", fit)
        image = read_picture(tmp_path / "wide.png", (32, 32, 3), fit)
        assert list(found.probabilities) == list("0123456789")
        expected = np.asarray(network.probabilities(image[None]))[0]
        np.testing.assert_array_equal(np.array(list(found.probabilities.values()), np.float32), expected)
        assert found.seen.shape == (256, 256, 3)
        np.testing.assert_array_equal(found.seen[::8, ::8], image)
        np.testing.assert_array_equal(found.seen[7::8, 7::8], image)
        answers[fit] = found.probabilities
    assert answers["crop"] != answers["squash"]


def test_grey_images_are_shown_without_an_axis_of_channels():
    image = np.arange(200 * 100, dtype=np.uint8).reshape(200, 100, 1)
    assert enlarged(image).shape == (600, 300)
    assert enlarged(image.repeat(3, axis=2)).shape == (600, 300, 3)
    assert enlarged(np.zeros((300, 400, 3), np.uint8)).shape == (300, 400, 3)


def test_the_examples_are_the_first_of_each_class(network: TrainedNetwork, monkeypatch: pytest.MonkeyPatch):
    split = load_split(open_source(network.config.data), "test")
    examples = find_examples(network)
    assert [example.true_class for example in examples] == list("0123456789")
    for label, example in enumerate(examples):
        np.testing.assert_array_equal(example.image, split.images[list(split.labels).index(label)])
    monkeypatch.setattr(answers, "MOST_EXAMPLES", 3)
    assert [example.true_class for example in find_examples(network)] == ["0", "1", "2"]


def test_nothing_is_downloaded_for_examples(
    tmp_path: Path, tiny_plan: Plan, tiny_learner: Learner, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(cifar10.Cifar10, "read", lambda *_: pytest.fail("the data set was read"))
    plan = resolve(tiny_plan.config.replace({"data.name": "cifar10"}), cifar10.INFO)
    network = TrainedNetwork(plan, initial_state(tiny_learner).variables, mesh_of(1), "latest", 0, None)
    with pytest.raises(UserError, match=r"^cifar10 is not on this machine: --data.dir or TFDS_DATA_DIR may"):
        find_examples(network, str(tmp_path))
    (tmp_path / "cifar10" / "3.0.2").mkdir(parents=True)
    (tmp_path / "cifar10" / "3.0.2" / "dataset_info.json").touch()
    with pytest.raises(pytest.fail.Exception, match="was read"):
        find_examples(network, str(tmp_path))


def test_an_accuracy_is_told_only_of_the_weights_that_it_was_measured_with(
    finished: Path, tmp_path: Path, network: TrainedNetwork
):
    record = known_evaluation(finished, network, average=False)
    assert record
    assert (record.step, record.examples) == (network.step, 355)
    assert known_evaluation(finished, network, average=True) is None
    assert known_evaluation(finished, dataclasses.replace(network, step=12), average=False) is None
    save_weights(tmp_path / "a.safetensors", network.plan, network.variables)
    assert known_evaluation(tmp_path / "a.safetensors", network, average=False) is None
    assert network_name(tmp_path / "a.safetensors") == "a"
    assert network_name(f"{finished}/") == "run"


def test_the_facts_of_a_network(finished: Path, network: TrainedNetwork):
    record = known_evaluation(finished, network, average=False)
    assert record
    record = dataclasses.replace(record, accuracy=0.9126, examples=10_000)
    parameters = sum(layer.parameters for layer in describe(network.plan))
    facts = [f"{parameters:,} parameters", "10 classes of digits", "sees 32x32 pixels"]
    assert facts_of(network, None) == facts
    told = "test accuracy 91.26% (95 % interval 90.69 to 91.80 %; chosen on the test split)"
    # The best step may be the last one, whose record was not made of a chosen checkpoint.
    chosen = dataclasses.replace(network, selected_on="test")
    assert facts_of(chosen, record) == [told, *facts]
    assert facts_of(network, record) == [told.replace("; chosen on the test split", ""), *facts]
