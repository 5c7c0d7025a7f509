"""Speed on this machine: train step, evaluation, convolutions, input pipeline and a run's start, with their limits.

    python benchmarks/speed.py --output results/speed/cpu

JAX and PyTorch (if installed) train the same network on the same arrays in turns, a round each, so that what else the
machine does falls on all alike; a table gives medians, the range over the rounds, and the share of the rate at which
the device multiplies large matrices in the same process. Writes README.md and speed.json. --config and --batch-size
choose the network; --only steps convolutions ... some of the parts.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh

from jaxresnet import convolution
from jaxresnet.batch import Batch
from jaxresnet.comparison import as_markdown
from jaxresnet.config import Config, load_config
from jaxresnet.data import Split, load_split, train_batches
from jaxresnet.loop import compile_steps
from jaxresnet.memory import use_huge_pages
from jaxresnet.model import build_model, describe
from jaxresnet.runtime import describe_environment, quiet_libraries, replicated, shard_batch, start_devices
from jaxresnet.step import make_init
from jaxresnet.workdir import Workdir

ROOT = Path(__file__).parent.parent
REFERENCE = "PyTorch float32, eager"
PARTS = ("steps", "convolutions", "input", "start")


class Contender(NamedTuple):
    """One way to compute a step; `train(n)` and `evaluate(n)` take n steps and wait for them."""

    name: str
    train: Callable[[int], None]
    evaluate: Callable[[int], None]
    facts: dict[str, Any]


# --- what is measured -------------------------------------------------------------------------------------------------


def random_batch(config: Config, size: int) -> Batch:
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (size, *config.dataset.image_shape), np.uint8)
    labels = random.integers(0, len(config.dataset.class_names), size).astype(np.int32)
    return Batch(images, labels, np.ones(size, bool))


def jax_contender(config: Config, precision: str, mesh: Mesh) -> Contender:
    """The run's own two compiled steps."""
    config = Config.model_validate(config.model_dump() | {"precision": precision})
    train_step, eval_step, seconds = compile_steps(config, mesh)
    states = [jax.jit(make_init(config), out_shardings=replicated(mesh))()]
    empty = jax.tree.map(jnp.copy, states[0].metrics)
    batch = shard_batch(mesh, random_batch(config, config.batch_size))

    def train(steps: int) -> None:
        for _ in range(steps):
            states[0], _ = train_step(states[0], batch)
        jax.block_until_ready(states[0])

    def evaluate(steps: int) -> None:
        metrics = empty
        for _ in range(steps):
            metrics = eval_step(states[0].variables, metrics, batch)
        jax.block_until_ready(metrics)

    memory = train_step.memory_analysis().temp_size_in_bytes
    return Contender(
        f"JAX {precision}", train, evaluate, {"compile_seconds": seconds, "temporary_bytes": memory}
    )


def pytorch_contender(config: Config, precision: str, compiled: bool, device: str) -> Contender:
    """The twin in PyTorch's idiom, with the same normalisation on the device."""
    import torch
    from pytorch_twin import ResNet, make_optimizer

    torch.set_float32_matmul_precision("high" if precision == "tensorfloat32" else "highest")
    torch.backends.cudnn.allow_tf32 = precision == "tensorfloat32"
    torch.backends.cudnn.benchmark = True
    network = ResNet(config).to(device, memory_format=torch.channels_last)
    forward = torch.compile(network) if compiled else network
    optimizer = make_optimizer(config, network)
    batch = random_batch(config, config.batch_size)
    images = torch.from_numpy(batch.image).to(device)
    labels = torch.from_numpy(batch.label).long().to(device)
    mean = torch.tensor(config.dataset.mean, device=device).view(1, 3, 1, 1)
    std = torch.tensor(config.dataset.std, device=device).view(1, 3, 1, 1)
    autocast = torch.autocast(device, torch.bfloat16, enabled=precision == "bfloat16")

    def logits() -> Any:
        return forward((images.permute(0, 3, 1, 2) / 255 - mean) / std)

    def wait() -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    def train(steps: int) -> None:
        network.train()
        for _ in range(steps):
            optimizer.zero_grad()
            with autocast:
                loss = torch.nn.functional.cross_entropy(logits(), labels)
            loss.backward()
            optimizer.step()
        wait()

    def evaluate(steps: int) -> None:
        network.eval()
        with torch.no_grad(), autocast:
            for _ in range(steps):
                logits()
        wait()

    began = time.monotonic()
    train(1)
    evaluate(1)
    name = f"PyTorch {precision}, {'compiled' if compiled else 'eager'}"
    facts = {"compile_seconds": round(time.monotonic() - began, 1), "threads": torch.get_num_threads()}
    return Contender(name, train, evaluate, facts)


