"""What the processes of one run print: process 0 speaks, the others tell their errors with their number."""

import os
import re
import sys
import threading
from typing import Any, TextIO, cast

from jaxresnet.errors import tell

_DOOMED = ("coordination_service", "JAX distributed service")
"""JAX's engine says one of these on stderr, and twenty lines more, before it ends the process because another one is
lost. `jaxresnet.machine.hosts.presence` tells that in one line."""

_CONNECTING = re.compile(r"\[Gloo\]|peer ranks|^(\d| is connected to )+$")
"""What gloo says as it connects: "[Gloo] Rank 0 is connected to 5 peer ranks. …: 5". It writes words, numbers and the
line's end one after the other, and its threads into each other's lines, so that a number may be all there is of one."""


class Output:
    """Takes over this process's standard streams, for commands only.

    Process 0 keeps its stdout. The others' leads to nowhere, and each of their lines on stderr begins with their
    number. Libraries write to the streams' own numbers, 1 and 2. Their lines go to stderr, except those that gloo
    prints when it connects, and those of a process that is about to end.
    """

    def __init__(self) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        self._out, self._prefix, self._begun = os.dup(1), "", True
        self._err = open(os.dup(2), "w", encoding="utf-8", errors="backslashreplace")  # noqa: SIM115, PTH123
        read, write = os.pipe()
        os.dup2(write, 1)
        os.dup2(write, 2)
        os.close(write)
        sys.stderr = cast(TextIO, self)
        threading.Thread(target=self._forward, args=[read], daemon=True).start()

    def of_process(self, index: int) -> None:
        """Speak as process `index` from now on."""
        if index:
            self._prefix = f"process {index}: "
            os.close(self._out)
            self._out = os.open(os.devnull, os.O_WRONLY)
        sys.stdout = open(self._out, "w", encoding="utf-8", errors="backslashreplace")  # noqa: SIM115, PTH123

    def write(self, text: str) -> int:
        """Write text to stderr, with the prefix at the beginning of each line."""
        for line in text.splitlines(keepends=True):
            self._err.write((self._prefix if self._begun else "") + line)
            self._begun = line.endswith("\n")
        if self._begun:
            self._err.flush()
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._err, name)

    def _forward(self, read: int) -> None:
        doomed = False
        with open(read, encoding="utf-8", errors="backslashreplace") as lines:
            for line in lines:
                doomed = doomed or any(words in line for words in _DOOMED)
                if not doomed and line.strip() and not _CONNECTING.search(line):
                    tell(line.rstrip("\n"))
