"""Statistics of a classification as plain numbers: an interval for its accuracy, scores by class, calibration."""

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

_Z_95 = statistics.NormalDist().inv_cdf(0.975)


def wilson_interval(share: float, examples: int) -> tuple[float, float]:
    """The 95 % score interval of a share (0 to 1) that was found in `examples`; (0, 1) if there are none.

    It holds for large and small numbers and near 0 and 1. Source: E. B. Wilson, "Probable inference, the law of
    succession, and statistical inference", Journal of the American Statistical Association 22 (1927), 209-212.

    >>> [round(end, 4) for end in wilson_interval(0.9126, 10_000)]
    [0.9069, 0.918]
    """
    if not examples:
        return 0.0, 1.0
    z2 = _Z_95**2 / examples
    centre = share + z2 / 2
    half = math.sqrt(z2 * (share * (1 - share) + z2 / 4))
    return max(0.0, (centre - half) / (1 + z2)), min(1.0, (centre + half) / (1 + z2))


@dataclass(frozen=True)
class ClassScores:
    """Scores of one class, 0 to 1. A score is None where it would divide by zero.

    `precision` is the share of the examples predicted as the class that belong to it, `recall` the share of the class
    that is predicted as it. `f1` is their harmonic mean; 0 if the class has examples and none of them is found.
    """

    precision: float | None
    recall: float | None
    f1: float | None


def class_scores(confusion: np.ndarray) -> list[ClassScores]:
    """The scores of every class, from counts int [C, C] whose rows are the true classes.

    >>> class_scores(np.array([[3, 1], [0, 0]]))[0]
    ClassScores(precision=1.0, recall=0.75, f1=0.8571428571428571)
    """

    def ratio(part: int, whole: int) -> float | None:
        return part / whole if whole else None

    found, true, predicted = (
        counts.tolist() for counts in (confusion.diagonal(), confusion.sum(axis=1), confusion.sum(axis=0))
    )
    return [
        ClassScores(ratio(hits, guesses), ratio(hits, members), ratio(2 * hits, guesses + members))
        for hits, members, guesses in zip(found, true, predicted, strict=True)
    ]


def macro_mean(scores: Iterable[float | None]) -> float | None:
    """The mean of the classes' scores, without those that are None; None if all are.

    >>> macro_mean([0.5, None, 1.0])
    0.75
    """
    known = [score for score in scores if score is not None]
    return statistics.fmean(known) if known else None


def top_probabilities(logits: np.ndarray) -> np.ndarray:
    """The highest probability of each example, float64 [N], from its logits float [N, C].

    >>> top_probabilities(np.log(np.array([[3.0, 1.0]]))).round(6).tolist()
    [0.75]
    """
    highest = logits.max(axis=1, keepdims=True).astype(np.float64)
    return 1 / np.exp(logits - highest).sum(axis=1)


@dataclass(frozen=True)
class CalibrationBin:
    """Predictions of similar confidence: their number, mean confidence and share that is correct; 0 if it is empty."""

    examples: int
    confidence: float
    accuracy: float


def calibration_bins(confidence: np.ndarray, correct: np.ndarray, bins: int = 15) -> list[CalibrationBin]:
    """Predictions in bins of equal width: (0, 1/bins], (1/bins, 2/bins] and so on.

    `confidence` float [N] is the top probability of each prediction, and `correct` bool [N] says whether it is right.

    >>> calibration_bins(np.array([0.5, 0.6, 0.9]), np.array([True, True, False]), bins=2)[1]
    CalibrationBin(examples=2, confidence=0.75, accuracy=0.5)
    """
    # Without the first edge and the last one, so that 0 falls into the first bin and a rounded 1 into the last.
    member_of = np.digitize(confidence, np.arange(1, bins) / bins, right=True)
    result = []
    for number in range(bins):
        members = member_of == number
        count = int(members.sum())
        result.append(
            CalibrationBin(
                count,
                float(confidence[members].mean()) if count else 0.0,
                float(correct[members].mean()) if count else 0.0,
            )
        )
    return result


def expected_calibration_error(bins: Sequence[CalibrationBin]) -> float:
    """The difference between confidence and accuracy in each bin, averaged over the examples; 0 if there are none.

    Source: C. Guo, G. Pleiss, Y. Sun, K. Q. Weinberger, "On calibration of modern neural networks", ICML 2017, who use
    15 bins.

    >>> expected_calibration_error([CalibrationBin(3, 0.5, 0.75), CalibrationBin(1, 0.75, 0.75)])
    0.1875
    """
    total = sum(each.examples for each in bins)
    return sum(each.examples * abs(each.confidence - each.accuracy) for each in bins) / max(total, 1)
