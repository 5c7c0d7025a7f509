"""A folder with pictures, in a folder for each class."""

import contextlib
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from jaxresnet.config.schema import DataConfig
from jaxresnet.data.info import DatasetInfo, listed, outline
from jaxresnet.data.pictures import find_pictures, picture_size, read_picture
from jaxresnet.data.sources.reading import PictureSource, decode_all, expand, test_positions
from jaxresnet.data.splits import Split
from jaxresnet.errors import UserError, printable


class Files(NamedTuple):
    """The pictures of a split: their `paths`, sorted by class and name, and their `labels`, int32 [N]."""

    paths: list[Path]
    labels: np.ndarray

    def keep(self, chosen: np.ndarray) -> "Files":
        """Those of the pictures that the bool array [N] chooses."""
        return Files([self.paths[i] for i in np.flatnonzero(chosen)], self.labels[chosen])


class Folder(PictureSource):
    """The pictures in train/CLASS and test/CLASS, or, without a test split, in train/CLASS or CLASS.

    Classes are sorted by name, and the pictures of a class by path. So their order does not depend on the file system.
    """

    def __init__(self, config: DataConfig):
        super().__init__(config)
        if not config.dir:
            raise UserError("data.dir: expected the folder with the pictures, found ''", 2)

    @property
    def outline(self) -> DatasetInfo:
        """The facts that names and numbers of files tell. Raises UserError if these are no data set."""
        return self._outline

    def prepare(self) -> None:
        """Nothing to do."""

    @property
    def at_hand(self) -> bool:
        """Whether the folder is there."""
        return expand(self.config.dir).is_dir()

    def own_test_split(self) -> bool:
        """Whether there is a folder test/."""
        return _has_classes(expand(self.config.dir) / "test")

    def decode(self, split: Literal["train", "test"]) -> dict[str, Split]:
        """Decode the pictures of one split."""
        paths, labels = self._splits[split]
        shape = self.outline.image_shape
        readers = (functools.partial(read_picture, path, shape) for path in paths)
        return {split: Split(decode_all(readers, len(paths), shape), labels)}

    @functools.cached_property
    def _outline(self) -> DatasetInfo:
        counts = {split: len(files.labels) for split, files in self._splits.items()}
        return outline("folder", self._image_shape(), self._class_names, counts["train"], counts["test"])

    @functools.cached_property
    def _classes(self) -> dict[str, dict[str, list[Path]]]:
        """The pictures by split ("train", and "test" if there is one) and class, sorted."""
        root = expand(self.config.dir)
        if not root.is_dir():
            raise UserError(f"no folder {root}: expected pictures in {root}/train/CLASS: --data.dir names it")
        train = root / "train" if _has_classes(root / "train") else root
        found = {"train": _pictures(train)}
        if self.own_test_split():
            if train == root:
                raise UserError(f"{root}: expected train/CLASS beside test/CLASS, found no such folders")
            found["test"] = _pictures(root / "test")
        _check_classes(root, found)
        return found

    @functools.cached_property
    def _class_names(self) -> list[str]:
        return list(self._classes["train"])

    @functools.cached_property
    def _splits(self) -> dict[str, Files]:
        """The files of the two splits."""
        found = {}
        for split, classes in self._classes.items():
            labels = np.repeat(np.arange(len(classes), dtype=np.int32), [*map(len, classes.values())])
            found[split] = Files([path for paths in classes.values() for path in paths], labels)
        if "test" not in found:
            whole = found["train"]
            chosen = test_positions(whole.labels, self.config.test_share, self._class_names)
            found = {"train": whole.keep(~chosen), "test": whole.keep(chosen)}
        return found

    def _image_shape(self) -> tuple[int, int, int]:
        """The shape that is asked for, or else that of all pictures. Those that cannot be read are told later."""
        if size := self.config.image_size:
            return size, size, 3
        sizes: dict[tuple[int, int], Path] = {}
        for path in (*self._splits["train"].paths, *self._splits["test"].paths):
            with contextlib.suppress(UserError):
                sizes.setdefault(picture_size(path), path)
            if len(sizes) > 1:
                found = "; ".join(
                    f"{width} x {height} pixels: {place}" for (height, width), place in sizes.items()
                )
                raise UserError(
                    f"data.image_size: expected one, as the pictures differ in size ({found}), found 0",
                    2,
                )
        if not sizes:
            raise UserError(f"{self.config.dir}: expected pictures that Pillow reads, found none")
        return *next(iter(sizes)), 3


def _has_classes(folder: Path) -> bool:
    """Whether there is such a folder with folders in it. One with nothing but pictures is a class of that name."""
    return folder.is_dir() and bool(_folders(folder))


def _folders(folder: Path) -> list[Path]:
    """The folders in a folder, sorted by name, without hidden ones."""
    found = (each for each in folder.iterdir() if each.is_dir() and not each.name.startswith("."))
    return sorted(found, key=lambda each: each.name)


def _pictures(folder: Path) -> dict[str, list[Path]]:
    """The pictures in each class's folder, which are sorted, as text with slashes on every system.

    Raises UserError, a line for each, if folders in it cannot be read.
    """
    errors: list[OSError] = []
    found = {
        each.name: sorted(
            find_pictures(each, errors.append), key=lambda path: path.relative_to(folder).as_posix()
        )
        for each in _folders(folder)
    }
    if errors:
        lines = [f"{error.filename}: cannot read the folder: {error.strerror}" for error in errors]
        raise UserError("\n".join(map(printable, lines)))
    return found


def _check_classes(root: Path, found: dict[str, dict[str, list[Path]]]) -> None:
    """Raise UserError, a line for each problem, if the folders cannot be the classes of a data set."""
    train, test = found["train"], found.get("test", found["train"])
    problems = []
    if not any(train.values()):
        raise UserError(f"{root}: expected pictures in train/CLASS, test/CLASS or CLASS, found none")
    if len(train) < 2:
        problems.append(f"expected at least two classes, found only {listed([*train])}")
    for split, classes in found.items():
        if empty := [name for name, paths in classes.items() if not paths]:
            problems.append(f"expected pictures of each class, found none in {split} of {listed(empty)}")
    for one, names in (("train", _without(train, test)), ("test", _without(test, train))):
        if names:
            problems.append(
                f"expected the same classes in train and test, found only in {one}: {listed(names)}"
            )
    if unreadable := [name for name in train if name.encode(errors="replace").decode() != name]:
        problems.append(f"expected classes whose names are UTF-8, found {listed(unreadable)}")
    if problems:
        raise UserError("\n".join(f"{printable(str(root))}: {problem}" for problem in problems))


def _without(one: dict[str, list[Path]], other: dict[str, list[Path]]) -> Sequence[str]:
    return [name for name in one if name not in other]
