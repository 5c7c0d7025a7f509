"""What `evaluate` tells and writes of checkpoints and files, without the evaluation itself."""

import dataclasses
import json
from pathlib import Path

from helpers import initial_state

from jaxresnet.evaluate import as_text, later_step, load_chosen, make_parser
from jaxresnet.learning.learner import Learner
from jaxresnet.runs.records import EvaluationRecord, write_evaluation
from jaxresnet.trained.weights import save_weights

RECORD = EvaluationRecord("latest", 8, "test", None, 4, 0.5, 0.5, {"a": 0, "b": 1}, [[0, 2], [0, 2]])


def test_the_result_of_a_later_step_is_kept(tmp_path: Path):
    path = tmp_path / "evaluation.json"
    assert later_step(path, RECORD) == ""
    for step, reason in ((None, ""), (7, ""), (8, ""), (9_000, "it holds step 9,000, which is later")):
        write_evaluation(path, dataclasses.replace(RECORD, step=step))
        assert later_step(path, RECORD) == reason
    path.write_text("damaged")
    assert later_step(path, RECORD) == ""


def test_a_file_tells_on_which_split_it_was_chosen(tmp_path: Path, tiny_learner: Learner):
    for origin, selected_on in ({}, None), ({"selected_on": "test"}, "test"):
        path = tmp_path / "weights.safetensors"
        notes = {"origin": json.dumps(origin)}
        save_weights(path, tiny_learner.plan, initial_state(tiny_learner).variables, notes=notes)
        network, output = load_chosen(make_parser().parse(["--weights", str(path)]), None)
        assert (network.selected_on, network.step, output) == (selected_on, None, None)


def test_how_a_checkpoint_was_chosen_is_printed():
    def first_line(**known: str | int | None) -> str:
        return as_text(dataclasses.replace(RECORD, **known)).splitlines()[0]

    assert first_line() == "checkpoint latest (step 8)"
    assert first_line(selected_on="test") == "checkpoint latest (step 8, chosen on the test split)"
    assert first_line(step=None, selected_on="test") == "checkpoint latest (chosen on the test split)"
    assert first_line(step=None) == "checkpoint latest"
