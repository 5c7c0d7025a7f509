"""The page as programs and browsers see it, from the command's start to Ctrl-C."""

import dataclasses
import logging.config
import os
import signal
import sys
import tempfile
import threading
import webbrowser
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import BROWSER, Tab, open_tab
from helpers import mesh_of
from PIL import Image

from jaxresnet import demo
from jaxresnet.errors import Interrupted, UserError
from jaxresnet.trained.load import TrainedNetwork, load_run
from jaxresnet.trained.weights import save_weights
from jaxresnet.web.answers import answer, find_examples

Visit = Callable[[Path, Callable[[str], Any]], Any]

TOO_WIDE = "each => each.checkVisibility() && each.getBoundingClientRect().right > innerWidth + 0.5"
"""The page cuts off what is wider than the window, so that its own width tells nothing."""


@pytest.fixture
def visit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Visit:
    """A function (network, visitor) that runs the command, calls `visitor(address)` when it serves, and ends it.

    It returns what the visitor returned. The command must end as one that Ctrl-C has stopped, and leave no file.
    """
    pytest.importorskip("gradio", reason="Gradio is not installed: pip install 'jaxresnet[demo]'")
    for name in ("GRADIO_TEMP_DIR", "GRADIO_ANALYTICS_ENABLED", "NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "")  # put back at the end
    # uvicorn's set-up of logging closes all handlers, and absl's then closes the stream that pytest has given it.
    monkeypatch.setattr(logging.config, "dictConfig", lambda _: None)
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))

    def run(network: Path, visitor: Callable[[str], Any]) -> Any:
        outcome = []

        def come_and_go(address: str) -> None:
            try:
                outcome.append(visitor(address))
            except BaseException as error:
                outcome.append(error)
            os.kill(os.getpid(), signal.SIGINT)

        def open_page(address: str) -> None:
            threading.Thread(target=come_and_go, args=[address], daemon=True).start()

        monkeypatch.setattr(webbrowser, "open", open_page)
        with pytest.raises(Interrupted) as stopped:
            demo.main([str(network), "--browser", "--device", "cpu"])
        assert stopped.value.exit_code == 130
        assert list((tmp_path / "temporary").iterdir()) == []
        [found] = outcome
        if isinstance(found, BaseException):
            raise found
        return found

    return run


def test_without_gradio_one_line_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(UserError, match=r"^the page needs Gradio: pip install 'jaxresnet\[demo\]'$") as error:
        demo.main(["runs/digits"])
    assert error.value.exit_code == 1


def test_a_port_is_a_number_that_there_is():
    with pytest.raises(UserError, match="--port: expected 0 to 65535, found 65536") as error:
        demo.main(["runs/digits", "--port", "65536"])
    assert error.value.exit_code == 2


