"""Where a network comes from and how accurate it is, as far as its run or its file tells."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxresnet.runs.files import parse_record
from jaxresnet.runs.records import Count, Fraction, read_evaluation
from jaxresnet.runs.workdir import Workdir
from jaxresnet.trained.load import TrainedNetwork
from jaxresnet.trained.shipped import find_network
from jaxresnet.trained.weights import has_half, read_metadata


@dataclass(frozen=True)
class Origin:
    """The origin of a network, which travels with it. What is not known is None.

    `checkpoint`, `step` and `selected_on` are as in TrainedNetwork, and `average` says that the weights are the average
    that the run kept. `accuracy` (a fraction) was measured on the `examples` of `split`; `half` says that kernels were
    rounded to float16 since. `version` and `commit` are of the jaxresnet that trained it, of all if it was started with
    several; `dirty` says that files differed from the commit. `initial` is the name of the run or file with whose
    weights the training began; None if they were random. `frozen_stages` is the number of stages that stayed as they
    were, with the stem.
    """

    checkpoint: str | None = None
    step: Count | None = None
    selected_on: str | None = None
    average: bool = False
    split: str | None = None
    accuracy: Fraction | None = None
    examples: Count | None = None
    per_class_accuracy: dict[str, Fraction | None] | None = None
    version: str | None = None
    commit: str | None = None
    dirty: bool | None = None
    initial: str | None = None
    frozen_stages: Count | None = None
    half: bool = False

    @property
    def known(self) -> bool:
        """Whether a run of jaxresnet is its origin; that of a file from another program is not known."""
        return self.step is not None or self.version is not None


def find_origin(name: Path | str, network: TrainedNetwork, *, average: bool = False) -> Origin:
    """The origin of the network that was loaded from what `name` means (`load_network`).

    Raises UserError if a record of its run, or of its file, cannot be read.
    """
    path = find_network(name)
    if path.is_dir():
        return _of_run(Workdir(path), network, average)
    metadata, origin = read_metadata(path), Origin()
    if "origin" in metadata:
        origin = parse_record(Origin, metadata["origin"], f"{path}: origin")
    return dataclasses.replace(origin, half=origin.half or has_half(path))


def _of_run(folder: Workdir, network: TrainedNetwork, average: bool) -> Origin:
    origin = Origin(network.checkpoint, network.step, network.selected_on, average)
    if initial := folder.initial_weights():
        origin = dataclasses.replace(
            origin,
            initial=Path(initial.source).name,  # its folder is of this machine only
            frozen_stages=network.config.freeze_stages or None,
        )
    starts = folder.starts.read()
    checkouts = [start.git or {} for start in starts]
    states = {checkout.get("dirty") for checkout in checkouts}
    origin = dataclasses.replace(
        origin,
        version=_all_of([start.versions.get("jaxresnet") for start in starts]),
        commit=_all_of([checkout.get("commit") for checkout in checkouts]),
        dirty=True if True in states else False if states == {False} else None,
    )
    return _with_accuracy(origin, folder, network)


def _all_of(found: Sequence[Any]) -> str | None:
    """The different ones, as text; None if one is not known, or there are none."""
    return None if None in found else " and ".join(map(str, dict.fromkeys(found))) or None


def _with_accuracy(origin: Origin, folder: Workdir, network: TrainedNetwork) -> Origin:
    """The origin with the accuracy of its step: that of an evaluation, or else that of the epoch that ended there."""
    for checkpoint in dict.fromkeys((network.checkpoint, "latest", "best", str(network.step))):
        record = read_evaluation(folder.evaluation_path(checkpoint, average=origin.average))
        # The file may be of an earlier step: a run that goes on writes it only at its end.
        if record and (record.step, record.average) == (network.step, origin.average):
            return dataclasses.replace(
                origin,
                split=record.split,
                accuracy=record.accuracy,
                examples=record.examples,
                per_class_accuracy=record.per_class_accuracy,
            )
    for epoch in folder.epochs.read():
        for split in ("test", "validation"):
            accuracy = epoch.accuracy(f"{split}_average" if origin.average else split)
            if epoch.step == network.step and accuracy is not None:
                return dataclasses.replace(origin, split=split, accuracy=accuracy)
    return origin
