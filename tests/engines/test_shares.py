"""What a run of a sweep on Ray gets of the machines."""

import pytest

from jaxresnet.engines.shares import Share, Wish, share_of
from jaxresnet.errors import UserError

SMALL, LARGE, GPUS = {"CPU": 2.0, "memory": 1e9}, {"CPU": 64.0}, {"CPU": 32.0, "GPU": 4.0}


@pytest.mark.parametrize(
    ("wish", "nodes", "expected"),
    [
        (Wish(), [SMALL], Share(1, 0, "cpu")),  # auto must not find a GPU that Ray does not know
        (Wish(cpus=4), [SMALL, LARGE], Share(4, 0, "cpu")),
        (Wish(), [LARGE, GPUS], Share(8, 1, "auto")),
        (Wish(gpus=2), [GPUS], Share(16, 2, "auto")),
        (Wish("cuda", gpus=2, cpus=3), [GPUS], Share(3, 2, "cuda")),
        (Wish("cpu"), [GPUS], Share(1, 0, "cpu")),
        (Wish(gpus=0), [GPUS], Share(1, 0, "cpu")),
        (Wish(), [GPUS, {"CPU": 6.0, "GPU": 2.0}], Share(3, 1, "auto")),
        (Wish(), [{"CPU": 2.0, "GPU": 8.0}], Share(1, 1, "auto")),
        (Wish(), [{"GPU": 1.0}, {"CPU": 8.0, "GPU": 2.0}], Share(4, 1, "auto")),  # Ray leaves out what is 0
    ],
)
def test_a_share_is_what_was_asked_for_or_fits_the_machines(wish: Wish, nodes: list[dict], expected: Share):
    assert share_of(wish, nodes) == expected


def test_as_many_runs_fit_as_have_cores_and_gpus():
    assert [Share(3, 0, "cpu").fits(node) for node in (SMALL, LARGE, GPUS, {})] == [0, 21, 10, 0]
    assert [Share(3, 2, "auto").fits(node) for node in (SMALL, LARGE, GPUS)] == [0, 0, 2]
    assert Share(16, 1, "auto").fits(GPUS) == 2
    assert str(Share(1, 0, "cpu")) == "1 core"
    assert str(Share(4, 2, "cuda")) == "4 cores and 2 GPUs"


@pytest.mark.parametrize(
    ("wish", "message"),
    [
        (
            Wish(cpus=3),
            "expected a node with 3 cores for each run, found nodes with these cores: 2 and 0 GPUs;",
        ),
        (Wish(gpus=1), "expected a node with 1 core and 1 GPU for each run"),
        (Wish("cuda"), "--device cuda: expected a node with a GPU, Ray finds none"),
    ],
)
def test_what_no_machine_has_is_refused(wish: Wish, message: str):
    with pytest.raises(UserError, match=message) as caught:
        share_of(wish, [SMALL])
    assert caught.value.exit_code == 1


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"cpus": 0}, "--cpus-per-run: expected at least 1, found 0"),
        ({"gpus": -1}, "--gpus-per-run: expected at least 0, found -1"),
        ({"device": "cpu", "gpus": 1}, "--gpus-per-run: expected 0 with --device cpu, found 1"),
        ({"device": "cuda", "gpus": 0}, "--gpus-per-run: expected at least 1 with --device cuda, found 0"),
    ],
)
def test_wishes_that_cannot_be_meant_are_refused(values: dict, message: str):
    with pytest.raises(UserError, match=message) as caught:
        Wish(**values)
    assert caught.value.exit_code == 2
