"""Evaluate a trained network on the test split: `python -m jaxresnet.evaluate --workdir runs/digits`.

Prints accuracy, loss and a table by class, and writes them with the confusion matrix to evaluation.json
(evaluation_best.json, evaluation_STEP.json) in the workdir. Nothing else there is touched. Instead of a
workdir it takes a safetensors file: `--weights FILE`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxresnet.config import ArgumentParser, Config, add_device_argument
from jaxresnet.errors import UserError, run_command
from jaxresnet.memory import use_huge_pages


def main(argv: Sequence[str]) -> None:
    """Run the command with the arguments `argv`."""
    parser = ArgumentParser(prog="python -m jaxresnet.evaluate", description=__doc__)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--workdir", type=Path, metavar="DIR", help="folder of the run")
    source.add_argument(
        "--weights", type=Path, metavar="FILE", help="safetensors file with its configuration"
    )
    parser.add_argument(
        "--checkpoint",
        default="latest",
        metavar="latest|best|STEP",
        help="which checkpoint; best is the most accurate on the split evaluated in training (default: latest)",
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="JSON file to write (default: evaluation.json in the workdir; none with --weights)",
    )
    parser.add_argument(
        "--batch-size", type=int, metavar="INT", help="images at a time; no result depends on it"
    )
    add_device_argument(parser)
    args = parser.parse(argv)
    if args.batch_size is not None and args.batch_size < 1:
        raise UserError(f"--batch-size: expected at least 1, found {args.batch_size}", 2)

    # Here, so that --help and a wrong flag are answered at once.
    from jaxresnet.data import load_split
    from jaxresnet.inference import (
        evaluate,
        evaluation_record,
        fitting_batch_size,
        jit_eval_step,
        load_run,
        load_weights_file,
    )
    from jaxresnet.runtime import quiet_libraries, start_devices, telling_of_memory, use_compilation_cache
    from jaxresnet.workdir import Workdir, write_json

    quiet_libraries()
    devices = Workdir(args.workdir).require_config().cpu_devices if args.workdir else Config().cpu_devices
    mesh = start_devices(args.device, devices)
    use_compilation_cache()
    if args.workdir:
        run = load_run(args.workdir, mesh, args.checkpoint)
        output = args.output or Workdir(args.workdir).evaluation_path(args.checkpoint)
    else:
        run, output = load_weights_file(args.weights, mesh), args.output
    split = load_split(run.config.data, "test")
    batch_size = fitting_batch_size(args.batch_size or run.config.batch_size, split, mesh)
    with telling_of_memory(batch_size, mesh):
        metrics = evaluate(jit_eval_step(run.config, mesh), run.variables, split, batch_size, mesh)
    record = evaluation_record(run.config, metrics, run.checkpoint, run.step, run.selected_on)
    print(as_text(record))
    if output is None:
        return
    try:
        write_json(output, record)
    except OSError as error:
        raise UserError(f"cannot write {output}: {error.strerror}") from None
    print(f"written to {output}")


def as_text(record: dict[str, Any]) -> str:
    """The evaluation as lines for a person, accuracies in percent."""
    selection = f", chosen on the {record['selected_on']} split" if record["selected_on"] else ""
    width = max(len(name) for name in record["per_class_accuracy"])
    step = "" if record["step"] is None else f" (step {record['step']:,}{selection})"
    lines = [
        f"checkpoint {record['checkpoint']}{step}",
        f"{record['split']} accuracy {record['accuracy']:.2%}, loss {record['loss']:.4f}, "
        f"{record['examples']:,} images",
    ]
    lines += [
        f"  {name:{width}} {'-' if accuracy is None else f'{accuracy:.2%}':>8}"
        for name, accuracy in record["per_class_accuracy"].items()
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    use_huge_pages()
    run_command(main)
