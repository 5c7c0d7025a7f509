"""Several processes of one run: finding each other, agreeing, and the end of one."""

import json
import re
import socket
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import jax
import numpy as np
import pytest
from helpers import endings, initial_state, mesh_of, processes

from jaxresnet.data.splits import Split
from jaxresnet.errors import UserError
from jaxresnet.evaluate import require_same_network
from jaxresnet.learning.learner import Learner
from jaxresnet.machine.hosts import joined
from jaxresnet.machine.hosts.joined import Joined
from jaxresnet.machine.hosts.launch import PEER_TIMEOUT, Launch, read_launch
from jaxresnet.machine.hosts.peers import SAVE, Peers
from jaxresnet.machine.signals import Background
from jaxresnet.runs.unwritten import check_same_place
from jaxresnet.trained.load import TrainedNetwork

FLAGS = {"distributed": "yes"}


@pytest.mark.parametrize(
    ("flags", "environ", "expected"),
    [
        ({}, {"JAX_NUM_PROCESSES": "2"}, None),
        (FLAGS, {}, Launch(None, None, None, PEER_TIMEOUT)),
        (
            FLAGS | {"coordinator": "a:1", "processes": "3", "process_id": "2", "peer_timeout": "30"},
            {},
            Launch("a:1", 3, 2, 30),
        ),
        (
            FLAGS | {"process_id": "0"},
            {"JAX_COORDINATOR_ADDRESS": "[::1]:9", "JAX_NUM_PROCESSES": "4", "JAX_PROCESS_ID": "3"},
            Launch("[::1]:9", 4, 0, PEER_TIMEOUT),
        ),
    ],
)
def test_flags_come_before_variables(flags: dict[str, str], environ: dict[str, str], expected: Launch | None):
    assert read_launch(flags, environ) == expected


@pytest.mark.parametrize(
    ("flags", "environ", "message"),
    [
        ({"processes": "2"}, {}, "--processes: expected with --distributed"),
        (FLAGS | {"coordinator": "host"}, {}, "--coordinator: expected HOST:PORT, found host"),
        (FLAGS | {"coordinator": "host:70000"}, {}, "--coordinator: expected HOST:PORT, found host:70000"),
        (
            FLAGS,
            {"JAX_NUM_PROCESSES": "two"},
            "JAX_NUM_PROCESSES: expected a whole number, at least 1, found two",
        ),
        (
            FLAGS | {"processes": "2"},
            {"JAX_PROCESS_ID": "2"},
            "JAX_PROCESS_ID: expected 0 to 1 with 2 processes, found 2",
        ),
    ],
)
def test_a_wrong_launch_is_refused(flags: dict[str, str], environ: dict[str, str], message: str):
    with pytest.raises(UserError) as caught:
        read_launch(flags, environ)
    assert (str(caught.value), caught.value.exit_code) == (message, 2)


def test_a_process_that_is_alone_agrees_with_itself(tmp_path: Path):
    with Peers() as peers:
        assert (peers.index, peers.count, peers.first) == (0, 1, True)
        assert [peers.agreed(wish) for wish in (0, SAVE, 143, 0)] == [0, SAVE, 143, 0]
        assert peers.told({"a": 1}) == {"a": 1}
        assert peers.spread("state", "like") == "state"
        peers.require_same({"seed": 1})
        peers.require_shared(tmp_path)
    assert not list(tmp_path.iterdir())


class Store:
    """JAX's key-value store, for processes that are threads here. A barrier waits for ever."""

    def __init__(self) -> None:
        self.values: dict[str, str] = {}
        self.changed = threading.Condition()

    def key_value_set(self, key: str, value: str) -> None:
        with self.changed:
            self.values[key] = value
            self.changed.notify_all()

    def blocking_key_value_get(self, key: str, milliseconds: int) -> str:
        with self.changed:
            assert self.changed.wait_for(lambda: key in self.values, 10)
            return self.values[key]

    def wait_at_barrier(self, name: str, milliseconds: int) -> None:
        threading.Event().wait()


@pytest.fixture
def two(monkeypatch: pytest.MonkeyPatch) -> list[Joined]:
    """Two processes that have joined, without signs of life."""
    monkeypatch.setattr(joined, "Presence", Mock())
    store = Store()
    return [Joined(store, index, 2, 60) for index in range(2)]


def refused_second(two: Sequence[Joined], call: Callable[[Joined], object]) -> UserError:
    """What the second process raises when both call a function with themselves; the first one waits for it."""
    Background(lambda: call(two[0]))
    with pytest.raises(UserError) as caught:
        call(two[1])
    return caught.value


def test_what_is_not_the_same_in_two_processes_is_told(two: list[Joined]):
    error = refused_second(two, lambda peers: peers.require_same({"a": (1, 2), "b": peers.index}, 2))
    assert str(error) == "expected the same in every process as in process 0: b is 1 here and 0 there"
    assert error.exit_code == 2


