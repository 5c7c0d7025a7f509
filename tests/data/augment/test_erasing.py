"""Cutout and Random Erasing: where the rectangles are, and that they cover."""

import numpy as np
import pytest
import tensorflow as tf

from jaxresnet.data.augment.erasing import Boxes, cover, draw_cutout, draw_erasing

SHAPE = (20_000, 32, 24, 1)


def boxes_of(*rows: tuple[int, int, int, int]) -> Boxes:
    """Boxes of (top, left, bottom, right), one for each image."""
    return Boxes(*(tf.constant(edge) for edge in np.array(rows, np.int32).T))


def drawn(boxes: Boxes) -> dict[str, np.ndarray]:
    return {name: edge.numpy() for name, edge in boxes._asdict().items()}


def test_boxes_cover_with_grey_where_they_are_in_the_image():
    images = np.random.default_rng(0).integers(0, 128, (4, 6, 5, 3), dtype=np.uint8)
    one = boxes_of((1, 2, 3, 4), (-2, -1, 2, 1), (4, 3, 9, 8), (2, 0, 2, 5))
    other = boxes_of((5, 0, 6, 1), (0, 0, 0, 0), (0, 0, 0, 0), (0, 0, 0, 0))
    expected = images.copy()
    expected[0, 1:3, 2:4] = expected[0, 5, 0] = 128
    expected[1, :2, :1] = 128
    expected[2, 4:, 3:] = 128
    np.testing.assert_array_equal(cover(tf.constant(images), [one, other]), expected)


@pytest.mark.parametrize("side", [1, 7, 16])
def test_a_cutouts_centre_is_anywhere(side: int):
    found = drawn(draw_cutout(side, tf.zeros(SHAPE, tf.uint8), tf.constant([1, 2])))
    np.testing.assert_array_equal(found["bottom"] - found["top"], side)
    np.testing.assert_array_equal(found["right"] - found["left"], side)
    for edge, size in (("top", 32), ("left", 24)):
        values, counts = np.unique(found[edge], return_counts=True)
        np.testing.assert_array_equal(values, np.arange(size) - side // 2)
        np.testing.assert_allclose(counts / SHAPE[0], 1 / size, atol=0.008)
    assert abs(np.corrcoef(found["top"], found["left"])[0, 1]) < 0.03


def test_erased_rectangles_have_the_papers_areas_and_aspects():
    found = drawn(draw_erasing(1.0, tf.zeros(SHAPE, tf.uint8), tf.constant([1, 2])))
    rows, columns = found["bottom"] - found["top"], found["right"] - found["left"]
    area = rows * columns / (32 * 24)
    assert area.mean() == pytest.approx((0.02 + 0.33) / 2, abs=0.004)
    assert 0.01 < area.min() < 0.03
    assert 0.32 < area.max() < 0.36  # sides are rounded
    large = area > 0.1  # so that whole pixels do not matter much
    ratio = np.log(rows[large] / columns[large])
    assert ratio.min() == pytest.approx(np.log(0.3), abs=0.15)
    assert ratio.max() == pytest.approx(np.log(3.3), abs=0.15)
    assert found["top"].min() == found["left"].min() == 0
    assert found["bottom"].max() == 32
    assert found["right"].max() == 24
    small = area < 0.1
    middle = (found["top"][small] + found["bottom"][small]) / 2
    assert middle.mean() == pytest.approx(16, abs=0.3)


@pytest.mark.parametrize("probability", [0.0, 0.25, 1.0])
def test_only_that_share_of_the_images_is_erased(probability: float):
    found = drawn(draw_erasing(probability, tf.zeros(SHAPE, tf.uint8), tf.constant([5, 6])))
    erased = found["bottom"] > found["top"]
    assert erased.mean() == pytest.approx(probability, abs=0.01)
    area = ((found["bottom"] - found["top"]) * (found["right"] - found["left"]))[erased]
    assert not erased.any() or area.mean() / (32 * 24) == pytest.approx(0.175, abs=0.006)
