"""The schedule of the training images' sizes ("progressive resizing"): which steps have which, and the resizing.

A step on images of half the side takes about a quarter of the time. The network can take them because it pools its
whole last map. Evaluation is always at the data's own size, and so is the last part of the training, which has two
tasks. The weights must adapt, because objects appear larger or smaller to them at another size (Touvron et al. 2019,
arXiv:1906.06423). And BatchNorm's running statistics, which every size leaves its own traces in, must be renewed: they
keep 0.9 of themselves at each step, so that 44 steps leave 1 % of what was there. Evaluations before that part show
accuracies that are too low. An average of the weights (`optimizer.ema_decay`) needs a last part that is several times
as long as its memory, 1 / (1 - decay) steps.
"""

import itertools
import math
from typing import Any, NamedTuple

from jaxresnet.config.schema import ResolutionConfig
from jaxresnet.machine.workarounds import load_tensorflow

Size = tuple[int, int]
"""Height and width in pixels."""


def size_text(size: Size) -> str:
    """A size of images, height first.

    >>> size_text((24, 32))
    '24 x 32 pixels'
    """
    return f"{size[0]} x {size[1]} pixels"


class Phase(NamedTuple):
    """The steps from `start` to before `end` (0 is a run's first), which train on images of one `size`."""

    start: int
    end: int
    size: Size


def phases_of(resolution: ResolutionConfig, steps: int, own: Size) -> list[Phase]:
    """The phases of a run of `steps` steps on images whose own size is `own`, without those that have no step.

    A phase ends at floor(sum of the shares so far * steps), and the last one, at the own size, at `steps`. That one
    always has a step.

    >>> phases_of(ResolutionConfig(sizes=(16,), shares=(0.25,)), 45, (32, 32))
    [Phase(start=0, end=11, size=(16, 16)), Phase(start=11, end=45, size=(32, 32))]
    """
    sizes = [(side * own[0] // min(own), side * own[1] // min(own)) for side in resolution.sizes]
    ends = [int(math.fsum(resolution.shares[: n + 1]) * steps) for n in range(len(sizes))]
    phases = map(Phase, [0, *ends], [*ends, steps], [*sizes, own])
    return [phase for phase in phases if phase.start < phase.end]


def problems_of(resolution: ResolutionConfig, own: Size, total_stride: int) -> list[str]:
    """What is wrong with a schedule for images of the size `own`, a line for each problem.

    `total_stride` is the product of the network's strides, which must divide every size.
    """
    sizes, shares = resolution.sizes, resolution.shares
    problems = []
    if len(sizes) != len(shares):
        problems.append(
            f"resolution.sizes and shares: expected equal lengths, found {len(sizes)} and {len(shares)}"
        )
    # Increasing: what is learned from small images goes on with larger ones. The other way would only cost more.
    if any(later <= size for size, later in itertools.pairwise([*sizes, min(own)])):
        problems.append(
            f"resolution.sizes: expected increasing sizes below the image size {min(own)}, found {list(sizes)}"
        )
    if wrong := [size for size in sizes if any(side * size % (min(own) * total_stride) for side in own)]:
        problems.append(
            "resolution.sizes: expected sizes whose sides the product of model.stage_strides divides, "
            f"{total_stride}, found {wrong[0]}"
        )
    if (total := math.fsum(shares)) >= 1:
        problems.append(
            f"resolution.shares: expected a sum below 1, since the rest is at the image size, found {total:g}"
        )
    return problems


def resize(images: Any, step: Any, phases: list[Phase]) -> Any:
    """The batch of a `step`, int64 [], at the size of its phase, from TensorFlow's uint8 images [B, H, W, C].

    Each new pixel is the mean of the area that it covers, weighted where it covers parts of pixels, and rounded to the
    nearest integer, halves to the even one. So the image keeps its brightness, by which the network's inputs are
    normalised, and nothing aliases. Halving is the mean of 2 x 2 pixels. Images of the own size, that of the last of
    the phases, are returned unchanged.
    """
    tf = load_tensorflow()
    *smaller, last = phases
    if not smaller:
        return images

    def resized() -> Any:
        past = tf.reduce_sum(tf.cast(step >= [phase.end for phase in smaller], tf.int32))
        size = tf.gather([phase.size for phase in smaller], past)
        means = tf.image.resize(images, size, method="area")
        return tf.cast(tf.round(means), tf.uint8)

    return tf.cond(step < last.start, resized, lambda: images)
