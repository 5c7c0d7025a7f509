"""How a process finds the others of its run: from the command line, from the environment, or from what started it."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from jaxresnet.errors import UserError

PEER_TIMEOUT = 90
"""Seconds to wait for another process, if the command line does not say. Processes that are started together by one
command come within seconds, and a computer that is lost should not stop the others for more than two minutes."""

_VARIABLES = {
    "coordinator": "JAX_COORDINATOR_ADDRESS",
    "processes": "JAX_NUM_PROCESSES",
    "process_id": "JAX_PROCESS_ID",
}


@dataclass(frozen=True)
class Launch:
    """Where process 0 listens (HOST:PORT), how many processes there are, and the number of this one.

    What is None is found out by JAX, which knows Slurm, Open MPI and Kubernetes. `timeout`: see PEER_TIMEOUT.
    """

    coordinator: str | None
    processes: int | None
    process_id: int | None
    timeout: int = PEER_TIMEOUT

    @property
    def complete(self) -> bool:
        """Whether nothing is left to find out."""
        return None not in (self.coordinator, self.processes, self.process_id)


def read_launch(
    arguments: Mapping[str, str | None], environ: Mapping[str, str] = os.environ
) -> Launch | None:
    """The launch that the command line asks for; None without --distributed.

    `arguments` are the values of the flags that `jaxresnet.config.flags.add_distributed_arguments` adds, by name. A
    flag comes before the environment variable. Raises UserError (exit code 2) on a wrong value.
    """
    given = {name: arguments.get(name) for name in (*_VARIABLES, "peer_timeout")}
    if not arguments.get("distributed"):
        alone = next((name for name, value in given.items() if value is not None), None)
        if alone:
            raise UserError(f"--{alone.replace('_', '-')}: expected with --distributed", 2)
        return None
    named = {name: (f"--{name.replace('_', '-')}", value) for name, value in given.items()}
    for name, variable in _VARIABLES.items():
        if given[name] is None and environ.get(variable):
            named[name] = variable, environ[variable]
    coordinator = _address(*named["coordinator"])
    processes = _number(*named["processes"], lowest=1)
    process_id = _number(*named["process_id"], lowest=0)
    timeout = _number(*named["peer_timeout"], lowest=5)
    if processes is not None and process_id is not None and process_id >= processes:
        raise UserError(
            f"{named['process_id'][0]}: expected 0 to {processes - 1} with {processes} processes, found {process_id}",
            2,
        )
    return Launch(coordinator, processes, process_id, PEER_TIMEOUT if timeout is None else timeout)


def _address(name: str, value: str | None) -> str | None:
    """Raise UserError unless it is HOST:PORT, or None."""
    if value is not None:
        port = re.fullmatch(r"[^\s/]+:(\d{1,5})", value)
        if port is None or not 0 < int(port[1]) < 2**16:
            raise UserError(f"{name}: expected HOST:PORT, found {value}", 2)
    return value


def _number(name: str, value: str | None, lowest: int) -> int | None:
    if value is None:
        return None
    if not re.fullmatch(r"\d{1,6}", value) or int(value) < lowest:
        raise UserError(f"{name}: expected a whole number, at least {lowest}, found {value}", 2)
    return int(value)
