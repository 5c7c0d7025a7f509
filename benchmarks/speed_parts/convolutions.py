"""Each distinct convolution of the network and its two gradients, as they are computed in a run."""

import functools
import statistics
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxresnet.machine.devices import replicated
from jaxresnet.network.blocks import Convolution
from jaxresnet.network.cpu_convolution import make_convolution
from jaxresnet.network.resnet import build_model
from jaxresnet.plan import Plan
from speed_parts.timing import in_turns


class Shape(NamedTuple):
    """A convolution's kernel size and stride, the side of its input's maps, and its channels, in and out."""

    kernel: int
    stride: int
    size: int
    channels: int
    features: int

    def __str__(self) -> str:
        return (
            f"{self.kernel}x{self.kernel}/{self.stride}, {self.channels} to {self.features}, "
            f"{self.size}x{self.size}"
        )


def measure_convolutions(plan: Plan, mesh: Mesh, seconds: float) -> list[dict[str, Any]]:
    """GFLOP/s by the definition of each distinct convolution: forward, gradient of the inputs, of the kernel; ours."""
    rows, convolve = [], make_convolution(mesh.devices.size)
    for shape, count in convolutions_of(plan).items():
        arrays = random_arrays(plan.config.batch_size, shape, mesh)
        forward, to_inputs, to_kernel = jitted(convolve, shape, mesh)
        functions = {
            "forward": functools.partial(repeat, forward, arrays[:2]),
            "inputs": functools.partial(repeat, to_inputs, arrays),
            "kernel": functools.partial(repeat, to_kernel, arrays),
        }
        times = in_turns(functions, 3, seconds)
        outputs = plan.config.batch_size * (shape.size // shape.stride) ** 2 * shape.features
        flops = 2 * outputs * shape.kernel**2 * shape.channels
        rates = {name: flops / 1e9 / statistics.median(values) for name, values in times.items()}
        rows.append({"convolution": str(shape), "count": count, **rates})
    return rows


def convolutions_of(plan: Plan) -> Counter[Shape]:
    """The network's convolutions, in the order of the data, and how often each is there."""
    found: Counter[Shape] = Counter()

    def record(next_call: Callable, args: tuple, kwargs: dict, context: nn.module.InterceptorContext) -> Any:
        if isinstance(context.module, nn.Conv) and context.method_name == "__call__":
            module: Any = context.module  # its sizes are pairs here, an int or None elsewhere
            size, channels = args[0].shape[1], args[0].shape[-1]
            found[Shape(module.kernel_size[0], module.strides[0], size, channels, module.features)] += 1
        return next_call(*args, **kwargs)

    model, image = build_model(plan), jax.ShapeDtypeStruct((1, *plan.info.image_shape), jnp.float32)
    with nn.intercept_methods(record):
        jax.eval_shape(lambda key, x: model.init(key, x, train=False), jax.random.key(0), image)
    return found


def random_arrays(batch: int, shape: Shape, mesh: Mesh) -> tuple[jax.Array, ...]:
    """Inputs, kernel and gradient of the outputs, placed as in a train step."""
    random, split = np.random.default_rng(0), NamedSharding(mesh, PartitionSpec("data"))
    side = shape.size // shape.stride

    def normal(*sizes: int) -> np.ndarray:
        return random.normal(size=sizes).astype(np.float32)

    inputs = normal(batch, shape.size, shape.size, shape.channels)
    kernel = normal(shape.kernel, shape.kernel, shape.channels, shape.features)
    gradient = normal(batch, side, side, shape.features)
    return (
        jax.device_put(inputs, split),
        jax.device_put(kernel, replicated(mesh)),
        jax.device_put(gradient, split),
    )


def jitted(convolve: Convolution, shape: Shape, mesh: Mesh) -> tuple[Callable, Callable, Callable]:
    """Jitted: outputs; gradient of the inputs; gradient of the kernel."""
    padding = ((shape.kernel // 2,) * 2,) * 2

    def forward(inputs: jax.Array, kernel: jax.Array) -> jax.Array:
        return convolve(inputs, kernel, (shape.stride,) * 2, padding, precision=jax.lax.Precision.HIGHEST)

    def to_inputs(inputs: jax.Array, kernel: jax.Array, gradient: jax.Array) -> jax.Array:
        return jax.vjp(lambda x: forward(x, kernel), inputs)[1](gradient)[0]

    def to_kernel(inputs: jax.Array, kernel: jax.Array, gradient: jax.Array) -> jax.Array:
        return jax.vjp(lambda k: forward(inputs, k), kernel)[1](gradient)[0]

    return jax.jit(forward), jax.jit(to_inputs), jax.jit(to_kernel, out_shardings=replicated(mesh))


def repeat(function: Callable, arguments: tuple[jax.Array, ...], steps: int) -> None:
    """Call a jitted function that often and wait for it."""
    result = None
    for _ in range(steps):
        result = function(*arguments)
        if jax.default_backend() == "cpu":
            # Calls that do not depend on each other run at once there, and can wait for each other for ever in
            # their all-reduces.
            jax.block_until_ready(result)
    jax.block_until_ready(result)
