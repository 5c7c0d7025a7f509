"""Data sets in memory as uint8, and batches: a pure function of the seed and the step's number."""

import os
import re
import threading
import urllib.error
import urllib.request
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxresnet.batch import Batch
from jaxresnet.config import DATASETS, Config, DataConfig
from jaxresnet.errors import UserError

CIFAR10_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
"""Where tensorflow-datasets downloads CIFAR-10 from, 162 MiB; prepared it takes 133 MiB."""

PROBE_SECONDS = 8.0
"""How long to look for the download's host before giving up; tensorflow-datasets itself retries for minutes."""

_OPERATION = re.compile(r"\{\{.*?\}\}| \[Op:.*", re.DOTALL)
"""What TensorFlow's errors say of its own inside."""

_KERAS = "TF_USE_LEGACY_KERAS"
_IMPORTING = threading.Lock()

DIGITS_TEST_SHARE = 5
"""One in so many digits of each class is a test example."""


class Split(NamedTuple):
    """`images` uint8 [N, H, W, C] and `labels` int32 [N]."""

    images: np.ndarray
    labels: np.ndarray


def load_split(config: DataConfig, name: str) -> Split:
    """Load one split, as `load_splits` does."""
    return load_splits(config, {name})[name]


def load_splits(config: DataConfig, names: Collection[str]) -> dict[str, Split]:
    """Load those of the splits "train", "validation" and "test" that are in `names`.

    "validation" is the hold-out and "train" what is left beside it. Raises UserError (exit code 1) if
    the data set is neither prepared nor to be had, or is damaged or another than its name says.
    """
    splits = {}
    if "test" in names:
        splits["test"] = _load_whole(config, "test")
    if parts := [name for name in ("train", "validation") if name in names]:
        whole = _load_whole(config, "train")
        held_out = np.zeros(len(whole.labels), bool)
        held_out[holdout_indices(whole.labels, config.validation_examples)] = True
        for name in parts:
            keep = held_out if name == "validation" else ~held_out
            splits[name] = whole if keep.all() else Split(whole.images[keep], whole.labels[keep])
    return splits


def _load_whole(config: DataConfig, name: str) -> Split:
    """The data set's own split "train" or "test", checked."""
    split = _load_digits(name) if config.name == "digits" else _load_cifar10(config.dir, name)
    _check_split(config.name, name, split)
    return split


def _check_split(data_set: str, name: str, split: Split) -> None:
    """Raise UserError unless the split is what DATASETS says of it: a foreign label would count as no class."""
    info, (images, labels) = DATASETS[data_set], split
    examples = info.test_examples if name == "test" else info.train_examples
    expected = f"uint8 images {(examples, *info.image_shape)} and labels 0 to {len(info.class_names) - 1}"
    found = f"{images.dtype} images {images.shape}"
    if len(labels):
        found += f" and labels {labels.min()} to {labels.max()}"
    if found != expected:
        raise UserError(
            f"the {name} split is not that of {data_set}: expected {expected}, found {found}; "
            "point TFDS_DATA_DIR or --data.dir to another folder"
        )


def holdout_indices(labels: np.ndarray, examples: int) -> np.ndarray:
    """The sorted positions of a hold-out of `examples`: of each class the last ones, in fixed numbers.

    Stratified: each class is held out in proportion to its size, to within one example. No seed takes
    part, so that runs with different seeds are compared on the same examples.
    """
    # Spread evenly over the examples sorted by class, a class of n gets n * examples / N to within one.
    by_class = np.argsort(labels, kind="stable")
    positions = (np.arange(1, examples + 1) * len(labels)) // max(examples, 1) - 1
    per_class = np.bincount(labels[by_class[positions]], minlength=labels.max() + 1)
    chosen = [np.flatnonzero(labels == c)[-count:] for c, count in enumerate(per_class) if count]
    return np.sort(np.concatenate(chosen)) if chosen else np.empty(0, np.int64)


