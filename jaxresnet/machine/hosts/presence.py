"""Which processes of a run are there: each gives signs of life, and leaves word when it fails."""

import itertools
import json
import os
import threading
import time
from typing import Any

from jaxresnet.errors import Interrupted, UserError, exit_now, tell
from jaxresnet.machine.workarounds import before_abort

BEAT_SECONDS = 0.5
"""Between two signs of life. Each is two small messages to process 0."""

SILENT_SECONDS = 3.0
"""Without a sign of life for so long, a process is taken for lost once a connection to some process has broken."""

GRACE_SECONDS = 5.0
"""Time for this process to end by itself after another one has failed: to finish what it is saving. It may not know,
because it waits for that process in a computation on the devices."""


class Presence:
    """The signs of life of all processes, in the key-value store of JAX's coordinator, which is in process 0.

    `client` is JAX's connection to it. A thread gives this process's signs and watches the others'. `failure` is None
    until another process has failed, was stopped, or was silent for `timeout` seconds. If this process is then still
    there after GRACE_SECONDS, the thread prints the reason and ends it.
    """

    def __init__(self, client: Any, index: int, count: int, timeout: float):
        self._client, self._index, self._count, self._timeout = client, index, count, timeout
        self.failure: UserError | Interrupted | None = None
        self._lost: set[int] = set()
        self._seen = {peer: ("", time.monotonic()) for peer in range(count) if peer != index}
        self._beats, self._deadline = itertools.count(), 0.0
        self._stopped, self._ending, self._code = threading.Event(), threading.Lock(), None
        before_abort(self._aborted)
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raise what `failure` is, if it is something."""
        if self.failure:
            raise self.failure

    def broken(self) -> UserError | Interrupted | None:
        """Why a computation with the other processes broke; None if all of them are there."""
        self._timeout = SILENT_SECONDS
        until = time.monotonic() + SILENT_SECONDS + 4 * BEAT_SECONDS
        while not self.failure and time.monotonic() < until:
            time.sleep(0.05)
        return self.failure

    def leave(self, code: int, message: str) -> None:
        """Leave word that this process ends with an error, unless it does so because of another one's.

        From now on the process ends by itself. Process 0 waits until the others have heard, because JAX ends them when
        it is gone.
        """
        with self._ending:
            self._code = code
        try:
            if not self.failure:
                word = json.dumps({"code": code, "message": message.partition("\n")[0]})
                self._client.key_value_set(f"left/{self._index}", word)
            until = time.monotonic() + SILENT_SECONDS
            while self._index == 0 and time.monotonic() < until and not self._all_know():
                time.sleep(0.05)
        except Exception:  # of several types: the coordinator is gone, and nobody hears
            return

    def stop(self) -> None:
        """Give no more signs of life, because all processes have come to their end."""
        with self._ending:
            self._code = 0
        self._stopped.set()
        self._thread.join()

    def _all_know(self) -> bool:
        words = {key for place in ("left/", "heard/") for key, _ in self._client.key_value_dir_get(place)}
        know = {int(key.partition("/")[2]) for key in words}
        return know | self._lost | {self._index} >= set(range(self._count))

    def _watch(self) -> None:
        missed = 0
        while not self._stopped.wait(BEAT_SECONDS):
            try:
                self._client.key_value_set(
                    f"alive/{self._index}", str(next(self._beats)), allow_overwrite=True
                )
                if not self.failure:
                    self._note(dict(self._client.key_value_dir_get("alive/")))
                    self._hear(dict(self._client.key_value_dir_get("left/")))
                    if self.failure:
                        self._client.key_value_set(f"heard/{self._index}", "")
                missed = 0
            except (
                Exception
            ):  # of several types; JAX ends this process soon, but not at once if the network is slow
                missed += 1
                if missed * BEAT_SECONDS >= self._timeout and not self.failure:
                    self._fail(self._lost_error(0))
            if self.failure and time.monotonic() > self._deadline:
                self._end(self.failure)

    def _note(self, alive: dict[str, str]) -> None:
        """Note the signs of life, and who gives none any more."""
        now = time.monotonic()
        for peer, (before, since) in self._seen.items():
            value = alive.get(f"alive/{peer}", "")
            if value != before:
                self._seen[peer] = value, now
            elif now - since > self._timeout:
                self._fail(self._lost_error(peer))

    def _hear(self, left: dict[str, str]) -> None:
        """Note who has left with an error."""
        for key, value in left.items():
            peer, word = int(key.partition("/")[2]), json.loads(value)
            if peer == self._index or self.failure:
                continue
            message = f"process {peer} of {self._count} ended: {word['message']}"
            code = word["code"]
            self._fail(Interrupted(message, code - 128) if code > 128 else UserError(message, code))

    def _fail(self, failure: UserError | Interrupted) -> None:
        self._deadline = time.monotonic() + GRACE_SECONDS
        self.failure = failure

    def _lost_error(self, peer: int) -> UserError:
        self._lost.add(peer)
        return UserError(
            f"process {peer} of {self._count} was lost: it was killed, or its computer or the network failed; what was "
            "saved before is intact: run the same command again to go on, also with another number of processes that "
            "divides the batch"
        )

    def _end(self, failure: UserError | Interrupted) -> None:
        """End the process, unless it is ending by itself."""
        with self._ending:
            if self._code is None:
                if isinstance(failure, UserError):
                    tell(f"error: {failure}")
                elif self._index == 0:
                    tell(str(failure))
                exit_now(failure.exit_code)

    def _aborted(self) -> None:
        """JAX's engine ends this process: it lost process 0, or process 0 lost another one before this thread did."""
        if self._code is None:
            self._end(self.failure or self._lost_error(0 if self._index else self._quietest()))
        time.sleep(SILENT_SECONDS)  # it is ending by itself
        os._exit(self._code or 0)

    def _quietest(self) -> int:
        return min(self._seen, key=lambda peer: self._seen[peer][1])
