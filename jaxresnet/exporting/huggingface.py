"""The folder that a user uploads to the Hugging Face Hub: weights, config.json and a model card, README.md."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jaxresnet
from jaxresnet.config.files import dump_config, portable
from jaxresnet.disk import RECORD_LIMIT, read_file
from jaxresnet.errors import UserError, printable
from jaxresnet.exporting.request import Reader, Request
from jaxresnet.reporting.tables import as_markdown
from jaxresnet.reporting.text import escape_markdown, fenced, interval_of
from jaxresnet.runs.files import json_text, write_to_disk
from jaxresnet.trained.shipped import EXPORTED_WEIGHTS
from jaxresnet.trained.weights import save_weights

MODEL_TYPE = "jaxresnet"

HUB_DATA_SETS = {"cifar10": "uoft-cs/cifar10"}
"""The names of our data sets on the Hub, as far as they are there."""


def write(request: Request, path: Path) -> None:
    """Make the folder `path` with the three files."""
    path.mkdir()
    notes = {"origin": json.dumps(request.metadata()["origin"])}
    network = request.network
    save_weights(path / EXPORTED_WEIGHTS, network.plan, network.variables, half=request.half, notes=notes)
    write_to_disk(path / "config.json", "w", json_text(_config(request)))
    write_to_disk(path / "README.md", "w", model_card(request, path.name, _USE))


def read(request: Request, path: Path) -> Reader:
    """The network of a folder, by jaxresnet.load."""
    return request.read_weights(path)


def require_ours(path: Path) -> None:
    """Raise UserError unless the folder `path` may be filled: there is none, it is empty, or it was exported before.

    Hidden files, such as .git of a repository that was cloned from the Hub, may be in it.
    """
    if not path.is_dir() or all(entry.name.startswith(".") for entry in path.iterdir()):
        return
    try:
        found = json.loads(read_file(path / "config.json", RECORD_LIMIT))
    except (OSError, ValueError, RecursionError):
        found = None
    if not (isinstance(found, dict) and found.get("model_type") == MODEL_TYPE):
        raise UserError(
            f"{path}: expected a new or empty folder, or one that was exported before, found another: name another OUT"
        )


def _config(request: Request) -> dict[str, Any]:
    info = request.network.info
    height, width, channels = info.image_shape
    return {
        "architectures": ["ResNet"],
        "model_type": MODEL_TYPE,
        "num_labels": info.classes,
        "id2label": {str(index): name for index, name in enumerate(info.class_names)},
        "label2id": {name: index for index, name in enumerate(info.class_names)},
        "image_size": height if height == width else [height, width],
        "num_channels": channels,
        "image_mean": list(info.mean),
        "image_std": list(info.std),
        "settings": portable(request.network.config).model_dump(mode="json"),
        "jaxresnet_version": jaxresnet.__version__,
    }


def _front_matter(request: Request, name: str, licence: str | None) -> str:
    """The card's metadata as YAML. Each value is JSON, which is YAML too."""
    info, origin = request.network.info, request.origin
    hub_name = HUB_DATA_SETS.get(info.name)
    matter: dict[str, Any] = {
        **({"license": licence} if licence else {}),
        "library_name": "jaxresnet",
        "pipeline_tag": "image-classification",
        "tags": ["jax", "flax", "resnet", "image-classification"],
    }
    if hub_name:
        matter["datasets"] = [hub_name]
    if origin.accuracy is not None:
        data_set = {
            "name": printable(info.name),
            "type": hub_name or printable(info.name),
            "split": origin.split,
        }
        result = {
            "task": {"type": "image-classification"},
            "dataset": data_set,
            "metrics": [{"type": "accuracy", "value": round(origin.accuracy, 6)}],
        }
        matter["metrics"] = ["accuracy"]
        matter["model-index"] = [{"name": printable(name), "results": [result]}]
    lines = [f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in matter.items()]
    return "\n".join(["---", *lines, "---"])


