"""Where a network comes from and how accurate it is, as far as its run or its file tells."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from jaxresnet.runs.files import parse_record
from jaxresnet.runs.records import Count, Fraction, read_evaluation
from jaxresnet.runs.workdir import Workdir
from jaxresnet.trained.load import TrainedNetwork
from jaxresnet.trained.shipped import find_network
from jaxresnet.trained.weights import read_metadata


@dataclass(frozen=True)
class Origin:
    """The origin of a network, which travels with it. What is not known is None.

    `checkpoint`, `step` and `selected_on` are as in TrainedNetwork, and `average` says that the weights are the average
    that the run kept. `accuracy` (a fraction) was measured on the `examples` of `split`. `version` and `commit` are of
    the jaxresnet that trained it; `dirty` says that files differed from the commit. `initial` is the name of the run or
    file with whose weights the training began; None if they were random.
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


def find_origin(name: Path | str, network: TrainedNetwork, *, average: bool = False) -> Origin:
    """The origin of the network that was loaded from what `name` means (`load_network`).

    Raises UserError if a record of its run, or of its file, cannot be read.
    """
    path = find_network(name)
    if path.is_dir():
        return _of_run(Workdir(path), network, average)
    metadata = read_metadata(path)
    if "origin" in metadata:
        return parse_record(Origin, metadata["origin"], f"{path}: origin")
    return Origin()


def _of_run(folder: Workdir, network: TrainedNetwork, average: bool) -> Origin:
    origin = Origin(network.checkpoint, network.step, network.selected_on, average)
    if initial := folder.initial_weights():
        origin = dataclasses.replace(
            origin, initial=Path(initial.source).name
        )  # its folder is of this machine only
    if starts := folder.starts.read():
        git = starts[-1].git or {}
        commit, dirty = git.get("commit"), git.get("dirty")
        origin = dataclasses.replace(
            origin,
            version=starts[-1].versions.get("jaxresnet"),
            commit=commit if isinstance(commit, str) else None,
            dirty=dirty if isinstance(dirty, bool) else None,
        )
    return _with_accuracy(origin, folder, network)


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
