"""What every format is given to write, and what it gives back to be compared."""

import dataclasses
import functools
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

import jaxresnet
from jaxresnet.config.files import dump_config, portable
from jaxresnet.exporting.origin import Origin
from jaxresnet.runs.files import to_json
from jaxresnet.trained.load import TrainedNetwork, load_network


class Reader(NamedTuple):
    """A network that was read from what was written: `outputs` maps uint8 images [B, H, W, C] to [B, classes].

    `by` names the program that computes them.
    """

    outputs: Callable[[np.ndarray], Any]
    by: str


@dataclass(frozen=True)
class Request:
    """A network to export, with its origin.

    With `probabilities` the outputs are probabilities in place of logits. With `half` the kernels are float16.
    """

    network: TrainedNetwork
    origin: Origin
    probabilities: bool = False
    half: bool = False

    @functools.cached_property
    def exact(self) -> TrainedNetwork:
        """The network in float32, which all exports compute in, whatever it was trained in."""
        plan = self.network.plan
        return dataclasses.replace(
            self.network, plan=plan.with_config(plan.config.replace({"precision": "float32"}))
        )

    @functools.cached_property
    def outputs(self) -> Callable[[Any, Any], jax.Array]:
        """The jitted function (variables, uint8 images [B, H, W, C]) -> the outputs [B, classes], in float32."""

        def outputs(variables: Any, images: Any) -> jax.Array:
            logits = self.exact.apply(variables, images)
            return jax.nn.softmax(logits) if self.probabilities else logits

        return jax.jit(outputs)

    @property
    def output_name(self) -> str:
        """What the outputs are: "logits" or "probabilities"."""
        return "probabilities" if self.probabilities else "logits"

    def metadata(self) -> dict[str, Any]:
        """The facts that travel with the network, as JSON values. What is not known is left out."""
        info, config = self.network.info, self.network.config
        origin = {key: value for key, value in to_json(self.origin).items() if value is not None}
        return {
            "input": {"name": "images", "dtype": "uint8", "shape": ["batch", *info.image_shape]},
            "output": {"name": self.output_name, "dtype": "float32", "shape": ["batch", info.classes]},
            "class_names": list(info.class_names),
            "mean": list(info.mean),
            "std": list(info.std),
            "data_set": info.name,
            "origin": origin,
            "config": dump_config(portable(config)),
            "exported_by": f"jaxresnet {jaxresnet.__version__}",
        }

    def metadata_texts(self) -> dict[str, str]:
        """The metadata for formats that take only texts: what is not a text is JSON."""
        return {
            key: value if isinstance(value, str) else json.dumps(value)
            for key, value in self.metadata().items()
        }

    def read_weights(self, path: Path) -> Reader:
        """A reader of a safetensors file of ours, or of a folder with one. Raises UserError if it is damaged."""
        loaded = load_network(path, mesh=self.network.mesh)
        return Reader(lambda images: self.outputs(loaded.variables, images), "jaxresnet.load")
