"""The data sets themselves: what they hold, and how it is told that one cannot be had."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from jaxresnet.config.schema import Config, DataConfig
from jaxresnet.data.sources import SOURCES, cifar10, open_source, reopen_source, tfds
from jaxresnet.data.splits import Split, load_split, load_splits
from jaxresnet.errors import UserError


def test_a_source_is_opened_by_its_name_without_reading():
    for name in SOURCES:
        info = open_source(DataConfig(name=name, dir="/nonexistent")).info
        assert info.name == name
        assert info.classes == 10


def test_images_of_a_known_size_are_not_resized():
    assert open_source(DataConfig(name="digits", image_size=32)).info.image_shape == (32, 32, 3)
    with pytest.raises(
        UserError, match=r"^data\.image_size: expected 0 or 32 for digits, found 64"
    ) as caught:
        open_source(DataConfig(name="digits", image_size=64))
    assert caught.value.exit_code == 2


def test_digits():
    source = open_source(DataConfig(name="digits"))
    train, test = load_split(source, "train"), load_split(source, "test")
    info = source.info
    assert train.images.shape == (info.train_examples, *info.image_shape)
    assert test.images.shape == (info.test_examples, *info.image_shape)
    assert train.images.dtype == np.uint8
    assert train.images.max() == 255
    np.testing.assert_array_equal(train.labels[:10], np.arange(10))
    np.testing.assert_array_equal(np.bincount(test.labels), [35, 36, 35, 36, 36, 36, 36, 35, 34, 36])
    scaled = train.images / 255
    np.testing.assert_allclose(scaled.mean((0, 1, 2)), info.mean, atol=1e-4)
    np.testing.assert_allclose(scaled.std((0, 1, 2)), info.std, atol=1e-4)
    # Every grey 8x8 pixel is a block of 4x4 equal pixels in three equal channels.
    blocks = train.images.reshape(-1, 8, 4, 8, 4, 3)
    assert (blocks == blocks[:, :, :1, :, :1, :1]).all()


def prepared_cifar10() -> bool:
    return bool(list(Path(os.environ.get("TFDS_DATA_DIR", "")).glob("cifar10/*/dataset_info.json")))


with_cifar10 = pytest.mark.skipif(
    not (os.environ.get("TFDS_DATA_DIR") and prepared_cifar10()),
    reason="TFDS_DATA_DIR holds no prepared CIFAR-10",
)


@with_cifar10
def test_real_cifar10():
    source = open_source(DataConfig())
    splits = load_splits(source, {"train", "validation", "test"}, validation_examples=5000)
    train, validation, test = splits["train"], splits["validation"], splits["test"]
    assert len(validation.labels) == 5000
    train = Split(*(np.concatenate(parts) for parts in zip(train, validation, strict=True)))
    assert train.images.shape == (50_000, 32, 32, 3)
    assert test.images.shape == (10_000, 32, 32, 3)
    assert set(np.bincount(train.labels)) == {5000}
    assert set(np.bincount(test.labels)) == {1000}
    assert sum(cifar10.PIXEL_SUMS["train"]) == 18_540_682_003  # the sum of what others give for each channel
    mean = train.images.mean((0, 1, 2)) / 255
    square = np.square(train.images, dtype=np.uint16).mean((0, 1, 2)) / 255**2
    np.testing.assert_allclose(mean, source.info.mean, atol=1e-4)
    np.testing.assert_allclose(np.sqrt(square - mean**2), source.info.std, atol=1e-4)


def damaged_copy(folder: Path, damage: Callable[[bytearray], bytes | bytearray]) -> str:
    """A folder with CIFAR-10 whose test split's file is damaged."""
    (source,) = Path(os.environ["TFDS_DATA_DIR"]).glob("cifar10/*")
    copy = folder / "cifar10" / source.name
    copy.mkdir(parents=True)
    for path in source.iterdir():
        if "-test." in path.name:
            (copy / path.name).write_bytes(damage(bytearray(path.read_bytes())))
        else:
            (copy / path.name).symlink_to(path)
    return str(folder)


