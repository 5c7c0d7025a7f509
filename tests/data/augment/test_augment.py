"""All kinds together: their order, and that their random numbers have nothing to do with each other."""

import numpy as np
import tensorflow as tf

from jaxresnet.config.schema import NO_AUGMENTATION, AugmentConfig, Config
from jaxresnet.data.augment import augment
from jaxresnet.data.augment.basic import draw_basic
from jaxresnet.data.augment.draws import CUTOUT, ERASING, MIXING, TRIVIAL, stream
from jaxresnet.data.augment.erasing import draw_cutout, draw_erasing
from jaxresnet.data.augment.mixing import draw_mixing
from jaxresnet.data.augment.trivial import draw_trivial

IMAGES = tf.constant(np.random.default_rng(0).integers(0, 120, (64, 32, 32, 3), dtype=np.uint8))
SEED = tf.constant([1, 2])


def augmented(settings: dict[str, object], flip: tf.Tensor | None = None) -> np.ndarray:
    """The images with these settings of the augmentation alone."""
    changed = {f"augment.{name}": value for name, value in settings.items()}
    return augment(Config().replace({**NO_AUGMENTATION, **changed}).augment, IMAGES, SEED, flip).numpy()


def test_same_seed_same_images():
    config = AugmentConfig(trivial_augment=True, cutout=8, random_erasing=0.5)
    one, same, other = (augment(config, IMAGES, tf.constant(seed)) for seed in ([1, 2], [1, 2], [1, 3]))
    np.testing.assert_array_equal(one, same)
    assert not np.array_equal(one, other)


def test_given_flips_take_the_place_of_the_drawn_ones():
    flip = np.arange(64) % 3 == 0
    expected = np.where(flip[:, None, None, None], IMAGES.numpy()[:, :, ::-1], IMAGES)
    np.testing.assert_array_equal(augmented({"horizontal_flip": True}, tf.constant(flip)), expected)


def test_a_new_kind_leaves_the_draws_of_the_others():
    """What is not covered is as without covering, and an image without an operation as without TrivialAugment."""
    paper = augment(AugmentConfig(), IMAGES, SEED).numpy()
    covered = augment(AugmentConfig(cutout=8, random_erasing=0.5), IMAGES, SEED).numpy()
    same = (covered == paper) | (covered == 128)
    assert same.all()
    assert 0.02 < (covered != paper).mean() < 0.2
    trivial = augment(AugmentConfig(trivial_augment=True), IMAGES, SEED).numpy()
    identity = draw_trivial(64, stream(SEED, TRIVIAL)).operation.numpy() == 0
    assert identity.any()
    np.testing.assert_array_equal(trivial[identity], paper[identity])
    assert (trivial != paper).any((1, 2, 3)).mean() > 0.6


def test_what_covers_comes_after_what_changes_values():
    bright = augmented({"brightness": 1.0, "trivial_augment": True, "cutout": 8})
    drawn = draw_cutout(8, IMAGES, stream(SEED, CUTOUT))
    for image, top, left in zip(bright, drawn.top.numpy(), drawn.left.numpy(), strict=True):
        assert (image[max(top, 0) : top + 8, max(left, 0) : left + 8] == 128).all()


def test_kinds_draw_independently():
    size = 20_000
    images = tf.zeros([size, 32, 32, 1], tf.uint8)
    erasing = draw_erasing(0.5, images, stream(SEED, ERASING))
    drawn = [
        *draw_basic(AugmentConfig(), size, SEED),
        *draw_trivial(size, stream(SEED, TRIVIAL)),
        *draw_cutout(8, images, stream(SEED, CUTOUT))[:2],
        *erasing[:3],
        *draw_mixing(1.0, images, stream(SEED, MIXING)),
    ]
    correlations = np.abs(
        np.corrcoef([tensor.numpy().astype(float) for tensor in drawn]) - np.eye(len(drawn))
    )
    correlations[9:12, 9:12] = 0  # edges of one rectangle
    strength_by_operation = correlations[5, 6]
    correlations[5, 6] = correlations[6, 5] = 0  # each operation has its own unit
    assert strength_by_operation > 0.03
    assert correlations.max() < 0.03
