"""Augmentation on the host: draw parameters from a seed, then apply them to a whole uint8 batch.

Drawing and applying are separate functions, so that each can be tested by value. All functions are stateless: the same
seed and images always give the same result. There is a module for each kind, and `augment` puts them together.
"""

import tensorflow as tf

from jaxresnet.config.schema import AugmentConfig
from jaxresnet.data.augment.affine import compose, transform
from jaxresnet.data.augment.basic import basic_maps, draw_basic
from jaxresnet.data.augment.colour import brighten
from jaxresnet.data.augment.draws import (
    CUTOUT,
    ERASING,
    TRIVIAL,
    Part,
    in_part,
    shape_of,
    stream,
    whole_of,
)
from jaxresnet.data.augment.erasing import cover, draw_cutout, draw_erasing
from jaxresnet.data.augment.trivial import change_colours, draw_trivial, trivial_maps


def augment(
    config: AugmentConfig,
    images: tf.Tensor,
    seed: tf.Tensor,
    flip: tf.Tensor | None = None,
    part: Part | None = None,
) -> tf.Tensor:
    """Change uint8 images [B, H, W, C] at random, as `config` says, each on its own.

    Returns images of the same shape and dtype. The order is: shift, flip, rotation, TrivialAugment, brightness, what
    covers a part. `seed` is an int tensor of shape [2]. `flip`, bool [B], takes the place of the random flip.
    `part` says which of a batch's images these are, if they are not all. With everything switched off the images are
    returned unchanged.
    """
    whole = whole_of(images, part)
    batch_size, height, width, _ = shape_of(whole)
    basic = in_part(draw_basic(config, batch_size, seed), part)
    if flip is not None:
        basic = basic._replace(flip=flip)
    trivial = None
    if config.trivial_augment:
        trivial = in_part(draw_trivial(batch_size, stream(seed, TRIVIAL)), part)
    if trivial or config.horizontal_flip or config.crop_padding or config.rotation_degrees:
        maps = basic_maps(basic, height, width)
        if trivial:
            maps = compose(maps, trivial_maps(trivial, height, width))
        images = transform(images, maps, config.padding)
    if trivial:
        images = change_colours(images, trivial)
    if config.brightness:
        images = brighten(images, basic.brightness)
    covered = []
    if config.cutout:
        covered.append(in_part(draw_cutout(config.cutout, whole, stream(seed, CUTOUT)), part))
    if config.random_erasing:
        covered.append(in_part(draw_erasing(config.random_erasing, whole, stream(seed, ERASING)), part))
    return cover(images, covered) if covered else images
