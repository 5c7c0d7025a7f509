"""What each run of a sweep on Ray gets of the machines."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from jaxresnet.errors import UserError


@dataclass(frozen=True)
class Wish:
    """What the user asked of Ray. None stands for what was not said.

    `address` is that of a cluster, without which Ray runs on this machine. `cpus` are a run's cores and `gpus` its
    GPUs. `device` is that of the runs, as for jaxresnet.train. Raises UserError (exit code 2) if they contradict.
    """

    device: str = "auto"
    address: str | None = None
    cpus: int | None = None
    gpus: int | None = None

    def __post_init__(self) -> None:
        for flag, number, least in (("--cpus-per-run", self.cpus, 1), ("--gpus-per-run", self.gpus, 0)):
            if number is not None and number < least:
                raise UserError(f"{flag}: expected at least {least}, found {number}", 2)
        if self.device == "cpu" and self.gpus:
            raise UserError(f"--gpus-per-run: expected 0 with --device cpu, found {self.gpus}", 2)
        if self.device == "cuda" and self.gpus == 0:
            raise UserError("--gpus-per-run: expected at least 1 with --device cuda, found 0", 2)


@dataclass(frozen=True)
class Share:
    """The cores and GPUs of one run, and the device it is told to train on."""

    cpus: int
    gpus: int
    device: str

    def fits(self, node: Mapping[str, float]) -> int:
        """How many such runs a node of these resources, as Ray names them, trains at a time."""
        by_cpus = int(node.get("CPU", 0) // self.cpus)
        return min(by_cpus, int(node.get("GPU", 0) // self.gpus)) if self.gpus else by_cpus

    def __str__(self) -> str:
        cores = f"{self.cpus} core{'s' * (self.cpus > 1)}"
        return f"{cores} and {self.gpus} GPU{'s' * (self.gpus > 1)}" if self.gpus else cores


def share_of(wish: Wish, nodes: Sequence[Mapping[str, float]]) -> Share:
    """The share of each run on nodes of these resources, as Ray names them.

    Unless the user says otherwise, a run gets one GPU where there is any. A run on GPUs gets its part of the cores of
    a node, the least of all nodes, and a run on a CPU gets one core, with which the cores compute most in all. Raises
    UserError if no node has so much.
    """
    gpus, cpus = wish.gpus, wish.cpus
    if gpus is None:
        gpus = int(wish.device != "cpu" and any(node.get("GPU", 0) >= 1 for node in nodes))
    if wish.device == "cuda" and not gpus:
        raise UserError("--device cuda: expected a node with a GPU, Ray finds none; use --device cpu")
    if cpus is None:
        able = [node for node in nodes if gpus and node.get("GPU", 0) >= gpus and node.get("CPU", 0) >= 1]
        parts = [node["CPU"] * gpus // node["GPU"] for node in able]
        cpus = max(1, int(min(parts, default=1)))
    # Without a GPU of its own a run must not take one that JAX finds: every run would.
    share = Share(cpus, gpus, wish.device if gpus else "cpu")
    if not any(map(share.fits, nodes)):
        found = "; ".join(f"{node.get('CPU', 0):g} and {node.get('GPU', 0):g} GPUs" for node in nodes)
        raise UserError(
            f"expected a node with {share} for each run, found nodes with these cores: {found or 'none'}; "
            "change --cpus-per-run or --gpus-per-run"
        )
    return share
