"""A description of the network's layers, taken from the network itself: names, shapes, parameters, work."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.traverse_util import flatten_dict

from jaxresnet.data.resolution import Size
from jaxresnet.network.resnet import build_model
from jaxresnet.plan import Plan


@dataclass(frozen=True)
class LayerInfo:
    """One layer of the network.

    `name` is its path in the network, such as "stage0_block0/conv1"; `kind` is "Conv", "BatchNorm" or "Dense".
    `output_shape` leaves out the batch. `parameters` is their number. `macs` is the number of multiply-accumulates of
    a convolution or linear layer for one image. It is 0 for BatchNorm, whose work is small in comparison.
    """

    name: str
    kind: str
    output_shape: tuple[int, ...]
    parameters: int
    macs: int


def describe(plan: Plan, size: Size | None = None) -> list[LayerInfo]:
    """Every layer with parameters, in the order in which the data passes them. Nothing is computed.

    The images have `size`, by default the data's own.

    >>> from jaxresnet.config.schema import Config
    >>> from jaxresnet.data.sources.cifar10 import INFO
    >>> from jaxresnet.plan import resolve
    >>> f"{sum(layer.parameters for layer in describe(resolve(Config(), INFO))):,}"
    '4,985,386'
    """
    model = build_model(plan)
    *own, channels = plan.info.image_shape
    image = jax.ShapeDtypeStruct((1, *(size or own), channels), jnp.float32)
    calls: list[tuple[str, tuple[str, ...], tuple[int, ...]]] = []

    def record(next_call: Callable, args: tuple, kwargs: dict, context: nn.module.InterceptorContext) -> Any:
        output = next_call(*args, **kwargs)
        module = context.module
        if context.method_name == "__call__" and isinstance(module, nn.Conv | nn.Dense | nn.BatchNorm):
            calls.append((type(module).__name__, tuple(map(str, module.path)), output.shape[1:]))
        return output

    with nn.intercept_methods(record):
        variables = jax.eval_shape(lambda key, x: model.init(key, x, train=False), jax.random.key(0), image)
    params = cast(dict[tuple[str, ...], Any], flatten_dict(variables["params"]))
    layers = []
    for kind, path, shape in calls:
        own = {key[-1]: leaf for key, leaf in params.items() if key[:-1] == path}
        # Each output position takes one product for every entry of the kernel.
        macs = math.prod(shape[:-1]) * own["kernel"].size if "kernel" in own else 0
        parameters = sum(leaf.size for leaf in own.values())
        layers.append(LayerInfo("/".join(path), kind, shape, parameters, macs))
    return layers


def macs_of_phases(plan: Plan) -> list[int]:
    """Multiply-accumulates for one image in each of the plan's phases."""
    return [sum(layer.macs for layer in describe(plan, phase.size)) for phase in plan.phases]