def model_card(
    request: Request, name: str, use: str, notes: Sequence[str] = (), licence: str | None = None
) -> str:
    """The model card in Markdown: what it is, how to use it, how accurate it is, how it was trained, its limits.

    `use` is the section on its use, and `notes` are paragraphs on its accuracy. `licence` is that of the weights, as
    the Hub names it ("mit"); of a network of others it is not known.
    """
    info, config = request.network.info, request.network.config
    height, width, channels = info.image_shape
    data_set = escape_markdown(info.name)
    sections = [
        _front_matter(request, name, licence),
        f"# {escape_markdown(name)}",
        f"A compact residual network with {request.network.parameters:,} trainable parameters, in JAX and Flax. It "
        f"classifies images of {height} x {width} pixels with {channels} channels into the {info.classes} classes of "
        f"{data_set}.",
        "## Use",
        use,
        f"It takes uint8 images [B, {height}, {width}, {channels}] and normalises them itself. The weights have the "
        "names and layouts of PyTorch.",
        "## Accuracy",
        *_accuracy(request),
        *notes,
        "## Training",
        _training(request),
        fenced(dump_config(portable(config))),
        "## Limits",
        f"It knows the classes of {data_set} only, and gives one of them for any image. {_seen(request)}",
    ]
    if licence:
        sections += [
            "## Licence",
            f"{licence.upper()}, as the package. It is of the weights, not of the data.",
        ]
    return "\n\n".join(sections) + "\n"


_USE = """```python
import huggingface_hub
import numpy as np

import jaxresnet

network = jaxresnet.load(huggingface_hub.snapshot_download("USER/NAME"))  # or this folder
images = np.zeros((1, *network.info.image_shape), np.uint8)
probabilities = network.probabilities(images)
print(network.class_names[int(probabilities[0].argmax())])
```

`config.json` has the classes, the image size, mean and standard deviation."""


def _accuracy(request: Request) -> list[str]:
    """The paragraphs on the accuracy."""
    origin = request.origin
    if origin.accuracy is None:
        return ["It was not measured."]
    words = [f"{origin.accuracy:.2%} on the {escape_markdown(origin.split or 'test')} split"]
    if origin.examples:
        words[0] += f", {origin.examples:,} images, {interval_of(origin.accuracy, origin.examples)}"
    words[0] += "."
    if origin.selected_on:
        optimistic = ", so this accuracy is optimistic" if origin.selected_on == origin.split else ""
        words.append(
            f"The checkpoint is the best of its run on the {escape_markdown(origin.selected_on)} split{optimistic}."
        )
    if request.half or origin.half:
        words.append("It was measured before the kernels were rounded to float16.")
    paragraphs = [" ".join(words)]
    if origin.per_class_accuracy:
        rows = [("class", "accuracy")]
        rows += [
            (escape_markdown(name), "-" if accuracy is None else f"{accuracy:.2%}")
            for name, accuracy in origin.per_class_accuracy.items()
        ]
        paragraphs.append(as_markdown(rows))
    return paragraphs


def _seen(request: Request) -> str:
    """On which images it is at home."""
    if not request.origin.known:
        return "On images unlike those that it was trained on it may be much less accurate."
    info, plan = request.network.info, request.network.plan
    return (
        f"It was {'trained' if request.origin.accuracy is None else 'trained and measured'} on images of "
        f"{info.image_shape[0]} x {info.image_shape[1]} pixels of that data set"
        f"{', at first on smaller ones' if len(plan.phases) > 1 else ''}; on others it may be much less accurate."
    )


def _training(request: Request) -> str:
    """What leads in the configuration: which program trained the network, and which checkpoint it is."""
    origin = request.origin
    if not origin.known:
        return "It is not known how it was trained. This configuration describes the network."
    program = "`python -m jaxresnet.train`"
    if origin.version:
        program += f" of jaxresnet {escape_markdown(origin.version)}"
    if origin.commit:
        program += f", commit {escape_markdown(origin.commit)}{' with changes' if origin.dirty else ''}"
    checkpoint = ""
    if origin.step is not None:
        checkpoint = f" It is the state after step {origin.step:,}"
        checkpoint += ", with the average of the weights." if origin.average else "."
    if origin.initial:
        checkpoint += f" The training began with the weights of {escape_markdown(origin.initial)}."
    if origin.frozen_stages:
        checkpoint += f" The stem and the first {origin.frozen_stages} of its stages kept these weights."
    return f"By {program}, with this configuration.{checkpoint}"
