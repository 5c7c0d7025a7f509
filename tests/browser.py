"""Chromium without a window, driven through pipes by its DevTools protocol (chromedevtools.github.io)."""

import contextlib
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

_SWITCHES = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run",
)  # fmt: skip


class Tab:
    """A page in a browser. `events` are the messages that the browser sent unasked."""

    def __init__(self, to_browser: int, from_browser: int):
        self._out, self._in = os.fdopen(to_browser, "wb"), os.fdopen(from_browser, "rb")
        self._buffer, self._number, self._session = b"", 0, ""
        self.events: list[dict[str, Any]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Network", "Runtime", "Log", "DOM", "Page"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """What a method of the protocol returns."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        message |= {"sessionId": self._session} if self._session else {}
        self._out.write(json.dumps(message).encode() + b"\0")
        self._out.flush()
        while (answer := self._next()).get("id") != self._number:
            self.events.append(answer)
        assert "error" not in answer, f"{method}: {answer['error']}"
        return answer["result"]

    def evaluate(self, expression: str) -> Any:
        """The value of an expression in JavaScript."""
        return self.call("Runtime.evaluate", expression=expression, returnByValue=True)["result"].get("value")

    def wait_for(self, expression: str, seconds: float = 30) -> Any:
        """The first value of an expression that is not empty."""
        end = time.monotonic() + seconds
        while not (value := self.evaluate(expression)):
            shown = self.evaluate("document.body.innerText")
            assert time.monotonic() < end, f"{expression} is not true; the page shows:\n{shown}"
            time.sleep(0.02)
        return value

    def choose_file(self, selector: str, path: Path) -> None:
        """Put a file into the input that the selector finds."""
        document = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=document, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", nodeId=node, files=[str(path)])

    def requested(self) -> list[str]:
        """The addresses that the page has asked for, data and blobs left out."""
        sent = (each["params"] for each in self.events if each.get("method") == "Network.requestWillBeSent")
        addresses = [each["request"]["url"] for each in sent]
        return [each for each in addresses if not each.startswith(("data:", "blob:"))]

    def complaints(self) -> list[str]:
        """Errors in the console, such as failed requests, violations of the page's policy and exceptions."""
        found = []
        for each in self.events:
            parameters = each.get("params", {})
            if each.get("method") == "Log.entryAdded" and parameters["entry"]["level"] == "error":
                found.append(f"{parameters['entry']['text']} {parameters['entry'].get('url', '')}")
            if each.get("method") == "Runtime.exceptionThrown":
                found.append(parameters["exceptionDetails"]["text"])
        return found

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            part = os.read(self._in.fileno(), 1 << 16)
            assert part, "the browser has ended"
            self._buffer += part
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)


@contextlib.contextmanager
def open_tab(profile: Path) -> Iterator[Tab]:
    """A tab of a browser that is started for it, with the folder of a new profile, and ended."""
    (read_there, to_browser), (from_browser, write_there) = os.pipe(), os.pipe()
    # The browser reads descriptor 3 and writes 4.
    script = f'exec "$@" 3<&{read_there} 4>&{write_there}'
    command = [str(BROWSER), *_SWITCHES, "--remote-debugging-pipe", f"--user-data-dir={profile}"]
    process = subprocess.Popen(
        ["bash", "-c", script, "bash", *command],
        pass_fds=(read_there, write_there),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(read_there)
    os.close(write_there)
    try:
        yield Tab(to_browser, from_browser)
    finally:
        process.kill()
        process.wait()
