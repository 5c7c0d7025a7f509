"""Data sets of tensorflow-datasets with one image and one label: CIFAR-100, SVHN, Fashion-MNIST and many more."""

import contextlib
import difflib
import functools
import io
import os
import re
import threading
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from jaxresnet.config.schema import DataConfig
from jaxresnet.data.info import DatasetInfo, listed, outline
from jaxresnet.data.pictures import decode_picture
from jaxresnet.data.sources.reading import PictureSource, decode_all, expand, held_out, test_positions
from jaxresnet.data.splits import Split
from jaxresnet.disk import MIB, require
from jaxresnet.errors import UserError
from jaxresnet.machine.workarounds import load_tensorflow

PROBE_SECONDS = 8.0
"""How long to wait for a download's host. tensorflow-datasets itself would retry for minutes."""

UNKNOWN = 1_000_000
"""Stands for a number of examples before the data set is prepared: enough for any batch or hold-out."""

_NAME = re.compile(r"[A-Za-z]\w*(/[\w.-]+)?(:\d+\.\d+\.\d+)?")
"""A data set, perhaps with a variant and a version: imagenette/160px:1.0.0."""

_OPERATION = re.compile(r"\{\{.*?\}\}| \[Op:.*", re.DOTALL)
"""The parts of TensorFlow's error messages that name its internal operations."""


class Tfds(PictureSource):
    """A data set that tensorflow-datasets knows, or that somebody has prepared in its folder.

    Its examples are in the order of its files. The test split is its own, or else its validation split, or else a
    share of the training examples.
    """

    @property
    def outline(self) -> DatasetInfo:
        """The facts that the metadata tells.

        Raises UserError (exit code 2) if there is no such data set, or it has not one uint8 image and one label.
        """
        features, (image, label) = self._builder.info.features, self._keys
        name, size, (height, width, _) = self.config.name, self.config.image_size, features[image].shape
        if not size and None in (height, width):
            raise UserError(
                f"data.image_size: expected one, as the images of {name} differ in size, found 0",
                2,
            )
        shape = (size, size, 3) if size else (height, width, 3)
        counts = UNKNOWN, UNKNOWN
        if self._builder.is_prepared():
            train, test = self._count("train"), self._count(self._test)
            shared = held_out(train, self.config.test_share)
            counts = (train, test) if self.own_test_split() else (train - shared, shared)
        return outline(name, shape, features[label].names, *counts)

    def prepare(self) -> None:
        """Download and prepare the data set if it is not there yet. Raises UserError if that fails."""
        if self._builder.is_prepared():
            return
        name, root, urls = self.config.name, data_root(self.config), self._builder.url_infos or {}
        size = sum(each.size or 0 for each in urls.values())
        about = f" up to {size / MIB:,.0f} MiB" if size else ""
        print(f"{name} is not in {root}: downloading{about} and preparing it there", flush=True)
        for url in list(urls)[:1]:
            require_network(url, name, root)
        with errors_told(name, self._folder):
            load_tensorflow()
            self._builder.download_and_prepare()

    @property
    def at_hand(self) -> bool:
        """Whether it is prepared in its folder."""
        return self._builder.is_prepared()

    def own_test_split(self) -> bool:
        """Whether the test split is not a share of the training examples."""
        return self._test != "train"

    def test_split_note(self) -> str:
        """What takes the place of a test split, in words; empty if there is one."""
        return (
            "its validation split is taken as one"
            if self._test == "validation"
            else super().test_split_note()
        )

    def decode(self, split: Literal["train", "test"]) -> dict[str, Split]:
        """Decode one split, or both if there is no test split."""
        images, labels = self._decode("train" if split == "train" else self._test)
        if self.own_test_split():
            return {split: Split(images, labels)}
        chosen = test_positions(labels, self.config.test_share, self.outline.class_names)
        return {
            "train": Split(images[~chosen], labels[~chosen]),
            "test": Split(images[chosen], labels[chosen]),
        }

    def _decode(self, part: str) -> Split:
        """All examples of one of the data set's own splits, in the order of its files."""
        import tensorflow_datasets as tfds

        name, (image, label), count = self.config.name, self._keys, self._count(part)
        shape = self.outline.image_shape
        load_tensorflow()
        labels: list[int] = []

        def readers() -> Iterator[Callable[[], np.ndarray]]:
            # The pictures as they are in the files. TensorFlow would decode a JPEG differently on different machines.
            decoders = tfds.decode.PartialDecoding(
                {image: True, label: True}, decoders={image: tfds.decode.SkipDecoding()}
            )
            # One file after the other.
            order = tfds.ReadConfig(interleave_cycle_length=1, try_autocache=False)
            examples = self._builder.as_dataset(
                split=part, shuffle_files=False, decoders=decoders, read_config=order
            )  # pyright: ignore[reportCallIssue]
            for example in tfds.as_numpy(examples):
                labels.append(int(example[label]))
                content, place = example[image], f"{name}, {part} split, image {len(labels):,}"
                if labels[-1] < 0:  # as in a test split whose labels its makers keep to themselves
                    raise UserError(f"{place}: expected a label, found none")
                yield lambda content=content, place=place: decode_picture(io.BytesIO(content), place, shape)

        with errors_told(name, self._folder) as loading:
            loading.place = ", ".join(map(str, self._builder.info.splits[part].filepaths))
            images = decode_all(readers(), count, shape)
            if len(labels) != count:
                raise ValueError(f"expected {count:,} examples, found {len(labels):,}")
        return Split(images, np.array(labels, np.int32))

    @property
    def _folder(self) -> Path:
        return data_root(self.config) / self.config.name.partition(":")[0]

    def _count(self, part: str) -> int:
        return self._builder.info.splits[part].num_examples

    @property
    def _test(self) -> str:
        """The name of the split that serves as test split: "train" if that is divided."""
        found = self._builder.info.splits
        if "train" not in found:
            raise UserError(f"{self.config.name}: expected a split train, found {', '.join(found) or 'none'}")
        return next((part for part in ("test", "validation") if part in found), "train")

    @functools.cached_property
    def _builder(self) -> Any:
        """The data set as tensorflow-datasets describes it. Nothing is downloaded."""
        return open_builder(self.config.name, data_root(self.config))

    @functools.cached_property
    def _keys(self) -> tuple[str, str]:
        """The names of the features that are the image and its label."""
        return image_and_label(self._builder.info)


