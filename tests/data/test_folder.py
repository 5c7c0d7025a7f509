"""Folders of pictures: what becomes of them, in which order, and how it is told that they are no data set."""

import dataclasses
import errno
import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from jaxresnet.config.schema import Config, DataConfig
from jaxresnet.data.pictures import read_picture
from jaxresnet.data.sources import open_source, reading, reopen_source
from jaxresnet.data.splits import changed_data, load_split, load_splits
from jaxresnet.errors import UserError
from jaxresnet.evaluate import other_data
from jaxresnet.fit import fit
from jaxresnet.plan import resolve
from jaxresnet.runs.records import EpochRecord, EvaluationRecord, write_evaluation
from jaxresnet.runs.workdir import Workdir


def picture(path: Path, grey: int = 0, size: tuple[int, int] = (4, 4)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (grey, grey, grey)).save(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Ten cats with even grey values in one split, ten dogs with odd ones; the files are written backwards."""
    for number in reversed(range(10)):
        picture(tmp_path / "pictures" / "cat" / f"{number}.png", 20 * number)
        picture(tmp_path / "pictures" / "dog" / f"{number}.bmp", 20 * number + 1)
    return tmp_path / "pictures"


def config_of(folder: Path, **settings: object) -> DataConfig:
    return DataConfig.model_validate({"name": "folder", "dir": str(folder), **settings})


def test_pictures_are_in_the_order_of_their_names_and_the_last_of_each_class_are_held_out(
    folder: Path, capsys: pytest.CaptureFixture[str]
):
    source = open_source(config_of(folder))
    outline = source.outline
    assert (outline.image_shape, outline.class_names) == ((4, 4, 3), ("cat", "dog"))
    assert (outline.train_examples, outline.test_examples) == (16, 4)
    assert (outline.mean, outline.std, outline.digest) == ((0, 0, 0), (1, 1, 1), "")
    assert capsys.readouterr().out == ""

    info = source.info
    splits = load_splits(source, {"train", "test"})
    train, test = splits["train"], splits["test"]
    assert train.images[:, 0, 0, 0].tolist() == [*range(0, 160, 20), *range(1, 160, 20)]
    assert test.images[:, 1, 2, 2].tolist() == [160, 180, 161, 181]
    assert test.labels.tolist() == [0, 0, 1, 1]
    assert info.mean == (70.5 / 255,) * 3
    assert info.std == pytest.approx((math.sqrt(20**2 * 63 / 12 + 0.25) / 255,) * 3, rel=1e-15)
    assert capsys.readouterr().out.splitlines() == [
        "folder has no test split: 4 of its 20 examples are held out as one, the same share of each class "
        "to within one example (data.test_share)",
        "reading 20 images as 4 x 4 pixels",
    ]


def test_each_picture_is_decoded_once(folder: Path, monkeypatch: pytest.MonkeyPatch):
    read: list[Path] = []

    def reader(path: Path, *details: object) -> np.ndarray:
        read.append(path)
        return read_picture(path, *details)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr("jaxresnet.data.sources.folder.read_picture", reader)
    source = open_source(config_of(folder))
    assert source.info.train_examples == 16
    load_splits(source, {"train", "test", "validation"}, validation_examples=2)
    assert len(read) == len(set(read)) == 20


def test_a_test_folder_and_another_size(folder: Path):
    for name in ("cat", "dog"):
        picture(folder / "test" / name / "one.png", 99, size=(30, 10))
        (folder / name).rename(folder / "moved")
        (folder / "train").mkdir(exist_ok=True)
        (folder / "moved").rename(folder / "train" / name)
    (folder / "train" / "cat" / "notes.txt").touch()
    (folder / "train" / ".hidden").mkdir()
    source = open_source(config_of(folder, image_size=8, test_share=0.9))
    assert source.outline.train_examples == 20
    test = load_split(source, "test")
    assert test.images.shape == (2, 8, 8, 3)
    assert test.images.min() == test.images.max() == 99


def test_a_class_may_have_the_name_of_a_split(tmp_path: Path):
    for name in ("car", "train"):
        for number in range(5):
            picture(tmp_path / name / f"{number}.png")
    assert open_source(config_of(tmp_path)).outline.class_names == ("car", "train")


def extra_class(folder: Path) -> None:
    for split in ("train", "test"):
        for name in ("cat", "dog", split):
            picture(folder / "both" / split / name / "1.png")
    for name in ("cat", "dog"):
        for file in (folder / name).iterdir():
            file.unlink()
        (folder / name).rmdir()
    for split in ("train", "test"):
        (folder / "both" / split).rename(folder / split)


def no_pictures(folder: Path) -> None:
    for file in folder.rglob("*.*"):
        file.rename(file.with_suffix(".data"))


PROBLEMS: list[tuple[Callable[[Path], object], list[str]]] = [
    (
        lambda folder: (folder / "cow").mkdir(),
        ["{folder}: expected pictures of each class, found none in train of cow"],
    ),
    (
        lambda folder: (folder / "dog").rename(folder / ".dog"),
        ["{folder}: expected at least two classes, found only cat"],
    ),
    (no_pictures, ["{folder}: expected pictures in train/CLASS, test/CLASS or CLASS, found none"]),
    (
        extra_class,
        [
            "{folder}: expected the same classes in train and test, found only in train: train",
            "{folder}: expected the same classes in train and test, found only in test: test",
        ],
    ),
    (
        lambda folder: picture(folder / "eel" / "1.png"),
        [
            "expected training examples of each class beside the test split, found none of eel: add examples to "
            "it; a lower data.test_share helps where a class has several"
        ],
    ),
    (
        lambda folder: picture(folder / "cat" / "3.png", size=(5, 4)),
        [
            "data.image_size: expected one, as the pictures differ in size (4 x 4 pixels: {folder}/cat/0.png; 5 x 4 "
            "pixels: {folder}/cat/3.png), found 0"
        ],
    ),
    (
        lambda folder: picture(folder / "test" / "cat" / "3.png"),
        ["{folder}: expected train/CLASS beside test/CLASS, found no such folders"],
    ),
    (
        lambda folder: (folder / os.fsdecode(b"b\xff")).mkdir(),
        [
            "{folder}: expected pictures of each class, found none in train of b\\udcff",
            "{folder}: expected classes whose names are UTF-8, found b\\udcff",
        ],
    ),
]


@pytest.mark.parametrize(("change", "problems"), PROBLEMS, ids=lambda value: "")
def test_what_is_no_data_set_is_told_before_a_picture_is_read(
    folder: Path, change: Callable[[Path], object], problems: list[str]
):
    change(folder)
    settings = {"test_share": 0.05} if (folder / "eel").is_dir() else {}
    with pytest.raises(UserError) as caught:
        _ = open_source(config_of(folder, **settings)).outline
    assert str(caught.value).splitlines() == [line.format(folder=folder) for line in problems]


def test_every_damaged_picture_is_named_up_to_a_number(folder: Path):
    (folder / "cat" / "0.png").write_bytes(b"")
    (folder / "dog" / "9.bmp").write_bytes(b"nothing")  # in the test split
    with pytest.raises(UserError) as caught:
        _ = open_source(config_of(folder)).info
    assert str(caught.value).splitlines() == [
        f"{folder}/cat/0.png: expected a picture in a format that Pillow reads, found an empty file",
        f"{folder}/dog/9.bmp: expected a picture in a format that Pillow reads, found another file",
    ]
    for number in range(200):
        (folder / "cat" / f"{number}.png").write_bytes(b"")
    with pytest.raises(UserError, match="and 150 more pictures like these") as caught:
        load_split(open_source(config_of(folder)), "train")
    assert len(str(caught.value).splitlines()) == 11


def test_what_does_not_fit_into_memory_is_refused_with_its_size(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(reading, "free_bytes", lambda: 2**30)
    with pytest.raises(UserError) as caught:
        _ = open_source(config_of(folder, image_size=4096)).info
    assert str(caught.value) == (
        "out of memory: 36 images of folder with 4096 x 4096 pixels take 1.7 GiB, 1.0 GiB are free: lower "
        "data.image_size or use fewer images"
    )
    assert len(load_split(open_source(config_of(folder, image_size=4)), "test").labels) == 4


def test_a_folder_that_is_not_there(tmp_path: Path):
    with pytest.raises(UserError, match=r"^data\.dir: expected the folder with the pictures") as caught:
        open_source(DataConfig(name="folder"))
    assert caught.value.exit_code == 2
    gone = Config().replace({"data.name": "folder", "data.dir": str(tmp_path / "gone")})
    with pytest.raises(UserError, match=rf"no folder {tmp_path}/gone: .*--data.dir names it") as caught:
        load_split(reopen_source(gone), "test")
    assert caught.value.exit_code == 1


def test_a_folder_that_cannot_be_read_is_told(folder: Path, monkeypatch: pytest.MonkeyPatch):
    picture(folder / "cat" / "more" / "1.png")
    open_folder = os.scandir

    def scan(path: str) -> Any:
        if path.endswith("more"):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return open_folder(path)

    monkeypatch.setattr(os, "scandir", scan)
    with pytest.raises(UserError) as caught:
        _ = open_source(config_of(folder)).outline
    assert str(caught.value) == f"{folder}/cat/more: cannot read the folder: Permission denied"


def test_classes_without_a_test_picture_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for name in "abcdef":
        for number in range(4):
            picture(tmp_path / name / f"{number}.png")
    source = open_source(config_of(tmp_path))
    assert source.info.test_examples == 5  # of 24, for six classes
    assert source.read("test").labels.tolist() == [0, 2, 3, 4, 5]
    assert capsys.readouterr().out.splitlines()[-1] == "the test split has no example of b"


def test_a_run_on_a_folder_goes_on_unless_the_pictures_change(
    folder: Path, tiny_config: Config, tmp_path: Path
):
    settings = {"data.name": "folder", "data.dir": str(folder), "data.image_size": 8, "batch_size": 4}
    config, workdir = tiny_config.replace(settings), tmp_path / "run"
    plan = resolve(config, open_source(config.data).info)
    with Workdir(workdir).open(plan):
        pass
    (folder / "cat" / "3.png").rename(folder / "cat" / "99.png")
    with pytest.raises(
        UserError, match=r"another data set \(images or labels differ, or their order\)"
    ) as caught:
        fit(config, workdir)
    assert caught.value.exit_code == 2
    for number in range(2):
        picture(folder / "cow" / f"{number}.png")
    with pytest.raises(UserError, match=r"\(the classes cow are new; train_examples was 16, is 18\)"):
        fit(config, workdir)

    assert changed_data(plan.info, open_source(config.data), whole=True).startswith("the classes cow are new")
    shutil.rmtree(folder / "cow")
    assert (
        changed_data(plan.info, open_source(config.data), whole=True)
        == "images or labels differ, or their order"
    )
    assert changed_data(plan.info, open_source(config.data), whole=False) == ""
    picture(folder / "cat" / "100.png")
    assert changed_data(plan.info, open_source(config.data), whole=False) == "train_examples was 16, is 17"
    (folder / "cat" / "100.png").unlink()
    (folder / "cat" / "99.png").rename(folder / "cat" / "3.png")
    assert changed_data(plan.info, open_source(config.data), whole=True) == ""
    (folder / "cat" / "1.png").write_bytes(b"")
    problem = (
        "not the data of the training (its training images cannot be compared: "
        f"{folder}/cat/1.png: expected a picture in a format that"
    )
    assert other_data(plan.info, open_source(config.data), whole=True).startswith(problem)
    assert other_data(plan.info, open_source(config.data), whole=False) == ""

    folder.rename(tmp_path / "gone")
    assert Workdir(workdir).require_plan() == plan
    with pytest.raises(UserError, match=f"no folder {folder}"):
        fit(config, workdir)
    epoch = EpochRecord(2, 8, 0.1, 0.5, 0.5, 1.0, 1.0, test_loss=0.5, test_accuracy=0.5)
    record = EvaluationRecord("latest", 8, "test", None, 4, 0.5, 0.5, {"cat": 0, "dog": 1}, [[0, 2], [0, 2]])
    Workdir(workdir).epochs.append(dataclasses.replace(epoch, epoch=1, step=4))
    Workdir(workdir).epochs.append(epoch)
    write_evaluation(Workdir(workdir).evaluation_path("latest"), record)
    assert fit(config, workdir) == record  # it is finished, and so it needs no data