def flip(content: bytearray) -> bytearray:
    content[len(content) // 2] ^= 1
    return content


def first_records_again(content: bytearray) -> bytes:
    """The first 5,000 of 10,000 records, twice. A record has 16 bytes more than its length, with which it begins."""
    end = 0
    for _ in range(5_000):
        end += int.from_bytes(content[end : end + 8], "little") + 16
    return bytes(content[:end]) * 2


@with_cifar10
@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (flip, "corrupted record"),
        (lambda content: content[:-50], "truncated record"),
        (first_records_again, "expected its images and labels, found others"),
    ],
    ids=["flipped", "truncated", "half of the images twice"],
)
def test_a_damaged_file_is_named(
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    damage: Callable[[bytearray], bytes | bytearray],
    problem: str,
):
    directory = damaged_copy(tmp_path, damage)
    with pytest.raises(UserError, match=rf"{tmp_path}/\S*-test\.tfrecord.*: {problem}.*; remove") as caught:
        load_split(open_source(DataConfig(dir=directory)), "test")
    assert caught.value.exit_code == 1
    assert len(str(caught.value).splitlines()) == 1
    assert "Op:" not in str(caught.value)
    assert capfd.readouterr().err == ""


def test_a_pipe_in_a_data_sets_folder_is_not_waited_for(tmp_path: Path):
    folder = tmp_path / "cifar10" / "3.0.2"
    folder.mkdir(parents=True)
    (folder / "dataset_info.json").touch()
    os.mkfifo(folder / "cifar10-test.tfrecord-00000-of-00001")
    with pytest.raises(UserError, match=r"^expected a file, found a pipe: .*-test.tfrecord-00000-of-00001$"):
        load_split(open_source(DataConfig(dir=str(tmp_path))), "test")


def test_missing_data_without_a_network_fails_fast_with_the_ways_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(cifar10, "URL", "http://127.0.0.1:9/cifar-10-binary.tar.gz")  # nothing listens
    began = time.monotonic()
    with pytest.raises(UserError) as caught:
        load_split(open_source(DataConfig(dir=str(tmp_path))), "train")
    assert time.monotonic() - began < 15
    assert caught.value.exit_code == 1
    for part in ("TFDS_DATA_DIR", "--config digits", str(tmp_path)):
        assert part in str(caught.value)
    assert "162 MiB" in capsys.readouterr().out


def test_a_user_without_a_home_folder_is_told_what_to_set():
    config = Config().replace({"data.dir": "~nobody knows/data"})
    source = open_source(config.data)
    assert reopen_source(config).info == source.info
    with pytest.raises(
        UserError, match="cannot find ~nobody knows/data, because that user has no home folder: set "
    ):
        source.read("test")


def test_a_host_that_never_answers_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tfds, "PROBE_SECONDS", 0.5)

    def hang(*_: object, **__: object) -> None:
        time.sleep(3)
        raise OSError("too late")

    monkeypatch.setattr(tfds.urllib.request, "urlopen", hang)
    began = time.monotonic()
    with pytest.raises(UserError, match="no answer"):
        load_split(open_source(DataConfig(dir=str(tmp_path))), "train")
    assert time.monotonic() - began < 2.5


def test_the_data_of_a_run_is_found_where_it_is_now(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    kept, other, usual = (str(tmp_path / name) for name in ("kept", "other", "usual"))
    Path(kept).mkdir()
    monkeypatch.setenv("TFDS_DATA_DIR", usual)

    def no_network(url: str, name: str, root: Path) -> None:
        raise UserError(str(root))

    monkeypatch.setattr(tfds, "require_network", no_network)

    def place(folder: str, directory: str = "") -> str:
        with pytest.raises(UserError) as caught:
            reopen_source(Config().replace({"data.dir": folder}), directory).read("test")
        return str(caught.value)

    assert place(kept) == kept
    assert place(str(tmp_path / "gone")) == usual
    assert place(str(tmp_path / ("x" * 256))) == usual  # looking for it fails, as below another user's folder
    assert place("") == usual
    assert place(kept, other) == other
