"""CIFAR-10 from its original archive: the same examples in the same order as from tensorflow-datasets."""

import io
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxresnet.config.schema import DataConfig
from jaxresnet.data.sources import archive, open_source
from jaxresnet.data.sources.archive import DIGESTS, find_archive, read_archive, tfds_order
from jaxresnet.data.sources.reading import digest
from jaxresnet.data.splits import Split
from jaxresnet.errors import UserError

PREPARED = Path(os.environ.get("TFDS_DATA_DIR") or "/nonexistent")

RANDOM = np.random.default_rng(0)
RECORDS = RANDOM.integers(0, 256, (50, 3073), np.uint8)
RECORDS[:, 0] %= 10
IMAGES = RECORDS[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
EXPECTED = Split(IMAGES[tfds_order("test", 50)], RECORDS[tfds_order("test", 50), 0].astype(np.int32))
"""A test split of noise, in the format of the archive, and as it is read."""


@pytest.fixture(autouse=True)
def of_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the split of noise be that of the archive."""
    monkeypatch.setattr(archive, "PART_EXAMPLES", 50)
    monkeypatch.setitem(archive.DIGESTS, "test", digest(EXPECTED))


def unpacked(root: Path, content: bytes) -> Path:
    (root / "cifar-10-batches-bin").mkdir()
    (root / "cifar-10-batches-bin" / "test_batch.bin").write_bytes(content)
    return root / "cifar-10-batches-bin"


def packed(root: Path, content: bytes) -> Path:
    path = root / "downloads" / "cifar10" / "cs.toronto.edu_kriz_cifar-10-binaryODHP.tar.gz"
    path.parent.mkdir(parents=True)
    with tarfile.open(path, "w:gz", compresslevel=1) as file:
        for name, part in (("readme.html", b"text"), ("test_batch.bin", content)):
            member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            member.size = len(part)
            file.addfile(member, io.BytesIO(part))
    return path


def arrays(root: Path, content: bytes) -> Path:
    records = np.frombuffer(content, np.uint8).reshape(-1, 3073)
    images = records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    np.savez(root / "cifar10.npz", x_test=images, y_test=records[:, :1])
    return root / "cifar10.npz"


@pytest.mark.parametrize("write", [unpacked, packed, arrays])
def test_each_form_gives_the_same_examples(tmp_path: Path, write: Callable[[Path, bytes], Path]):
    path = write(tmp_path, RECORDS.tobytes())
    assert find_archive(tmp_path) == path
    found = open_source(DataConfig(dir=str(tmp_path))).read("test")
    np.testing.assert_array_equal(found.images, EXPECTED.images)
    np.testing.assert_array_equal(found.labels, EXPECTED.labels)
    assert found.labels.dtype == np.int32


def test_examples_in_another_order_are_refused(tmp_path: Path):
    path = unpacked(tmp_path, RECORDS[::-1].tobytes())
    with pytest.raises(
        UserError,
        match=f"^{path} does not hold the test split .* in their order, found others; ",
    ):
        read_archive(path, "test")


@pytest.mark.parametrize(
    ("write", "content", "problem"),
    [
        (
            unpacked,
            RECORDS.tobytes()[:-1],
            "expected test_batch.bin with 153,650 bytes, found 153,649",
        ),
        (packed, b"", "expected test_batch.bin with 153,650 bytes, found 0"),
        (
            arrays,
            RECORDS[:5].tobytes(),
            r"expected x_test uint8 \(50, 32, 32, 3\) .*, found uint8 \(5, 32, 32, 3\)",
        ),
    ],
    ids=["unpacked", "packed", "arrays"],
)
def test_what_is_not_the_archive_is_told_in_one_line(
    tmp_path: Path, write: Callable[[Path, bytes], Path], content: bytes, problem: str
):
    path = write(tmp_path, content)
    with pytest.raises(UserError, match=f"^cannot read CIFAR-10 from {path}: {problem}") as caught:
        read_archive(path, "test")
    assert len(str(caught.value).splitlines()) == 1
    if path.is_file():
        path.write_bytes(path.read_bytes()[:-20])
        with pytest.raises(UserError, match=f"^cannot read CIFAR-10 from {path}: "):
            read_archive(path, "test")


@pytest.mark.skipif(
    not list(PREPARED.glob("cifar10/*/dataset_info.json")), reason="TFDS_DATA_DIR holds no prepared CIFAR-10"
)
def test_the_order_is_that_of_tensorflow_datasets_and_reading_loads_no_tensorflow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    import tensorflow_datasets as tfds

    monkeypatch.undo()
    builder: Any = tfds.builder("cifar10", data_dir=PREPARED)
    prepared = tfds.as_numpy(builder.as_dataset(split="test", batch_size=-1, shuffle_files=False))
    positions = [int(each.removeprefix(b"test_")) for each in prepared["id"]]
    assert tfds_order("test", 10_000).tolist() == positions
    assert digest(Split(prepared["image"], prepared["label"])) == DIGESTS["test"]
    records = np.empty((10_000, 3073), np.uint8)
    records[positions, 0] = prepared["label"]
    records[positions, 1:] = prepared["image"].transpose(0, 3, 1, 2).reshape(10_000, -1)
    unpacked(tmp_path, records.tobytes())
    code = (
        "import sys\n"
        "from jaxresnet.config.schema import DataConfig\n"
        "from jaxresnet.data.sources import open_source\n"
        "from jaxresnet.data.splits import load_split\n"
        "print(load_split(open_source(DataConfig(dir=sys.argv[1])), 'test').labels[:9].tolist())\n"
        "print({'tensorflow', 'tensorflow_datasets', 'jax'} & set(sys.modules))\n"
    )
    out = subprocess.run(
        [sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=True
    ).stdout
    assert out.splitlines() == [str(prepared["label"][:9].tolist()), "set()"]
