"""scikit-learn's digits: real data that needs no download."""

from typing import TYPE_CHECKING, Literal

from jaxresnet.data.info import DatasetInfo

if TYPE_CHECKING:
    from jaxresnet.data.splits import Split

TEST_SHARE = 5
"""One of this many digits of each class is a test example."""

INFO = DatasetInfo(
    name="digits",
    image_shape=(32, 32, 3),
    class_names=tuple(str(digit) for digit in range(10)),
    train_examples=1_442,
    test_examples=355,
    mean=(0.3054, 0.3054, 0.3054),
    std=(0.3753, 0.3753, 0.3753),
)


class Digits:
    """8x8 grey images, enlarged to 32x32 by repeating pixels, with three equal channels.

    The last fifth of each class, in scikit-learn's order, is the test split. That order goes by writer, so most test
    digits are written by other people than the training digits.
    """

    info = outline = INFO
    at_hand = True

    def prepare(self) -> None:
        """Nothing to do: they come with scikit-learn."""

    def read(self, split: Literal["train", "test"]) -> "Split":
        """All examples of one split."""
        import numpy as np
        from sklearn.datasets import load_digits  # takes a second to import

        from jaxresnet.data.splits import Split

        images, target = load_digits(return_X_y=True)
        grey = np.round(np.asarray(images).reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
        images = np.repeat(np.repeat(grey, 4, axis=1), 4, axis=2)[..., None].repeat(3, axis=3)
        labels = np.asarray(target).astype(np.int32)
        test = np.zeros(len(labels), bool)
        for c in range(INFO.classes):
            members = np.flatnonzero(labels == c)
            test[members[len(members) - len(members) // TEST_SHARE :]] = True
        keep = test if split == "test" else ~test
        return Split(images[keep], labels[keep])
