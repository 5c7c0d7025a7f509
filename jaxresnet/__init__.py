"""A compact CIFAR-10 ResNet in JAX and Flax.

Importing the package loads no heavy library; `jaxresnet.config` loads neither JAX nor TensorFlow.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from jaxresnet.trained.load import TrainedNetwork

__version__ = "0.2.0"


def load(
    network: "Path | str", checkpoint: str | int | None = None, *, average: bool = False
) -> "TrainedNetwork":
    """Load a trained network: the folder of a run, a safetensors file, or the name of one that is shipped.

    `checkpoint` chooses among those of a run: "latest" (the default), "best" or the number of a step. With `average`,
    the weights are the average that the run keeps. The network is put on all devices of this process. Nothing else in
    the process is changed. Raises `jaxresnet.errors.UserError` if there is no such network or it is damaged.

    >>> import numpy as np
    >>> network = load("runs/digits")
    >>> images = np.zeros((2, *network.info.image_shape), np.uint8)
    >>> network.predict(images).shape
    (2, 10)
    >>> network.class_names[:3]
    ('0', '1', '2')
    """
    from jaxresnet.trained.load import load_network

    return load_network(network, checkpoint, average=average)
