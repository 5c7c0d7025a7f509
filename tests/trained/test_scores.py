"""Statistics against values worked out by hand, and where there is nothing to divide by."""

import numpy as np
import pytest

from jaxresnet.trained.scores import (
    CalibrationBin,
    ClassScores,
    calibration_bins,
    class_scores,
    expected_calibration_error,
    macro_mean,
    top_probabilities,
    wilson_interval,
)


def test_wilson_interval():
    # With z2 = 1.96 ** 2 and p = 1/2 it is 1/2 +- z / (2 sqrt(n + z2)); with p = 1 it begins at n / (n + z2).
    z2 = 1.959963984540054**2
    assert wilson_interval(0.5, 100) == pytest.approx((0.5 - z2**0.5 / (2 * (100 + z2) ** 0.5), 0.59616834))
    assert wilson_interval(1.0, 10) == pytest.approx((10 / (10 + z2), 1.0))
    assert wilson_interval(0.0, 10) == pytest.approx((0.0, z2 / (10 + z2)))
    assert wilson_interval(float("nan"), 0) == (0.0, 1.0)


def test_scores_of_classes():
    # Class 2 has examples and is never predicted, class 3 has none and is predicted once, class 4 does not occur.
    confusion = np.array([[4, 0, 0, 1, 0], [2, 3, 0, 0, 0], [1, 1, 0, 0, 0], [0] * 5, [0] * 5])
    assert class_scores(confusion) == [
        ClassScores(4 / 7, 4 / 5, 8 / 12),
        ClassScores(3 / 4, 3 / 5, 6 / 9),
        ClassScores(None, 0.0, 0.0),
        ClassScores(0.0, None, 0.0),
        ClassScores(None, None, None),
    ]
    assert class_scores(np.diag([5, 7])) == [ClassScores(1.0, 1.0, 1.0)] * 2
    assert macro_mean([None, None]) is None


def test_top_probabilities_of_large_logits():
    logits = np.array([[1000.0, 1000.0], [-1000.0, 0.0], [0.0, np.log(3)]], np.float32)
    np.testing.assert_allclose(top_probabilities(logits), [0.5, 1.0, 0.75], rtol=1e-6)


def test_bins_of_confidence_have_their_upper_edge():
    confidence = np.array([0.0, 0.25, 0.5, 0.51, 1.0, 1.0])
    correct = np.array([False, True, True, False, True, True])
    bins = calibration_bins(confidence, correct, bins=2)
    assert [each.examples for each in bins] == [3, 3]
    assert [each.confidence for each in bins] == pytest.approx([0.25, 2.51 / 3])
    assert [each.accuracy for each in bins] == pytest.approx([2 / 3, 2 / 3])
    thirds = calibration_bins(np.array([0.4]), np.array([True]), bins=3)
    assert thirds == [CalibrationBin(0, 0, 0), CalibrationBin(1, 0.4, 1), CalibrationBin(0, 0, 0)]


def test_calibration_error_is_the_mean_over_the_examples():
    confidence, correct = np.array([0.9] * 4 + [0.3]), np.array([True, True, True, False, True])
    # Four examples are 0.15 too sure, and one 0.7 too little.
    assert expected_calibration_error(calibration_bins(confidence, correct)) == pytest.approx(1.3 / 5)
    assert expected_calibration_error(calibration_bins(np.ones(3), np.ones(3, bool))) == 0
    assert expected_calibration_error(calibration_bins(np.empty(0), np.empty(0, bool))) == 0