def open_builder(name: str, root: Path) -> Any:
    """The builder of the data set `name` in the folder `root`.

    Raises UserError (exit code 2) if there is none.
    """
    if not _NAME.fullmatch(name):
        raise _unknown(name, [])
    require_files(root, name)
    import tensorflow_datasets as tfds

    try:
        return tfds.builder(name, data_dir=root)
    except tfds.core.DatasetNotFoundError:
        raise _unknown(name, tfds.list_builders(with_community_datasets=False)) from None
    except Exception as error:  # for a wrong variant or version, or a package that the data set needs
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"data.name: tensorflow-datasets cannot open {name!r}: {reason}", 2) from None


def _unknown(name: str, known: list[str]) -> UserError:
    own = ["cifar10", "digits", "folder"]
    near = difflib.get_close_matches(name, [*own, *known], n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    return UserError(
        f"data.name: expected {', '.join(own)} or an image data set of tensorflow-datasets, such as cifar100, "
        f"found {name!r}{hint}",
        2,
    )


def image_and_label(info: Any) -> tuple[str, str]:
    """The names of the features that are the image and its label, from the metadata of a data set.

    Raises UserError (exit code 2) unless there is one image of 8 bits and one label, or
    the metadata names two as input and target.
    """
    import tensorflow_datasets as tfds

    is_dict = isinstance(info.features, tfds.features.FeaturesDict)
    features: dict[str, Any] = dict(info.features) if is_dict else {}
    images, labels = (
        [key for key, feature in features.items() if type(feature) is kind]
        for kind in (tfds.features.Image, tfds.features.ClassLabel)
    )
    pairs = [(image, label) for image in images for label in labels]
    pair = (
        pairs[0] if len(pairs) == 1 else next((each for each in pairs if each == info.supervised_keys), None)
    )
    if pair is None or features[pair[0]].np_dtype != np.uint8 or not features[pair[1]].num_classes:
        held = listed([f"{key} ({type(feature).__name__})" for key, feature in features.items()])
        raise UserError(
            f"data.name: expected a data set with one image of 8 bits and one label, found {info.name} with "
            f"{held or 'other things'}",
            2,
        )
    return pair


def data_root(config: DataConfig) -> Path:
    """The folder of the prepared data sets. Raises UserError if it is in the home folder of a user without one."""
    return expand(config.dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets")


def require_files(root: Path, name: str) -> None:
    """Raise UserError if a prepared data set has something else than files and folders in its folders."""
    for path in root.glob(f"{name.partition(':')[0].partition('/')[0]}/**/*"):
        if not path.is_dir():
            require("a file", path, follow=True)  # TensorFlow would wait for a pipe


@dataclass
class Loading:
    """What is being read: its `place`, a folder or files, is named in errors."""

    place: str


@contextlib.contextmanager
def errors_told(name: str, folder: Path) -> Iterator[Loading]:
    """Turn what TensorFlow and tensorflow-datasets raise in the block into a UserError that names the place.

    That is `folder`, which can be removed to prepare the data set anew, until the block sets another one.
    """
    loading = Loading(str(folder))
    try:
        yield loading
    except UserError:
        raise
    except Exception as error:  # dozens of types
        reason = _OPERATION.sub("", str(error)).strip() or type(error).__name__
        raise UserError(
            f"cannot load {name} from {loading.place}: {reason.splitlines()[0]}; remove {folder} to prepare it anew"
        ) from error


def require_network(url: str, name: str, root: Path) -> None:
    """Raise UserError unless a download's host answers within PROBE_SECONDS. A proxy is used if one is set."""
    problem = ["no answer"]

    def probe() -> None:
        try:
            request = urllib.request.Request(url, method="HEAD")
            with urllib.request.urlopen(request, timeout=PROBE_SECONDS):
                problem.clear()
        except (OSError, ValueError) as error:
            if getattr(error, "code", None) in (403, 405):  # the host is there, and does not like HEAD
                problem.clear()
            else:
                problem[0] = str(getattr(error, "reason", error))

    # In a thread, because the look-up of a host name has no time limit.
    thread = threading.Thread(target=probe, daemon=True)
    thread.start()
    thread.join(PROBE_SECONDS)
    if problem:
        raise UserError(
            f"cannot download {name} ({problem[0]}): expected it prepared in {root}; point TFDS_DATA_DIR or "
            "--data.dir to a folder that holds it, or try --config digits, which needs no download"
        )
