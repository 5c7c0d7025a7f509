"""CIFAR-10 in its original archive, or in a file of NumPy arrays: read without TensorFlow."""

import hashlib
import os
import tarfile
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Literal

import numpy as np

from jaxresnet.data.sources.reading import digest
from jaxresnet.data.splits import Split
from jaxresnet.disk import open_file
from jaxresnet.errors import UserError

PLACES = (
    "cifar-10-batches-bin",  # the unpacked archive
    "cifar-10-binary.tar.gz",
    "cifar10.npz",  # x_train, y_train, x_test, y_test, as Keras names them
    "downloads/cifar10/*cifar-10-binary*.tar.gz",  # what tensorflow-datasets keeps of its download
    "downloads/*cifar-10-binary*.tar.gz",
)
"""Where CIFAR-10 can be in the folder of the data sets besides the one that tensorflow-datasets prepares."""

PARTS = {"train": [f"data_batch_{number}.bin" for number in range(1, 6)], "test": ["test_batch.bin"]}
"""The archive's files of each split."""

RECORD = 1 + 3 * 32 * 32
"""Bytes of an example in such a file: its label, and 32 x 32 red values, green ones and blue ones."""

PART_EXAMPLES = 10_000
"""Examples in each of the files."""

_DAMAGE = (
    OSError,
    EOFError,
    ValueError,
    KeyError,
    MemoryError,
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
)
"""What reading a damaged file raises."""

DIGESTS = {
    "train": "56b1cf476c9d200a3047b42e1b07eb1833d0591926dc9c01c35d494da7e7b601",
    "test": "3c665e6f8cf2d02ddcc0935039cf19ae3263a604740ba999b748c788b42261b3",
}
"""The `digest` of each split in the order of tensorflow-datasets."""


def find_archive(root: Path) -> Path | None:
    """The first of PLACES that is in the folder `root`; None if there is none."""
    return next((found for place in PLACES for found in sorted(root.glob(place))), None)


def read_archive(path: Path, split: Literal["train", "test"]) -> Split:
    """A split of CIFAR-10 from what `find_archive` found, in the order in which tensorflow-datasets has it.

    So it makes no difference to a run which of the two is read. Raises UserError if the file is damaged or has other
    content or another order.
    """
    try:
        if path.suffix == ".npz":
            images, labels = _from_arrays(path, split)
        elif path.is_dir():
            images, labels = _from_parts({name: _part(path / name) for name in PARTS[split]}, split)
        else:
            images, labels = _from_parts(_unpack(path, split), split)
    except _DAMAGE as error:
        raise UserError(f"cannot read CIFAR-10 from {path}: {error}; mend or remove it") from None
    order = tfds_order(split, len(labels))
    found = Split(images[order], labels[order])
    if digest(found) != DIGESTS[split]:
        raise UserError(
            f"{path} does not hold the {split} split of CIFAR-10: expected the images and labels of the original "
            "archive in their order, found others; mend or remove it"
        )
    return found


def tfds_order(split: str, examples: int) -> np.ndarray:
    """The positions in the original archive of the examples as tensorflow-datasets orders them, int64 [N].

    It sorts by the MD5 sum of the split's name followed by the key, which is the position for CIFAR-10
    (tensorflow_datasets.core.hashing, core.shuffle and image_classification.cifar, 4.9). Its names of examples, which
    begin with "train_16399", confirm it.

    >>> tfds_order("train", 50_000)[:3]
    array([16399,  1680, 47917])
    """
    sums = [hashlib.md5(f"{split}{key}".encode(), usedforsecurity=False).digest() for key in range(examples)]
    return np.array(sorted(range(examples), key=sums.__getitem__))


def _from_parts(parts: Mapping[str, bytes], split: str) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels from the content of the archive's files."""
    expected = PART_EXAMPLES * RECORD
    for name in PARTS[split]:
        if (found := len(parts.get(name, b""))) != expected:
            raise ValueError(f"expected {name} with {expected:,} bytes, found {found:,}")
    records = np.frombuffer(b"".join(parts[name] for name in PARTS[split]), np.uint8).reshape(-1, RECORD)
    return records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), records[:, 0].astype(np.int32)


def _open(path: Path) -> IO[bytes]:
    return os.fdopen(open_file(path, os.O_RDONLY, follow=True), "rb")


def _part(path: Path) -> bytes:
    with _open(path) as file:
        return file.read(PART_EXAMPLES * RECORD + 1)


def _unpack(path: Path, split: str) -> dict[str, bytes]:
    """The files of a split in the archive. Nothing is written."""
    parts = {}
    with _open(path) as file, tarfile.open(fileobj=file, mode="r|gz") as archive:
        for member in archive:
            name = member.name.rpartition("/")[2]
            content = archive.extractfile(member) if name in PARTS[split] else None
            if content:
                parts[name] = content.read(PART_EXAMPLES * RECORD + 1)
            if len(parts) == len(PARTS[split]):
                break
    return parts


def _from_arrays(path: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels from a file of NumPy arrays."""
    count = PART_EXAMPLES * len(PARTS[split])
    with _open(path) as file, np.load(file, allow_pickle=False) as arrays:
        images, labels = arrays[f"x_{split}"], arrays[f"y_{split}"].reshape(-1)
    if (images.shape, labels.shape) != ((count, 32, 32, 3), (count,)) or images.dtype != np.uint8:
        raise ValueError(
            f"expected x_{split} uint8 {(count, 32, 32, 3)} and y_{split} of {count:,} labels, found {images.dtype} "
            f"{images.shape} and {labels.size:,} labels"
        )
    return images, labels.astype(np.int32)
