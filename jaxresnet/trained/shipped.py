"""Finding a network that a user names: the folder of a run, a file of weights, or weights shipped with the package."""

from pathlib import Path

from jaxresnet.errors import UserError

_PRETRAINED = Path(__file__).parent.parent / "pretrained"

EXPORTED_WEIGHTS = "model.safetensors"
"""The name of the weights in a folder as it is shared on model hubs."""


def shipped_weights() -> dict[str, Path]:
    """The files of the weights that are shipped with the package, by name."""
    return {path.stem: path for path in sorted(_PRETRAINED.glob("*.safetensors"))}


def find_network(name: Path | str) -> Path:
    """The folder of a run or the file of weights that `name` means: a path, or the name of shipped weights.

    If both exist, the path wins. A folder that holds model.safetensors and no run means that file. Raises UserError if
    there is nothing of that name.
    """
    if not str(name):  # as a path it would be the current folder
        raise UserError("expected the name of a network, found an empty one")
    path, shipped = Path(name), shipped_weights()
    exported = path / EXPORTED_WEIGHTS
    if exported.is_file() and not (path / "config.toml").exists():
        return exported
    if path.exists():
        return path
    if str(name) in shipped:
        return shipped[str(name)]
    names = f", or one of the shipped networks: {', '.join(shipped)}" if shipped else ""
    raise UserError(
        f"no network {name}: expected the folder of a run, or a safetensors file of weights{names}"
    )
