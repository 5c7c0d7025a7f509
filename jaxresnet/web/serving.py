"""Where the page is served, and how serving ends."""

import ipaddress
import os
import socket
import time
from typing import Any, NamedTuple, NoReturn

from jaxresnet.errors import UserError
from jaxresnet.machine.signals import Stop

FIRST_PORT = 7860
"""Gradio's usual port. The next ones are tried if it is taken."""

PORTS = 100

ENDING_SECONDS = 0.5
"""How long requests that still run may take when serving ends."""


class Place(NamedTuple):
    """A free port of a host. `local` is true if only programs of this machine can reach it."""

    port: int
    local: bool


def find_place(host: str, port: int) -> Place:
    """The port of `host`, a name or an address, if it is free; for port 0 the first free one from FIRST_PORT.

    Raises UserError if it is taken or cannot be listened on.
    """
    ports = [port] if port else range(FIRST_PORT, FIRST_PORT + PORTS)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    reason = ""
    for each in ports:
        try:
            with socket.create_server((host, each), family=family) as found:
                return Place(each, ipaddress.ip_address(found.getsockname()[0]).is_loopback)
        except OSError as error:
            reason = os.strerror(error.errno) if error.errno and error.errno > 0 else str(error)
    which = f"port {port}" if port else f"ports {FIRST_PORT} to {FIRST_PORT + PORTS - 1}"
    raise UserError(f"cannot listen on {which} of {host}: {reason}; --port 0 takes the first free one")


def serve(server: Any, stop: Stop) -> NoReturn:
    """Wait while a server of Gradio's runs in its thread. Raises Interrupted when `stop` is requested.

    Raises UserError if the server ends by itself.
    """
    while server.thread.is_alive():
        if stop.requested:
            server.should_exit = True
            server.thread.join(ENDING_SECONDS)
            raise stop.interrupted("stopped")
        time.sleep(0.05)
    raise UserError("the web server has ended by itself")
