"""ONNX: the whole prediction as a graph, by the `onnx` package.

Every BatchNorm is folded into the convolution before it, which it follows without anything between: that is what a
runtime would do itself, in float32, while it loads the graph.
"""

from pathlib import Path
from typing import Any

import jax
import numpy as np

import jaxresnet
from jaxresnet.errors import UserError
from jaxresnet.exporting.request import Reader, Request
from jaxresnet.network.blocks import EPSILON
from jaxresnet.runs.files import write_to_disk

OPSET, IR_VERSION = 17, 8
"""Those of ONNX 1.12 (June 2022), which all runtimes of today read. Later ones add nothing that is used here."""

MOST_BYTES = 2**31 - 1
"""A protobuf message, and so an ONNX file with its weights in it, cannot have more."""


class _Graph:
    """An ONNX graph that grows node by node. Each method returns the name of the value that its node computes."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.initializers: list[Any] = []

    def constant(self, name: str, array: np.ndarray) -> str:
        """A constant of the graph, in float32."""
        from onnx import numpy_helper  # pyright: ignore[reportMissingImports]

        self.initializers.append(numpy_helper.from_array(np.asarray(array, np.float32, order="C"), name))
        return name

    def node(self, operator: str, inputs: list[str], output: str, **attributes: Any) -> str:
        """A node with one output."""
        from onnx import helper  # pyright: ignore[reportMissingImports]

        self.nodes.append(helper.make_node(operator, inputs, [output], name=output, **attributes))
        return output

    def conv(self, inputs: str, output: str, conv: Any, norm: Any, stats: Any, stride: int) -> str:
        """A convolution with its BatchNorm folded in, padded as in PyTorch.

        `conv` and `norm` are the parameters of both layers in flax's layouts, `stats` the running statistics.
        """
        kernel = np.asarray(conv["kernel"], np.float64)
        factor = norm["scale"] / np.sqrt(np.asarray(stats["var"], np.float64) + EPSILON)
        bias = (conv.get("bias", 0.0) - np.asarray(stats["mean"], np.float64)) * factor + norm["bias"]
        side = (kernel.shape[0] - 1) // 2
        weights = [
            self.constant(f"{output}/kernel", (kernel * factor).transpose(3, 2, 0, 1)),
            self.constant(f"{output}/bias", bias),
        ]
        return self.node(
            "Conv",
            [inputs, *weights],
            output,
            strides=[stride] * 2,
            pads=[side] * 4,
            kernel_shape=kernel.shape[:2],
        )

    def block(self, inputs: str, name: str, params: Any, stats: Any, stride: int) -> str:
        """A residual block, `jaxresnet.network.blocks.ResidualBlock`."""

        def conv(inputs: str, layer: str, norm: str, stride: int) -> str:
            return self.conv(inputs, f"{name}/{layer}", params[layer], params[norm], stats[norm], stride)

        outputs = self.node("Relu", [conv(inputs, "conv1", "norm1", stride)], f"{name}/relu1")
        outputs = conv(outputs, "conv2", "norm2", 1)
        if "shortcut_conv" in params:
            inputs = conv(inputs, "shortcut_conv", "shortcut_norm", stride)
        return self.node("Relu", [self.node("Add", [outputs, inputs], f"{name}/add")], f"{name}/relu2")


def write(request: Request, path: Path) -> None:
    """Write the graph with its weights and metadata in one file.

    Raises UserError if the package onnx is missing or the network is too large for a file.
    """
    try:
        from onnx import TensorProto, helper  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise _missing() from None

    info = request.network.info
    variables = jax.device_get(request.network.variables)
    if (size := sum(leaf.nbytes for leaf in jax.tree.leaves(variables))) > MOST_BYTES:
        raise UserError(f"--format onnx: expected weights of at most {MOST_BYTES:,} bytes, found {size:,}")
    graph = _network(request, variables)
    value = helper.make_tensor_value_info
    model = helper.make_model(
        helper.make_graph(
            graph.nodes,
            "jaxresnet",
            [value("images", TensorProto.UINT8, ["batch", *info.image_shape])],
            [value(request.output_name, TensorProto.FLOAT, ["batch", info.classes])],
            graph.initializers,
        ),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="jaxresnet",
        producer_version=jaxresnet.__version__,
    )
    helper.set_model_props(model, request.metadata_texts())
    write_to_disk(path, "w", model.SerializeToString())


def _network(request: Request, variables: Any) -> _Graph:
    """The nodes from "images", uint8 [batch, H, W, C], to the outputs. `jaxresnet.network.resnet.ResNet` in words."""
    from onnx import TensorProto  # pyright: ignore[reportMissingImports]

    params, stats = variables["params"], variables["batch_stats"]
    info, model = request.network.info, request.network.config.model
    mean, std = (np.array(each)[:, None, None] for each in (info.mean, info.std))
    graph = _Graph()
    outputs = graph.node("Cast", ["images"], "cast", to=TensorProto.FLOAT)
    outputs = graph.node("Transpose", [outputs], "channels_first", perm=[0, 3, 1, 2])
    outputs = graph.node("Mul", [outputs, graph.constant("scale", 1 / (255 * std))], "scaled")
    outputs = graph.node("Sub", [outputs, graph.constant("offset", mean / std)], "normalised")
    outputs = graph.conv(outputs, "stem", params["stem_conv"], params["stem_norm"], stats["stem_norm"], 1)
    outputs = graph.node("Relu", [outputs], "stem/relu")
    for stage, (blocks, stride) in enumerate(zip(model.stage_blocks, model.stage_strides, strict=True)):
        for block in range(blocks):
            name = f"stage{stage}_block{block}"
            outputs = graph.block(outputs, name, params[name], stats[name], stride if block == 0 else 1)
    outputs = graph.node("Flatten", [graph.node("GlobalAveragePool", [outputs], "pooled")], "features")
    head = [graph.constant(f"head/{key}", params["head"][key]) for key in ("kernel", "bias")]
    outputs = graph.node("Gemm", [outputs, *head], "logits")
    if request.probabilities:
        graph.node("Softmax", [outputs], "probabilities", axis=1)
    return graph


def read(request: Request, path: Path) -> Reader:
    """The graph in a file, checked by onnx and computed by onnxruntime.

    Raises UserError if a package is missing, and what the checker raises.
    """
    try:
        import onnx  # pyright: ignore[reportMissingImports]
        import onnxruntime  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise _missing() from None

    content = path.read_bytes()  # neither library opens a path that is not UTF-8
    onnx.checker.check_model(onnx.load_from_string(content), full_check=True)
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return Reader(
        lambda images: session.run([request.output_name], {"images": images})[0],
        f"onnxruntime {onnxruntime.__version__}",
    )


def _missing() -> UserError:
    return UserError(
        "--format onnx: expected the packages onnx and onnxruntime, not found: pip install 'jaxresnet[onnx]'"
    )
