"""What the paper reports of its network on CIFAR-10, to stand beside a run's own numbers."""

from collections.abc import Iterable

from jaxresnet.config.schema import Config
from jaxresnet.plan import Plan
from jaxresnet.trained.scores import macro_mean

PAPER_ACCURACIES = {
    "airplane": 0.93462,
    "automobile": 0.95661,
    "bird": 0.85762,
    "cat": 0.821619,
    "deer": 0.92862,
    "dog": 0.85562,
    "frog": 0.93862,
    "horse": 0.90262,
    "ship": 0.93562,
    "truck": 0.94362,
}
"""Test accuracy of each class of CIFAR-10: the paper's Table 1. Its text says 91.26 % and eight classes above 90 %."""

PAPER_TABLE_MEAN = macro_mean(PAPER_ACCURACIES.values()) or 0.0
"""Mean of the ten accuracies in the paper's Table 1."""


def above_90(accuracies: Iterable[float | None]) -> int:
    """The number of classes above 90 %.

    >>> above_90(PAPER_ACCURACIES.values())
    7
    """
    return sum(accuracy is not None and accuracy > 0.9 for accuracy in accuracies)


def is_papers_data(plan: Plan) -> bool:
    """Whether a run is trained on CIFAR-10, as the paper's network is."""
    return plan.info.name == "cifar10"


def like_figure(plan: Plan, figures: str) -> str:
    """A sentence that names the paper's figures with the same content; empty if the run's data is not CIFAR-10."""
    return f" Like the paper's {figures}." if is_papers_data(plan) else ""


def is_papers_network(plan: Plan) -> bool:
    """Whether a run trains the paper's network on the paper's data."""
    return is_papers_data(plan) and plan.config.model == Config().model
