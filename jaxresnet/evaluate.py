"""Evaluate a trained network on the test split: `python -m jaxresnet.evaluate runs/digits`.

It prints accuracy with its 95 % interval, loss and the accuracy of each class. It writes accuracies, loss and confusion
matrix to evaluation.json (or evaluation_best.json, evaluation_STEP.json) in the workdir, and nothing else there. In
place of the folder of a run it takes a safetensors file. If the data is not that of the training, the workdir stays as
it is: with --data.dir all images are compared, else their numbers.
"""

if __name__ == "__main__":  # first, because the imports below take half a second
    from jaxresnet.errors import begin_command

    begin_command()

import argparse
import contextlib
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from jaxresnet.config.files import find_config
from jaxresnet.config.flags import (
    ArgumentParser,
    add_data_argument,
    add_device_argument,
    add_distributed_arguments,
)
from jaxresnet.config.schema import setting_values
from jaxresnet.data.sources import reopen_source
from jaxresnet.errors import UserError, printable, run_command, tell
from jaxresnet.machine.hosts import find_peers
from jaxresnet.machine.hosts.launch import read_launch
from jaxresnet.machine.hosts.peers import Peers
from jaxresnet.machine.memory import require_address_space
from jaxresnet.machine.workarounds import own_process
from jaxresnet.plan import Plan, load_plan
from jaxresnet.trained.shipped import find_network

if TYPE_CHECKING:
    from jaxresnet.data.info import DatasetInfo
    from jaxresnet.data.splits import Source, Split
    from jaxresnet.runs.records import EvaluationRecord
    from jaxresnet.trained.load import TrainedNetwork


def main(argv: Sequence[str]) -> None:
    """Run the command with the arguments `argv`."""
    args = make_parser().parse(argv)
    if args.network and (args.workdir or args.weights):
        raise UserError("expected NETWORK, --workdir or --weights, found two of them", 2)
    if not (args.network or args.workdir or args.weights):
        raise UserError(
            "expected a trained network: NETWORK, --workdir or --weights, found none (see --help)", 2
        )
    if args.network:
        path = find_network(args.network)
        args.workdir, args.weights = (path, None) if path.is_dir() else (None, str(path))
    if args.weights and args.checkpoint:
        raise UserError(
            "--checkpoint: expected with the folder of a run, found with a file of weights",
            2,
        )
    if args.weights and args.average:
        raise UserError(
            "--average: expected with the folder of a run, found with a file of weights",
            2,
        )
    if args.workdir and args.config:
        raise UserError("--config: expected with a file of weights, found with a run, which has its own", 2)
    if args.batch_size is not None and args.batch_size < 1:
        raise UserError(f"--batch-size: expected at least 1, found {args.batch_size}", 2)

    require_address_space(2)
    own_process()
    with find_peers(read_launch(vars(args))) as peers:
        asked = {
            f"--{name.replace('_', '-')}": getattr(args, name) for name in ("batch_size", "tta", "average")
        }
        peers.require_same(asked, 2)
        plan = load_plan(args.config, args.data_dir) if args.config else None
        evaluate_command(args, plan, peers)


def make_parser() -> ArgumentParser:
    """The command line's arguments."""
    parser = ArgumentParser(prog="python -m jaxresnet.evaluate", description=__doc__)
    parser.add_argument(
        "network",
        nargs="?",
        metavar="NETWORK",
        help="folder of a run, safetensors file of weights, or name of weights that are shipped with the package",
    )
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--workdir", type=Path, metavar="DIR", help="folder of the run")
    source.add_argument(
        "--weights",
        metavar="FILE|NAME",
        help="safetensors file of weights, or name of weights that are shipped",
    )
    parser.add_argument(
        "--config",
        type=find_config,
        metavar="FILE|NAME",
        help="configuration of the weights, for a file that has none in it, such as one written by PyTorch",
    )
    parser.add_argument(
        "--checkpoint",
        metavar="latest|best|STEP",
        help="checkpoint to evaluate; best: most accurate on the split evaluated in training (default: latest)",
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="JSON file to write (default: evaluation.json in the workdir; none with --weights, or if the data is not "
        "that of the training)",
    )
    parser.add_argument(
        "--batch-size", type=int, metavar="INT", help="images per step; it does not change the result"
    )
    parser.add_argument(
        "--tta",
        choices=["none", "flip", "six"],
        default="none",
        help="test-time augmentation, told beside the plain result. flip: the mean of an image's logits and of its "
        "mirror image's. six: these, and the image shifted by a pixel up and left, and down and right, each "
        "with its mirror image (default: none)",
    )
    parser.add_argument(
        "--average",
        action="store_true",
        help="evaluate the average of the weights that the run keeps (optimizer.ema_decay)",
    )
    add_data_argument(parser)
    add_device_argument(parser)
    add_distributed_arguments(parser)
    return parser