def test_programs_get_the_same_numbers_also_at_once(
    visit: Visit,
    finished: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    network = load_run(finished, "latest", mesh_of(1))
    paths = [tmp_path / f"{number}.png" for number in range(4)]
    for number, path in enumerate(paths):
        pixels = np.random.default_rng(number).integers(0, 256, (40, 60, 3), np.uint8)
        Image.fromarray(pixels).save(path)
    (tmp_path / "broken.png").write_bytes(paths[0].read_bytes()[:500])

    fetched = []

    async def fetch(url: str, **_: object) -> str:
        fetched.append(url)
        return str(paths[0])

    def ask(address: str) -> tuple[list[Any], Any, Any]:
        from gradio import processing_utils  # pyright: ignore[reportMissingImports]
        from gradio_client import Client, handle_file  # pyright: ignore[reportMissingImports]

        monkeypatch.setattr(processing_utils, "async_ssrf_protected_download", fetch)

        client = Client(address, verbose=False, analytics_enabled=False, download_files=False)

        def predict(path: Path) -> Any:
            return client.predict(handle_file(str(path)), "squash", api_name="/predict")

        with ThreadPoolExecutor() as pool:
            found = list(pool.map(predict, paths))
        not_sent = client.predict({"path": str(paths[0])}, "crop", api_name="/predict")
        for scheme in ("http", "https"):
            elsewhere = {"path": f"{scheme}://example.com/a.png", "meta": {"_type": "gradio.FileData"}}
            with pytest.raises(Exception, match="found an address"):
                client.predict(elsewhere, "crop", api_name="/predict")
        return found, predict(tmp_path / "broken.png"), not_sent

    found, of_broken, of_not_sent = visit(finished, ask)
    for path, (label, seen) in zip(paths, found, strict=True):
        expected = answer(network, path, "squash").probabilities
        best = sorted(expected.items(), key=lambda item: -item[1])[:5]
        told = [(each["label"], each["confidence"]) for each in label["confidences"]]
        assert [name for name, _ in told] == [name for name, _ in best]
        np.testing.assert_allclose([share for _, share in told], [share for _, share in best], rtol=1e-4)
        assert seen["path"].endswith(".png")
    assert of_broken == of_not_sent == ({}, None)
    assert fetched == []
    out, err = capsys.readouterr()
    assert out.startswith("run, test accuracy ")
    assert "parameters, 10 classes of digits, sees 32x32 pixels: http://127.0.0.1:78" in out
    assert err == ""


def changeable(network: TrainedNetwork) -> TrainedNetwork:
    """The network with another bias of its last layer, such that the test set's examples are not all of one class."""
    logits = network.predict(np.stack([example.image for example in find_examples(network)]))
    head = network.variables["params"]["head"]
    params = network.variables["params"] | {"head": head | {"bias": head["bias"] - logits.mean(0)}}
    return dataclasses.replace(network, variables=network.variables | {"params": params})


def use(tab: Tab, address: str, pictures: Path, example: int) -> list[Any]:
    """What a phone shows as the answer for a picture, then for a broken one, then for an example that is clicked on.

    After the first answer stands the number of parts that are too wide.
    """
    shown = "document.querySelector('[data-testid=label-output-value]')?.innerText.trim()"
    screen = {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}
    tab.call("Emulation.setDeviceMetricsOverride", **screen)
    tab.call("Page.navigate", url=address)
    tab.wait_for("!!document.querySelector('input[type=file]')")
    tab.evaluate("document.querySelector('input[type=radio][value=squash]').click()")
    tab.choose_file("input[type=file]", pictures / "first.png")
    found = [tab.wait_for(shown)]
    tab.wait_for("document.querySelector('.seen img')?.naturalWidth === 256")
    everything = "[...document.querySelectorAll('.gradio-container *')]"
    found.append(tab.evaluate(f"{everything}.filter({TOO_WIDE}).length"))
    tab.evaluate("document.querySelector('[aria-label=\"Remove Image\"], [aria-label=Clear]').click()")
    tab.wait_for(f"!({shown})")
    tab.wait_for("!!document.querySelector('input[type=file]')")
    tab.choose_file("input[type=file]", pictures / "broken.png")
    tab.wait_for("document.body.innerText.includes('Not a picture that can be used: ')")
    found.append(tab.evaluate(shown) or "")
    tab.evaluate(f"document.querySelectorAll('.examples button')[{example}].click()")
    found.append(tab.wait_for(shown))
    return found


@pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")
def test_a_picture_is_dropped_in_a_browser(visit: Visit, finished: Path, tmp_path: Path):
    network = changeable(load_run(finished, "latest", mesh_of(1)))
    save_weights(tmp_path / "network.safetensors", network.plan, network.variables)
    images = [example.image for example in find_examples(network)]
    best = [network.class_names[label] for label in np.asarray(network.predict(np.stack(images))).argmax(1)]
    Image.fromarray(images[0].repeat(3, axis=0).repeat(9, axis=1)).save(tmp_path / "first.png")
    probabilities = answer(network, tmp_path / "first.png", "squash").probabilities
    first = max(probabilities, key=lambda name: probabilities[name])
    other = next(number for number in range(10) if best[number] != first)
    (tmp_path / "broken.png").write_bytes((tmp_path / "first.png").read_bytes()[:500])

    def look(address: str) -> tuple[list[Any], set[str], list[str]]:
        with open_tab(tmp_path / "profile") as tab:
            found = use(tab, address, tmp_path, other)
            return found, {each.split("/")[2].split(":")[0] for each in tab.requested()}, tab.complaints()

    found, hosts, complaints = visit(tmp_path / "network.safetensors", look)
    assert found == [first, 0, "", best[other]]
    assert hosts == {"127.0.0.1"}
    assert complaints == []