def _load_digits(split: str) -> Split:
    """scikit-learn's digits: 8x8 grey images, enlarged to 32x32 by repetition, in three equal channels.

    The last fifth of each class, in the package's order, is the test split. That order goes by writer,
    so the test digits are mostly by other hands than the training ones.
    """
    from sklearn.datasets import load_digits  # takes a second to import

    digits = load_digits()
    grey = np.round(digits.images * (255 / 16)).astype(np.uint8)
    images = np.repeat(np.repeat(grey, 4, axis=1), 4, axis=2)[..., None].repeat(3, axis=3)
    labels = digits.target.astype(np.int32)
    test = np.zeros(len(labels), bool)
    for c in range(10):
        members = np.flatnonzero(labels == c)
        test[members[len(members) - len(members) // DIGITS_TEST_SHARE :]] = True
    keep = test if split == "test" else ~test
    return Split(images[keep], labels[keep])


def _load_cifar10(directory: str, split: str) -> Split:
    """CIFAR-10 as tensorflow-datasets prepares it; downloaded and prepared first where it is not yet."""
    root = Path(directory or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()
    if not list(root.glob("cifar10/*/dataset_info.json")):
        print(
            f"CIFAR-10 is not in {root}: downloading 162 MiB from {CIFAR10_URL} and preparing 133 MiB there",
            flush=True,
        )
        _require_network(root)
    tf = _tensorflow()
    import tensorflow_datasets as tfds

    tf.get_logger().setLevel("ERROR")
    place = str(root / "cifar10")
    try:
        builder = tfds.builder("cifar10", data_dir=root)
        if not builder.is_prepared():
            builder.download_and_prepare()
        place = ", ".join(map(str, builder.info.splits[split].filepaths))
        # One batch of the whole split, in the files' order.
        examples = builder.as_dataset(split=split, batch_size=-1, shuffle_files=False)
        arrays = tfds.as_numpy(examples)
    except Exception as error:  # the libraries below raise dozens of types
        reason = _OPERATION.sub("", str(error)).strip() or type(error).__name__
        raise UserError(
            f"cannot load CIFAR-10 from {place}: {reason.splitlines()[0]}; remove {root / 'cifar10'} to prepare it anew"
        ) from error
    return Split(arrays["image"], arrays["label"].astype(np.int32))


def _require_network(root: Path) -> None:
    """Raise UserError unless the download's host answers within PROBE_SECONDS, by proxy where one is set."""
    problem = ["no answer"]

    def probe() -> None:
        try:
            request = urllib.request.Request(CIFAR10_URL, method="HEAD")
            with urllib.request.urlopen(request, timeout=PROBE_SECONDS):
                problem.clear()
        except (OSError, ValueError) as error:
            problem[0] = str(getattr(error, "reason", error))

    # In a thread, because looking up a name obeys no time limit.
    thread = threading.Thread(target=probe, daemon=True)
    thread.start()
    thread.join(PROBE_SECONDS)
    if problem:
        raise UserError(
            f"cannot download CIFAR-10 ({problem[0]}): expected it prepared in {root}; point TFDS_DATA_DIR or "
            "--data.dir to a folder that holds it, or try --config configs/digits.toml, which needs no download"
        )


def import_tensorflow() -> None:
    """Import what `train_batches` needs, several seconds' work, so that it can be done beside other things."""
    _tensorflow()
    import jaxresnet.augment  # noqa: F401


def _tensorflow():
    """TensorFlow, kept off the GPU, which is JAX's; imported without Keras, which takes a third of its time."""
    with _IMPORTING:
        # TensorFlow looks for the old Keras, finds none, and goes on; it still loads the new one at its first use.
        chosen = os.environ.get(_KERAS)
        os.environ[_KERAS] = "1"
        try:
            import tensorflow as tf
        finally:
            del os.environ[_KERAS]
            if chosen is not None:
                os.environ[_KERAS] = chosen
    tf.config.set_visible_devices([], "GPU")
    return tf


def train_batches(config: Config, split: Split, start_step: int = 0) -> Iterator[Batch]:
    """Augmented batches of numpy arrays for the steps from `start_step` to the end of the run.

    Batch k holds the positions [k B, (k+1) B) of the epochs' permutations of all examples, one after the
    other: every batch is full and every example is used. The permutation depends on the seed and the epoch,
    the augmentation on the seed and the step. Starting anywhere takes the same time.
    """
    tf = _tensorflow()
    from jaxresnet.augment import augment

    examples, batch_size = len(split.labels), config.batch_size
    first_epoch, skipped = divmod(start_step * batch_size, examples)
    # Two seeds that no epoch's or step's number can make equal.
    order_seed, augment_seed = tf.unstack(
        tf.random.split(tf.constant([config.seed, 0], tf.int64), 2, alg="philox")
    )
    images, labels = tf.constant(split.images), tf.constant(split.labels)

    def permutation(epoch: tf.Tensor) -> tf.data.Dataset:
        # Not index_shuffle, whose permutations of neighbouring epochs are correlated.
        seed = tf.random.fold_in(order_seed, epoch, alg="philox")
        indices = tf.random.experimental.stateless_shuffle(
            tf.range(examples, dtype=tf.int64), seed, alg="philox"
        )
        return tf.data.Dataset.from_tensor_slices(indices)

    def batch(step: tf.Tensor, indices: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        seed = tf.random.fold_in(augment_seed, step, alg="philox")
        return augment(config.augment, tf.gather(images, indices), seed), tf.gather(labels, indices)

    # Only indices are skipped, never images.
    indices = (
        tf.data.Dataset.range(first_epoch, config.epochs)
        .flat_map(permutation)
        .skip(skipped)
        .batch(batch_size, drop_remainder=True)
    )
    steps = tf.data.Dataset.range(start_step, config.total_steps)
    batches = (
        tf.data.Dataset.zip(steps, indices)
        .map(batch, num_parallel_calls=os.cpu_count(), deterministic=True)
        .prefetch(4)
    )
    # The tuning thread sleeps for ever longer spells, up to a minute, and the iterator's end often waits for it.
    options = tf.data.Options()
    options.autotune.enabled = False
    batches = batches.with_options(options)
    mask = np.ones(batch_size, bool)
    for image, label in batches.as_numpy_iterator():
        yield Batch(image, label, mask)


def evaluation_batches(split: Split, batch_size: int) -> Iterator[Batch]:
    """The examples in order, each once; the last batch is filled up with black images masked out."""
    for start in range(0, len(split.labels), batch_size):
        image, label = split.images[start : start + batch_size], split.labels[start : start + batch_size]
        fill = batch_size - len(label)
        if fill:
            image = np.pad(image, ((0, fill), (0, 0), (0, 0), (0, 0)))
            label = np.pad(label, (0, fill))
        yield Batch(image, label, np.arange(batch_size) < batch_size - fill)
