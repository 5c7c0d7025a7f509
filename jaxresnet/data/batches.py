"""Batches. Each is a function of the seed and the step's number alone."""

import os
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from jaxresnet.config.schema import Config
from jaxresnet.data.resolution import Phase, phases_of, resize
from jaxresnet.data.splits import Split
from jaxresnet.machine.workarounds import load_tensorflow


class Batch(NamedTuple):
    """A batch of examples, in NumPy arrays on the host or in JAX arrays on the devices.

    `image` uint8 [B, H, W, C]; `label` int32 [B]; `mask` bool [B], false for an example that only fills up the batch.
    Where images are mixed in pairs, `other` int32 [B] is the label of the second image and `share` float32 [B], in
    (0, 1], is the first one's part; elsewhere both are None.
    """

    image: Any
    label: Any
    mask: Any
    other: Any = None
    share: Any = None


def mixes(config: Config) -> bool:
    """Whether the training images are mixed in pairs, so that a training batch has `other` and `share`."""
    return config.augment.mixup > 0 or config.augment.cutmix > 0


def zero_batch(config: Config, image_shape: tuple[int, int, int]) -> Batch:
    """A training batch of black images of class 0, in NumPy arrays: the shapes and dtypes that the train step gets."""
    batch_size = config.batch_size
    labels, mask = np.zeros(batch_size, np.int32), np.ones(batch_size, bool)
    batch = Batch(np.zeros((batch_size, *image_shape), np.uint8), labels, mask)
    return batch._replace(other=labels, share=np.ones(batch_size, np.float32)) if mixes(config) else batch


def train_batches(
    config: Config, split: Split, start_step: int = 0, own: slice | None = None
) -> Iterator[Batch]:
    """Augmented batches of NumPy arrays, for the steps from `start_step` (0 is the first) to the end of the run.

    Each epoch has its permutation of all examples, and these follow each other. Batch k holds the positions
    [k B, (k+1) B) of that sequence, so every batch is full and every example is used. The permutation depends on the
    seed and the epoch, the augmentation on the seed and the step. A late start takes no longer than an early one. Only
    the size of the images follows from the length of the run, too, if `config.resolution` changes it: they are resized
    last, so that all else is as at their own size.

    With `own`, only these rows of each batch are made, which are the same as in the whole batch.
    """
    tf = load_tensorflow()
    examples, batch_size = len(split.labels), config.batch_size
    steps = config.epochs * examples // batch_size
    # Two seeds, so that no epoch's random numbers are those of a step.
    order_seed, augment_seed = tf.unstack(
        tf.random.split(tf.constant([config.seed, 0], tf.int64), 2, alg="philox")
    )
    indices = _example_order(config, examples, order_seed, start_step)
    phases = phases_of(config.resolution, steps, (split.images.shape[1], split.images.shape[2]))
    batch = _batch_function(config, split, augment_seed, phases, own)
    batches = (
        tf.data.Dataset.zip(tf.data.Dataset.range(start_step, steps), indices)
        .map(batch, num_parallel_calls=os.cpu_count(), deterministic=True)
        .prefetch(4)
    )
    # The autotuning thread sleeps longer and longer, up to a minute, and the end of the iterator often waits for it.
    options = tf.data.Options()
    options.autotune.enabled = False
    return _as_batches(batches.with_options(options), len(range(batch_size)[own or slice(None)]))


def _batch_function(
    config: Config, split: Split, augment_seed: Any, phases: list[Phase], own: slice | None
) -> Any:
    """A function (step, indices int64 [B]) -> the fields of the batch of these examples, as TensorFlow's tensors.

    Of the batch it makes only the rows `own`, if they are given.
    """
    tf = load_tensorflow()
    from jaxresnet.data.augment import augment
    from jaxresnet.data.augment.basic import alternating_flips, draw_first_flips
    from jaxresnet.data.augment.draws import MIXING, Part, stream
    from jaxresnet.data.augment.mixing import mix

    images, labels = tf.constant(split.images), tf.constant(split.labels)
    part, first_flips = None, None
    if own is not None:
        rows = np.arange(config.batch_size)[own]
        if mixes(config):
            rows = np.append(rows[0] - 1, rows) % config.batch_size  # and the first one's partner
        part = Part(rows, config.batch_size)
    if config.augment.alternating_flip:
        # The same in every epoch and step: [seed, 0] leads to those that differ.
        first_flips = draw_first_flips(len(split.labels), tf.constant([config.seed, 1], tf.int64))

    def batch(step: Any, indices: Any) -> dict[str, Any]:
        seed = tf.random.fold_in(augment_seed, step, alg="philox")
        flip = None if first_flips is None else alternating_flips(first_flips, indices, step)
        if part is not None:
            indices = tf.gather(indices, part.rows)
            flip = None if flip is None else tf.gather(flip, part.rows)
        image = augment(config.augment, tf.gather(images, indices), seed, flip, part)
        label = tf.gather(labels, indices)
        if not mixes(config):
            return {"image": resize(image, step, phases), "label": label}
        image, share = mix(config.augment, image, stream(seed, MIXING), part)
        image = resize(image, step, phases)
        fields = {"image": image, "label": label, "other": tf.roll(label, 1, axis=0), "share": share}
        return fields if part is None else {name: values[1:] for name, values in fields.items()}

    # Without AutoGraph, which takes a second to translate what has no control flow that depends on tensors.
    return tf.autograph.experimental.do_not_convert(batch)


def _example_order(config: Config, examples: int, order_seed: Any, start_step: int) -> Any:
    """The indices of each batch's examples, int64 [B], from a step on, as a tf.data.Dataset."""
    tf = load_tensorflow()
    first_epoch, skipped = divmod(start_step * config.batch_size, examples)

    def permutation(epoch: Any) -> Any:
        # Not index_shuffle: its permutations of successive epochs are correlated.
        seed = tf.random.fold_in(order_seed, epoch, alg="philox")
        indices = tf.random.experimental.stateless_shuffle(
            tf.range(examples, dtype=tf.int64), seed, alg="philox"
        )
        return tf.data.Dataset.from_tensor_slices(indices)

    # Skipping is cheap here, because these are indices and not yet images.
    return (
        tf.data.Dataset.range(first_epoch, config.epochs)
        .flat_map(permutation)
        .skip(skipped)
        .batch(config.batch_size, drop_remainder=True)
    )


def _as_batches(dataset: Any, batch_size: int) -> Iterator[Batch]:
    mask = np.ones(batch_size, bool)
    for fields in dataset.as_numpy_iterator():
        yield Batch(mask=mask, **fields)


def evaluation_batches(split: Split, batch_size: int) -> Iterator[Batch]:
    """The examples of `split` in order, each once. Black images with a false mask fill up the last batch."""
    for start in range(0, len(split.labels), batch_size):
        image, label = split.images[start : start + batch_size], split.labels[start : start + batch_size]
        fill = batch_size - len(label)
        if fill:
            image = np.pad(image, ((0, fill), (0, 0), (0, 0), (0, 0)))
            label = np.pad(label, (0, fill))
        yield Batch(image, label, np.arange(batch_size) < batch_size - fill)