def contenders(config: Config, precisions: list[str], mesh: Mesh) -> Iterator[Contender | str]:
    """All that work here; a line for each that does not."""
    device = "cuda" if mesh.devices.flat[0].platform == "gpu" else "cpu"
    if device == "cpu":
        choice, convolution._left_to_xla = convolution._left_to_xla, lambda *_: True
        name = "JAX float32, all convolutions by XLA"
        yield jax_contender(config, "float32", mesh)._replace(name=name)
        convolution._left_to_xla = choice
    for precision in precisions:
        yield jax_contender(config, precision, mesh)
        for compiled in (False, True):
            try:
                yield pytorch_contender(config, precision, compiled, device)
            except Exception as error:  # PyTorch missing, no C++ compiler, ...
                reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
                yield f"PyTorch {precision}, {'compiled' if compiled else 'eager'}: {reason}"


def in_turns(
    functions: dict[str, Callable[[int], None]], rounds: int, seconds: float
) -> dict[str, list[float]]:
    """Seconds per step of each function in each round; a round of one takes about `seconds`, at least a step."""
    steps = {}
    for name, function in functions.items():
        function(1)
        began = time.perf_counter()
        function(1)
        steps[name] = max(1, round(seconds / (time.perf_counter() - began)))
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            function(1)  # untimed: after the others' turns it waits for memory, which steps in a row do not
            began = time.perf_counter()
            function(steps[name])
            times[name].append((time.perf_counter() - began) / steps[name])
    return times


def matrix_product(dtype: Any, device: jax.Device, size: int) -> tuple[Callable[[int], None], float]:
    """A product of two square matrices on one device, and its floating-point operations."""
    matrix = jax.device_put(jnp.ones((size, size), dtype), device)
    product = jax.jit(lambda a, b: jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST))

    def run(steps: int) -> None:
        results = [product(matrix, matrix) for _ in range(steps)]
        jax.block_until_ready(results)

    return run, 2.0 * size**3


def measure_steps(
    config: Config, precisions: list[str], mesh: Mesh, rounds: int, seconds: float
) -> dict[str, Any]:
    """Images per second of training and evaluating, and the ceiling, all in turns."""
    skipped, found = [], []
    for contender in contenders(config, precisions, mesh):
        skipped.append(contender) if isinstance(contender, str) else found.append(contender)
    on_cpu = mesh.devices.flat[0].platform == "cpu"
    product, operations = matrix_product(jnp.float32, mesh.devices.flat[0], 2048 if on_cpu else 8192)
    macs = sum(layer.macs for layer in describe(config))
    rows = []
    for what in ("train", "evaluate"):
        functions = {contender.name: getattr(contender, what) for contender in found}
        times = in_turns(functions | {"ceiling": product}, rounds, seconds)
        ceiling = operations / statistics.median(times["ceiling"])
        per_image = (6 if what == "train" else 2) * macs
        for contender in found:
            rates = [config.batch_size / t for t in times[contender.name]]
            rate = statistics.median(rates)
            rows.append(
                {
                    "what": what,
                    "name": contender.name,
                    "images_per_second": rate,
                    "lowest": min(rates),
                    "highest": max(rates),
                    "share_of_ceiling": rate * per_image / ceiling,
                    **contender.facts,
                }
            )
        rows.append({"what": what, "name": "float32 matrix product", "gflops_per_second": ceiling / 1e9})
    return {"rows": rows, "skipped": skipped}