def test_a_folder_that_is_not_shared_is_told(
    two: list[Joined], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(joined, "PROBE_SECONDS", 0.3)
    folders = [tmp_path / "first", tmp_path / "second"]
    for folder in folders:
        folder.mkdir()
    error = refused_second(two, lambda peers: peers.require_shared(folders[peers.index]))
    host = socket.gethostname()
    assert str(error) == (
        f"{folders[1]} on {host} is not the folder of process 0, {folders[0]} on {host}: expected a --workdir on a "
        "file system that all computers share"
    )


def test_other_images_in_another_process_are_told(two: list[Joined], tmp_path: Path):
    images, labels = np.zeros((2, 4, 4, 3), np.uint8), np.zeros(2, np.int32)

    def call(peers: Joined) -> None:
        own = images.copy()
        own[1, 3, 3, 2] = peers.index
        check_same_place(peers, {"train": Split(images, labels), "test": Split(own, labels)}, tmp_path)

    message = str(refused_second(two, call))
    assert re.search(r"process 0: the test split's SHA-256 is '\w{64}' here and '\w{64}' there$", message)


def test_another_network_in_another_process_is_told(two: list[Joined], tiny_learner: Learner):
    plan, split = tiny_learner.plan, Split(np.zeros((2, 4, 4, 3), np.uint8), np.zeros(2, np.int32))
    variables = initial_state(tiny_learner).variables

    def call(peers: Joined) -> None:
        own = jax.tree.map(lambda leaf: leaf + peers.index, variables)
        network = TrainedNetwork(plan, own, mesh_of(1), "latest", 7 + peers.index, None)
        require_same_network(peers, network, split)

    message = str(refused_second(two, call))
    assert re.search(r"the network's step is 8 here and 7 there; its weights' SHA-256 is '\w+' here", message)


def test_another_number_of_devices_in_another_process_is_told(two: list[Joined]):
    owners = [SimpleNamespace(process_index=index) for index in (0, 0, 1)]
    mesh: Any = SimpleNamespace(devices=np.array(owners))
    with pytest.raises(UserError, match=r"same number of devices in every process, found 2, 1$"):
        two[0].meet(mesh)


PROGRAM = """
import argparse, json, os, signal, sys, time
from pathlib import Path
from jaxresnet.machine.workarounds import own_process
own_process()
import jax, numpy as np
jax.config.update("jax_num_cpu_devices", 1)
from jaxresnet.config.flags import add_distributed_arguments, ArgumentParser
from jaxresnet.errors import run_command, tell
from jaxresnet.machine.devices import local_mesh, own_rows, replicated
from jaxresnet.machine.hosts import find_peers
from jaxresnet.machine.hosts.launch import read_launch

def main(argv):
    parser = ArgumentParser()
    parser.add_argument("folder", type=Path)
    add_distributed_arguments(parser)
    args = parser.parse(argv)
    with find_peers(read_launch(vars(args))) as peers:
        mesh = local_mesh(jax.devices())
        peers.meet(mesh)
        said = {"told": peers.told(peers.index + 7)}
        rows = own_rows(mesh, 12)
        said["rows"] = [rows.start, rows.stop]
        file = args.folder / "turn"
        said["turn"] = peers.in_turn(lambda: file.write_text("first") if peers.first else file.read_text())
        peers.require_shared(args.folder)
        like = {"a": (3, np.float32), "b": ((), np.int32), "c": (5, bool)}
        like = {k: jax.ShapeDtypeStruct(np.zeros(s).shape, d, sharding=replicated(mesh)) for k, (s, d) in like.items()}
        tree = {"a": np.array([-0.0, np.nan, 1], np.float32), "b": np.int32(-3), "c": np.arange(5) > 2}
        state = peers.spread(tree if peers.first else None, like)
        said["spread"] = {k: np.asarray(v).reshape(-1).view(np.uint8).tolist() for k, v in state.items()}
        saved, said["agreed"] = False, []
        for call in range(9):
            wish = 143 if peers.index == 1 and call >= 4 else 1 if peers.index == 2 and not saved else 0
            said["agreed"].append(heard := peers.agreed(wish))
            saved = saved or heard == 1
        (args.folder / str(peers.index)).write_text(json.dumps(said))
        print("this is said by process 0 alone")
        tell("all is well")
        os.write(1, b"a library\\n[Gloo] Rank 0 is connected\\n5 peer ranks. Expected\\n5\\n12 is connected to 5\\n\\n")
        peers.barrier()
        if peers.index == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        while True:
            peers.agreed(0)

run_command(main)
"""


def test_three_processes_agree_and_two_tell_of_the_third_that_is_killed(tmp_path: Path):
    with processes(3, "-c", PROGRAM, tmp_path) as started:
        (code, out, err), other, killed = endings(started)
    said = [json.loads((tmp_path / str(index)).read_text()) for index in range(3)]
    assert [each["told"] for each in said] == [7, 7, 7]
    assert [each["rows"] for each in said] == [[0, 4], [4, 8], [8, 12]]
    assert [each["turn"] for each in said] == [5, "first", "first"]
    expected = {
        "a": np.array([-0.0, np.nan, 1], np.float32),
        "b": np.array([-3], np.int32),
        "c": np.arange(5) > 2,
    }
    for each in said:
        assert each["spread"] == {key: value.view(np.uint8).tolist() for key, value in expected.items()}
        # The save that process 2 wishes is heard once, two calls later; then the stop of process 1.
        assert each["agreed"] == [0, 0, 1, 0, 0, 0, 143, 0, 0]
    assert not (tmp_path / "shared.probe").exists()
    assert (code, out) == (1, "this is said by process 0 alone\n")
    *before, last = err.splitlines()
    assert sorted(before) == ["a library", "all is well"]
    assert last.startswith("error: process 2 of 3 was lost: it was killed")
    assert "run the same command again" in last
    assert other[0] == 1
    assert other[1] == ""
    assert re.fullmatch(
        r"(process 1: (all is well|a library)\n){2}process 1: error: process [02] of 3 was lost: .*\n",
        other[2],
    )
    assert killed[0] == -9


def test_a_process_whose_peers_do_not_come_says_so():
    with processes(2, "-c", PROGRAM, ".", timeout=5) as (first, second):
        second.kill()
        code, _, err = endings([first])[0]
    assert code == 1
    assert re.fullmatch(
        r"error: waited 5 s for all processes to come to process 0 at 127.0.0.1:\d+ "
        r"\(this is process 0 of 2\): .*\n",
        err,
    )
