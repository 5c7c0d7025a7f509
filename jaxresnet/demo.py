"""Try a trained network on pictures, on a local web page: `python -m jaxresnet.demo runs/digits`.

Drop a picture on the page, and it shows the most probable classes, and the image as the network sees it. The page needs
Gradio: `pip install 'jaxresnet[demo]'`. It asks no other server for anything. Ctrl-C ends it.
"""

if __name__ == "__main__":  # first, because the imports below take half a second
    from jaxresnet.errors import begin_command

    begin_command()

import argparse
import importlib.util
import os
import tempfile
import webbrowser
from collections.abc import Sequence

from jaxresnet.config.flags import (
    ArgumentParser,
    add_data_argument,
    add_device_argument,
    add_network_arguments,
)
from jaxresnet.errors import UserError, run_command, tell
from jaxresnet.machine.memory import require_address_space


def main(argv: Sequence[str]) -> None:
    """Run the command with the arguments `argv`."""
    parser = ArgumentParser(prog="python -m jaxresnet.demo", description=__doc__)
    add_network_arguments(parser)
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        metavar="ADDRESS",
        help="address to listen on; 0.0.0.0 lets everyone on the network use the page (default: 127.0.0.1)",
    )
    parser.add_argument(
        "--port", type=int, default=0, metavar="INT", help="port (default: the first free one from 7860)"
    )
    parser.add_argument("--browser", action="store_true", help="open the page in the browser of this machine")
    add_data_argument(parser)
    add_device_argument(parser)
    args = parser.parse(argv)
    if not 0 <= args.port <= 65_535:
        raise UserError(f"--port: expected 0 to 65535, found {args.port}", 2)
    if importlib.util.find_spec("gradio") is None:
        raise UserError("the page needs Gradio: pip install 'jaxresnet[demo]'")
    require_address_space(2)
    demo_command(args)


def demo_command(args: argparse.Namespace) -> None:
    """Load the network and serve its page until the command is stopped, which raises Interrupted.

    Raises UserError if there is no such network or the page cannot be served.
    """
    # Imported here, so that --help and a wrong flag are answered at once.
    from jaxresnet.machine.workarounds import own_process

    own_process()
    from jaxresnet.data.pictures import refuse_huge_pictures
    from jaxresnet.machine.cache import use_compilation_cache
    from jaxresnet.machine.devices import start_devices
    from jaxresnet.machine.signals import StopSignal
    from jaxresnet.trained.load import load_network
    from jaxresnet.web.answers import facts_of, find_examples, known_evaluation, network_name, warm_up
    from jaxresnet.web.page import Page, launch, load_gradio
    from jaxresnet.web.serving import find_place, serve

    refuse_huge_pictures()
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    place = find_place(args.host, args.port)
    mesh = start_devices(args.device, 1)
    use_compilation_cache()
    network = load_network(args.network, args.checkpoint, mesh, average=args.average)
    title = network_name(args.network)
    facts = facts_of(network, known_evaluation(args.network, network, average=args.average))
    try:
        examples = find_examples(network, args.data_dir)
    except (UserError, OSError) as error:
        tell(f"note: no examples on the page: {error}")
        examples = []
    warm_up(network)
    load_gradio()  # before StopSignal, so that Ctrl-C ends it at once

    with tempfile.TemporaryDirectory(prefix="jaxresnet-demo-", ignore_cleanup_errors=True) as folder:
        set_environment(folder, args.host)
        with StopSignal() as stop:
            blocks = launch(network, Page(title, facts, examples), args.host, place.port)
            address = blocks.local_url.rstrip("/")
            print(f"{title}, {', '.join(facts)}: {address} (Ctrl-C ends it)", flush=True)
            if not place.local:
                tell(
                    "warning: everyone on the network can use the page; without --host only this machine can"
                )
            if args.browser:
                webbrowser.open(address)
            serve(blocks.server, stop)


def set_environment(folder: str, host: str) -> None:
    """Set where Gradio keeps what it is sent, and that no proxy stands between it and its own page at `host`.

    Gradio asks the page once whether it answers.
    """
    unproxied = os.environ.get("no_proxy") or os.environ.get("NO_PROXY", "")
    direct = ",".join(filter(None, (unproxied, "localhost", host)))
    os.environ.update(GRADIO_TEMP_DIR=folder, NO_PROXY=direct, no_proxy=direct)


if __name__ == "__main__":
    run_command(main)