def measure_convolutions(config: Config, mesh: Mesh, seconds: float) -> list[dict[str, Any]]:
    """GFLOP/s by the definition of each distinct convolution: forward, gradient of the inputs, of the kernel; ours."""
    found: dict[tuple, int] = {}

    def record(next_call: Callable, args: tuple, kwargs: dict, context: nn.module.InterceptorContext) -> Any:
        output = next_call(*args, **kwargs)
        module = context.module
        if isinstance(module, nn.Conv) and context.method_name == "__call__":
            key = (
                module.kernel_size[0],
                module.strides[0],
                args[0].shape[1],
                args[0].shape[-1],
                module.features,
            )
            found[key] = found.get(key, 0) + 1
        return output

    model, image = build_model(config), jax.ShapeDtypeStruct((1, *config.dataset.image_shape), jnp.float32)
    with nn.intercept_methods(record):
        jax.eval_shape(lambda key, x: model.init(key, x, train=False), jax.random.key(0), image)
    rows = []
    convolve = convolution.make_convolution(mesh.devices.size)
    for (kernel, stride, size, channels, features), count in found.items():
        arrays = random_arrays(config.batch_size, kernel, stride, size, channels, features, mesh)
        forward, to_inputs, to_kernel = gradients_of(convolve, kernel, stride, mesh)
        functions = {
            "forward": lambda steps, f=forward, a=arrays: repeat(f, steps, *a[:2]),
            "inputs": lambda steps, f=to_inputs, a=arrays: repeat(f, steps, *a),
            "kernel": lambda steps, f=to_kernel, a=arrays: repeat(f, steps, *a),
        }
        times = in_turns(functions, 3, seconds)
        macs = config.batch_size * (size // stride) ** 2 * kernel**2 * channels * features
        rates = {name: 2e-9 * macs / statistics.median(values) for name, values in times.items()}
        label = f"{kernel}x{kernel}/{stride}, {channels} to {features}, {size}x{size}"
        rows.append({"convolution": label, "count": count, **rates})
    return rows


def random_arrays(
    batch: int, kernel: int, stride: int, size: int, channels: int, features: int, mesh: Mesh
) -> tuple[jax.Array, ...]:
    """Inputs, kernel and gradient of the outputs, placed as in a train step."""
    random = np.random.default_rng(0)
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    inputs = random.normal(size=(batch, size, size, channels)).astype(np.float32)
    weights = random.normal(size=(kernel, kernel, channels, features)).astype(np.float32)
    gradient = random.normal(size=(batch, size // stride, size // stride, features)).astype(np.float32)
    return (
        jax.device_put(inputs, split),
        jax.device_put(weights, replicated(mesh)),
        jax.device_put(gradient, split),
    )


def gradients_of(
    convolve: Callable, kernel: int, stride: int, mesh: Mesh
) -> tuple[Callable, Callable, Callable]:
    """Jitted: outputs; gradient of the inputs; gradient of the kernel."""
    padding = ((kernel // 2,) * 2,) * 2

    def forward(inputs: jax.Array, weights: jax.Array) -> jax.Array:
        return convolve(inputs, weights, (stride,) * 2, padding, precision=jax.lax.Precision.HIGHEST)

    def to_inputs(inputs: jax.Array, weights: jax.Array, gradient: jax.Array) -> jax.Array:
        return jax.vjp(lambda x: forward(x, weights), inputs)[1](gradient)[0]

    def to_kernel(inputs: jax.Array, weights: jax.Array, gradient: jax.Array) -> jax.Array:
        return jax.vjp(lambda w: forward(inputs, w), weights)[1](gradient)[0]

    return jax.jit(forward), jax.jit(to_inputs), jax.jit(to_kernel, out_shardings=replicated(mesh))


def repeat(function: Callable, steps: int, *arguments: jax.Array) -> None:
    for _ in range(steps):
        result = function(*arguments)
        if jax.default_backend() == "cpu":
            # Calls that do not depend on each other run at once there, and can wait for each other for ever in
            # their all-reduces.
            jax.block_until_ready(result)
    jax.block_until_ready(result)


def measure_input(config: Config, rounds: int, seconds: float) -> list[dict[str, Any]]:
    """Images per second of the pipeline: whole, without each operation, and a common one for each example."""
    augment = config.augment.model_dump()
    off = {"horizontal_flip": False, "crop_padding": 0, "rotation_degrees": 0.0, "brightness": 0.0}
    split = load_split(config.data, "train")
    variants = {"all operations": augment}
    variants |= {f"without {name}": augment | {name: value} for name, value in off.items()}
    variants["no operation"] = off
    streams = {
        name: train_batches(
            Config.model_validate(config.model_dump() | {"augment": values, "epochs": 10_000}), split
        )
        for name, values in variants.items()
    }
    streams["one example at a time, in tf.data"] = example_batches(config, split)

    def draw(stream: Iterator) -> Callable[[int], None]:
        def run(steps: int) -> None:
            for _ in range(steps):
                next(stream)

        return run

    functions = {name: draw(stream) for name, stream in streams.items()}
    for function in functions.values():
        function(20)  # past what was prepared ahead
    times = in_turns(functions, rounds, seconds)
    return [
        {"pipeline": name, "images_per_second": config.batch_size / statistics.median(values)}
        for name, values in times.items()
    ]


def example_batches(config: Config, split: Split) -> Iterator:
    """The same operations as most tf.data pipelines do them: on each example, then batched."""
    import tensorflow as tf

    settings = config.augment

    def augment(image: Any, label: Any) -> tuple:
        image = tf.image.random_flip_left_right(image)
        pad = settings.crop_padding
        image = tf.image.random_crop(
            tf.pad(image, [[pad, pad], [pad, pad], [0, 0]]), config.dataset.image_shape
        )
        angle = tf.random.uniform([], -settings.rotation_degrees, settings.rotation_degrees) * (np.pi / 180)
        center = (config.dataset.image_shape[0] - 1) / 2
        cosine, sine = tf.cos(angle), tf.sin(angle)
        across, down = center - cosine * center + sine * center, center - sine * center - cosine * center
        transform = tf.stack([cosine, -sine, across, sine, cosine, down, 0.0, 0.0])[None]
        image = tf.raw_ops.ImageProjectiveTransformV3(
            images=image[None],
            transforms=transform,
            output_shape=config.dataset.image_shape[:2],
            interpolation="NEAREST",
            fill_mode="CONSTANT",
            fill_value=0.0,
        )[0]
        factor = tf.random.uniform([], 1 - settings.brightness, 1 + settings.brightness)
        return tf.cast(tf.clip_by_value(tf.cast(image, tf.float32) * factor, 0, 255), tf.uint8), label

    data = tf.data.Dataset.from_tensor_slices((split.images, split.labels)).repeat()
    data = data.shuffle(10_000).map(augment, num_parallel_calls=tf.data.AUTOTUNE)
    return data.batch(config.batch_size, drop_remainder=True).prefetch(tf.data.AUTOTUNE).as_numpy_iterator()


def measure_start(config_file: Path, config: Config, device: str) -> list[dict[str, Any]]:
    """The whole command on a tenth of the training images, with an empty and with a filled compilation cache.

    The first step's time is known to the first epoch's end: its line's time, less the epoch's own seconds.
    """
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(Path(folder, "cache"))}
        held_out = config.dataset.train_examples * 9 // 10
        for cache in ("empty", "filled"):
            workdir = Path(folder, cache)
            command = [
                sys.executable,
                "-m",
                "jaxresnet.train",
                "--config",
                str(config_file),
                "--device",
                device,
            ]
            command += ["--workdir", str(workdir), "--epochs", "1", "--batch-size", str(config.batch_size)]
            command += ["--data.validation-examples", str(held_out), "--evaluation.split", "none"]
            began = time.time()
            subprocess.run(command, env=environment, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
            total = time.time() - began
            record = Workdir(workdir).metrics()[0]
            ended = (workdir / "metrics.jsonl").stat().st_mtime
            start = Workdir(workdir).environment()[-1]
            rows.append(
                {
                    "compilation_cache": cache,
                    "seconds_to_first_step": ended - began - record["seconds"],
                    "compile_seconds": start["compile_seconds"],
                    "images_per_second": record["images_per_second"],
                    "seconds": total,
                }
            )
    return rows


# --- what is written --------------------------------------------------------------------------------------------------


def table(rows: list[dict[str, Any]], columns: dict[str, str]) -> str:
    """Rows as a Markdown table; `columns` gives each key its heading."""

    def cell(value: Any) -> str:
        if isinstance(value, float):
            return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.1f}"
        return "" if value is None else str(value)

    return as_markdown([list(columns.values()), *([cell(row.get(key)) for key in columns] for row in rows)])


def step_row(row: dict[str, Any], rows: list[dict[str, Any]]) -> dict[str, Any]:
    """A row of the tables of steps, with what is reckoned from others."""
    if "images_per_second" not in row:
        return {"name": f"{row['name']}: {row['gflops_per_second']:,.0f} GFLOP/s"}
    reference = [each for each in rows if each["name"] == REFERENCE and each["what"] == row["what"]]
    more: dict[str, Any] = {
        "range": f"{row['lowest']:,.0f} to {row['highest']:,.0f}",
        "ceiling": f"{row['share_of_ceiling']:.0%}",
    }
    if "temporary_bytes" in row:
        more["memory"] = f"{row['temporary_bytes'] / 2**20:,.0f}"
    if reference:
        more["ratio"] = f"{row['images_per_second'] / reference[0]['images_per_second']:.2f}"
    return row | more


def report(results: dict[str, Any]) -> str:
    """The report of what was measured."""
    environment = results["environment"]
    devices = environment["devices"]
    versions = ", ".join(f"{name} {results['versions'][name]}" for name in results["versions"])
    parts = [
        "# Speed",
        f"{environment['cpu']}, {environment['cpu_cores']} cores; {len(devices)} x {devices[0]}; {versions}; batches "
        f"of {results['batch_size']}. Made by `{results['command']}`.",
    ]
    if "steps" in results:
        for what, title in (("train", "Train step"), ("evaluate", "Evaluation step")):
            rows = [
                step_row(row, results["steps"]["rows"])
                for row in results["steps"]["rows"]
                if row["what"] == what
            ]
            columns = {"name": "", "images_per_second": "images/s, median", "range": "range"}
            columns |= {"ratio": "to PyTorch float32 eager", "ceiling": "of the matrix product's rate"}
            if what == "train":
                columns |= {"compile_seconds": "seconds to compile"}
                columns |= {"memory": "MiB of temporary arrays on each device"}
            parts += [f"## {title}", table(rows, columns)]
        parts += [f"Not measured: {line}" for line in results["steps"]["skipped"]]
    if "convolutions" in results:
        columns = {
            "convolution": "kernel/stride, channels, map",
            "count": "in the network",
            "forward": "forward",
        }
        columns |= {"inputs": "gradient of the inputs", "kernel": "gradient of the kernel"}
        parts += ["## Convolutions, GFLOP/s", table(results["convolutions"], columns)]
    if "input" in results:
        columns = {"pipeline": "", "images_per_second": "images/s"}
        parts += ["## Input pipeline", table(results["input"], columns)]
    if "start" in results:
        columns = {
            "compilation_cache": "compilation cache",
            "seconds_to_first_step": "seconds to the first step",
        }
        columns |= {"compile_seconds": "of them compiling, beside other things"}
        columns |= {"images_per_second": "images/s of the epoch", "seconds": "seconds of the whole command"}
        parts += [
            "## The whole command, one epoch of a tenth of the images",
            table(results["start"], columns),
        ]
    return "\n\n".join(parts) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--config", type=Path, default=ROOT / "configs" / "paper_coupled.toml")
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--cpu-devices", type=int)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--precisions", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each contender in each round")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    args = parser.parse_args()
    quiet_libraries()
    changed = {"batch_size": args.batch_size, "cpu_devices": args.cpu_devices}
    config = load_config(args.config)
    config = Config.model_validate(config.model_dump() | {k: v for k, v in changed.items() if v})
    mesh = start_devices(args.device, config.cpu_devices)
    results: dict[str, Any] = {
        "command": " ".join(["python", "benchmarks/speed.py", *sys.argv[1:]]),
        "config": args.config.name,
        "batch_size": config.batch_size,
        "environment": describe_environment(mesh, "float32", sys.argv),
    }
    versions = results["environment"]["versions"]
    results["versions"] = {name: versions[name] for name in ("python", "jax", "flax") if name in versions}
    try:
        import torch

        results["versions"]["torch"] = torch.__version__
    except ImportError:
        pass
    args.output.mkdir(parents=True, exist_ok=True)

    def save() -> None:
        (args.output / "speed.json").write_text(json.dumps(results, indent=2) + "\n")
        (args.output / "README.md").write_text(report(results))

    measures = {
        "steps": lambda: measure_steps(config, args.precisions, mesh, args.rounds, args.seconds),
        "convolutions": lambda: measure_convolutions(config, mesh, min(args.seconds, 0.2)),
        "input": lambda: measure_input(config, args.rounds, args.seconds),
        "start": lambda: measure_start(args.config, config, args.device),
    }
    for part in args.only:
        print("measuring:", part, flush=True)
        results[part] = measures[part]()
        save()  # after each part, so that a stop loses one part at most
    print(report(results))


if __name__ == "__main__":
    use_huge_pages()
    main()