def evaluate_command(args: argparse.Namespace, plan: Plan | None, peers: Peers) -> None:
    """Load, evaluate, print and write, as the parsed arguments say; `plan` is that of --config. Raises UserError.

    With `peers`, each process loads the network and the data, evaluates its part, and process 0 writes.
    """
    # Imported here, so that --help and a wrong flag are answered at once.
    from jaxresnet.data.splits import load_split
    from jaxresnet.learning.learner import make_learner
    from jaxresnet.machine.cache import use_compilation_cache
    from jaxresnet.machine.devices import available_cores, replicate, start_devices
    from jaxresnet.machine.memory import out_of_memory_told
    from jaxresnet.network.cpu_convolution import convolution_for
    from jaxresnet.runs.records import write_evaluation
    from jaxresnet.runs.workdir import Workdir
    from jaxresnet.trained.evaluation import evaluate_whole, evaluation_record

    devices = Workdir(args.workdir).require_config().cpu_devices if args.workdir else 0
    mesh = start_devices(args.device, max(1, peers.told(devices or available_cores()) // peers.count))
    peers.meet(mesh)
    use_compilation_cache()
    network, output = load_chosen(args, plan)
    source = reopen_source(network.config, args.data_dir)
    split = peers.in_turn(lambda: load_split(source, "test", expected=network.info))
    batch_size = args.batch_size or network.config.batch_size
    if peers.count > 1:
        require_same_network(peers, network, split)
    variables = replicate(mesh, network.variables)
    with out_of_memory_told(batch_size, mesh, "lower --batch-size"):
        learner = make_learner(network.plan, convolution_for(mesh))
        metrics = evaluate_whole(learner, variables, split, batch_size, mesh)
        record = evaluation_record(
            network.plan, metrics, network.checkpoint, network.step, network.selected_on
        )
        record = dataclasses.replace(record, average=args.average)
        if args.tta != "none":
            of_views = evaluate_whole(learner, variables, split, batch_size, mesh, args.tta)
            record = dataclasses.replace(
                record, tta=args.tta, tta_loss=of_views.loss, tta_accuracy=of_views.accuracy
            )
    print(as_text(record), flush=True)  # before what may go to the same place, such as /dev/stdout
    if output is not None and peers.first:
        whole = bool(args.data_dir)
        if output != args.output and (
            reason := other_data(network.info, source, whole=whole) or later_step(output, record)
        ):
            tell(f"note: {reason}: {output.name} stays as it is; --output names a file")
            return
        try:
            write_evaluation(output, record, named=output == args.output)
        except OSError as error:
            raise UserError(f"cannot write {output}: {error.strerror}") from None
        print(f"written to {output}")


def load_chosen(args: argparse.Namespace, plan: Plan | None) -> "tuple[TrainedNetwork, Path | None]":
    """The network that the parsed arguments name, on this process's devices, and the file to write, if there is one."""
    from jaxresnet.exporting.origin import find_origin
    from jaxresnet.runs.workdir import Workdir
    from jaxresnet.trained.load import load_run, load_weights_file

    if not args.workdir:
        path = find_network(args.weights)
        network = load_weights_file(path, plan=plan)
        selected_on = find_origin(path, network).selected_on
        return dataclasses.replace(network, selected_on=selected_on), args.output
    checkpoint = args.checkpoint or "latest"
    network = load_run(args.workdir, checkpoint, average=args.average)
    return network, args.output or Workdir(args.workdir).evaluation_path(checkpoint, average=args.average)


def other_data(info: "DatasetInfo", source: "Source", *, whole: bool) -> str:
    """That a data set is another one than `info` is of, in words; empty if it is the same (`changed_data`).

    A network can be evaluated on other images of the same classes, but that is not the result of its run.
    """
    from jaxresnet.data.splits import changed_data

    try:
        news = changed_data(info, source, whole=whole)
    except UserError as error:
        news = f"its training images cannot be compared: {str(error).splitlines()[0]}"
    return f"not the data of the training ({news})" if news else ""


def later_step(path: Path, record: "EvaluationRecord") -> str:
    """That the evaluation in a file is of a later step than `record`, in words; empty if it is not.

    So it is if the run has ended since its checkpoint was loaded.
    """
    from jaxresnet.runs.records import read_evaluation

    with contextlib.suppress(UserError, OSError):  # what is damaged is replaced
        found = read_evaluation(path)
        if found and found.step is not None and record.step is not None and found.step > record.step:
            return f"it holds step {found.step:,}, which is later"
    return ""


def require_same_network(peers: Peers, network: "TrainedNetwork", split: "Split") -> None:
    """Raise UserError if another process has loaded another network, or other images."""
    from jaxresnet.runs.files import to_json
    from jaxresnet.runs.integrity import checksum, text_checksum

    plan = [setting_values(network.config), to_json(network.info)]
    peers.require_same(
        {
            "the network's step": network.step,
            "its configuration's SHA-256": text_checksum(json.loads(json.dumps(plan))),
            "its weights' SHA-256": checksum(network.variables),
            "the test images' SHA-256": checksum(split),
        }
    )


def as_text(record: "EvaluationRecord") -> str:
    """The evaluation as lines to print, with accuracies in percent."""
    from jaxresnet.reporting.text import interval_of

    known = [] if record.step is None else [f"step {record.step:,}"]
    known += [f"chosen on the {printable(record.selected_on)} split"] if record.selected_on else []
    classes = {printable(name): accuracy for name, accuracy in record.per_class_accuracy.items()}
    width = max(map(len, classes))
    step = f" ({', '.join(known)})" if known else ""
    lines = [
        f"checkpoint {printable(record.checkpoint)}{step}{', average of the weights' if record.average else ''}",
        f"{record.split} accuracy {record.accuracy:.2%} ({interval_of(record.accuracy, record.examples)}), "
        f"loss {record.loss:.4f}, {record.examples:,} images",
    ]
    if record.tta:
        lines.append(
            f"{record.split} accuracy with --tta {record.tta} {record.tta_accuracy:.2%}, loss {record.tta_loss:.4f}"
        )
    lines += [
        f"  {name:{width}} {'-' if accuracy is None else f'{accuracy:.2%}':>8}"
        for name, accuracy in classes.items()
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    run_command(main)
