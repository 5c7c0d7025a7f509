"""The section with the first training images."""

import itertools
from collections.abc import Sequence

from jaxresnet.config.schema import NO_AUGMENTATION
from jaxresnet.data.batches import Batch, train_batches
from jaxresnet.data.splits import Split
from jaxresnet.errors import UserError
from jaxresnet.plan import Plan
from jaxresnet.reporting.figures.drawing import picture
from jaxresnet.reporting.figures.images import image_grid
from jaxresnet.reporting.page import Picture, Section
from jaxresnet.reporting.sections.data import RunData
from jaxresnet.reporting.sections.paper import like_figure
from jaxresnet.reporting.text import one_line

EXAMPLES = 16
"""Number of images in a picture, as in the paper's Figures 2 and 6."""

LONGEST_CLASS_NAME = 12
"""Longest name of a class above an image, in characters; of a longer one the middle is left out."""


def images_section(data: RunData) -> Section:
    """The first training images, unchanged and as the first step gets them."""
    plan = data.plan
    title = "Training images"
    note = "The run's first images, and the same augmented." + like_figure(plan, "Figure 2")
    config = plan.config
    try:
        split = data.load("train")
    except UserError as error:
        return Section(title, note, remark=f"Not shown: {error}")
    unchanged = {**NO_AUGMENTATION, "resolution.sizes": (), "resolution.shares": ()}
    pictures = [
        first_images(
            "training_images.png", "As they are", plan.with_config(config.replace(unchanged)), split
        ),
        first_images("augmented_images.png", "Augmented", plan, split),
    ]
    return Section(title, note, pictures=pictures)


def first_images(name: str, caption: str, plan: Plan, split: Split) -> Picture:
    """The picture of the first images that a training by `plan` takes from `split`."""
    batches = train_batches(plan.config, split)
    few = list(itertools.islice(batches, -(-EXAMPLES // plan.config.batch_size)))
    images = [image for batch in few for image in batch.image][:EXAMPLES]
    titles = [title for batch in few for title in titles_of(batch, plan.info.class_names)][:EXAMPLES]
    return picture(name, caption, lambda: image_grid(images, titles))


def titles_of(batch: Batch, class_names: Sequence[str]) -> list[str]:
    """The class of each image; of one that is mixed from two, both with their shares."""
    names = [one_line(name, LONGEST_CLASS_NAME) for name in class_names]
    if batch.other is None:
        return [names[label] for label in batch.label]
    pairs = zip(batch.label, batch.other, batch.share, strict=True)
    return [
        names[label] if share == 1 else f"{names[label]} {share:.0%}\n{names[other]} {1 - share:.0%}"
        for label, other, share in pairs
    ]
