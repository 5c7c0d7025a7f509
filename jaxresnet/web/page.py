"""The page: a picture in, the probabilities of its classes out. The only module that uses Gradio."""

import html
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxresnet.data.pictures import Fit
from jaxresnet.errors import UserError, printable
from jaxresnet.reporting.text import escape_markdown
from jaxresnet.trained.load import TrainedNetwork
from jaxresnet.web.answers import Example, answer

BARS = 5
"""The number of classes that have a bar."""

LARGEST_FILE = "20mb"
"""The most that a browser may send as a picture. `refuse_huge_pictures` bounds the number of its pixels."""

KEPT_SECONDS = 600
"""How long pictures that were sent are kept at least; at most twice as long."""

CSS = """
.gradio-container > .main { max-width: 64rem !important; padding: 1rem !important }
.seen img, .examples img { image-rendering: pixelated }
.examples .grid-wrap { min-height: 0 !important; max-height: none !important }
.examples .grid-container {
  grid-template-columns: repeat(auto-fill, minmax(max(4.4rem, 9%), 1fr)) !important; padding: 0 }
.examples button { height: auto; aspect-ratio: auto; display: block }
.examples .caption-label { position: static; max-width: none; border: 0; border-radius: 0; text-align: center }
"""

UNWANTED = (
    *("share", "inline", "inbrowser", "debug", "show_error", "run_history"),
    *("enable_monitoring", "ssr_mode", "mcp_server", "pwa"),
)
"""Gradio's features that the page does without. Some are on by default, others if an environment variable says so."""

POLICY = b"default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:"
"""The content security policy: a browser asks no other server for anything."""


class OnlyThisServer:
    """ASGI middleware that puts POLICY on every answer."""

    def __init__(self, app: Any):
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer a request."""

        async def send_with_policy(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"content-security-policy", POLICY)]
            await send(message)

        await self._app(scope, receive, send_with_policy)


@dataclass(frozen=True)
class Page:
    """What the page shows of a network beside its answers: its name, what is known about it, and examples."""

    title: str
    facts: Sequence[str]
    examples: Sequence[Example]


def load_gradio() -> None:
    """Import Gradio, which takes seconds."""
    import gradio  # noqa: F401 # pyright: ignore[reportMissingImports]


def launch(network: TrainedNetwork, page: Page, host: str, port: int) -> Any:
    """Serve the page of a network in a thread, also to gradio_client. Returns Gradio's Blocks, once they answer.

    Gradio keeps what it is sent in the folder GRADIO_TEMP_DIR. It reports nothing to its makers, and opens no tunnel.
    Raises OSError if the port is not free.
    """
    from gradio import themes  # pyright: ignore[reportMissingImports]
    from starlette.middleware import Middleware  # pyright: ignore[reportMissingImports]

    blocks = _blocks(network, page)
    blocks.launch(
        server_name=f"[{host}]" if ":" in host else host,
        server_port=port,
        app_kwargs={"middleware": [Middleware(OnlyThisServer)]},
        theme=themes.Default(font=("system-ui", "sans-serif"), font_mono=("ui-monospace", "monospace")),
        css=CSS,
        max_file_size=LARGEST_FILE,
        prevent_thread_lock=True,
        footer_links=[],
        quiet=True,
        **dict.fromkeys(UNWANTED, False),
    )
    return blocks


def _blocks(network: TrainedNetwork, page: Page) -> Any:
    """The parts of the page, and what they do."""
    import gradio as gr  # pyright: ignore[reportMissingImports]

    def predict(sent: dict[str, Any] | None, fit: Fit) -> tuple[dict[str, float] | None, np.ndarray | None]:
        path = _path_of(sent, picture.GRADIO_CACHE)
        if path is None:
            return None, None
        try:
            found = answer(network, path, fit)
        except UserError as error:
            reason = printable(str(error).removeprefix(f"{path}: "))
            gr.Warning(html.escape(f"Not a picture that can be used: {reason}"), title="No answer")
            return None, None
        return found.probabilities, found.seen

    def choose(event: gr.SelectData) -> np.ndarray:
        return page.examples[event.index].image

    ages = (KEPT_SECONDS, KEPT_SECONDS)
    with gr.Blocks(title=page.title, analytics_enabled=False, delete_cache=ages) as blocks:
        gr.Markdown(f"# {escape_markdown(page.title)}\n{escape_markdown(' · '.join(page.facts))}")
        with gr.Row():
            with gr.Column(scale=4, min_width=280):
                picture, fit = _inputs()
            with gr.Column(scale=4, min_width=280):
                bars = gr.Label(label="The network's answer", num_top_classes=BARS)
            with gr.Column(scale=3, min_width=240):
                seen = _seen()
        if page.examples:
            gr.Markdown("Images of the test set with their true classes. Click on one.")
            _gallery(page.examples).select(choose, None, picture, api_visibility="private")
        gr.Markdown(_limits(network, page))
        # Without Gradio's preprocessing, which opens the file and tells no reason if it cannot.
        asked = [picture.change, fit.change]
        gr.on(asked, predict, [picture, fit], [bars, seen], preprocess=False, api_name="predict")
    return blocks


def _path_of(sent: dict[str, Any] | None, folder: str) -> Path | None:
    """The path of a picture that was sent and is kept in `folder`.

    None for any other file of this machine: Gradio 6.31 lets a program name one.
    """
    path = sent.get("path") if sent else None
    return Path(path) if path and Path(path).resolve().is_relative_to(Path(folder).resolve()) else None


def _inputs() -> tuple[Any, Any]:
    """The place for a picture, and the choice of how it is fitted."""
    import gradio as gr  # pyright: ignore[reportMissingImports]

    picture = gr.Image(label="Picture", format="png", sources=["upload", "clipboard"], height=320, buttons=[])
    _refuse_addresses(picture)
    choices = [("crop it", "crop"), ("squash it", "squash")]
    return picture, gr.Radio(choices, value="crop", label="If it is not square")


def _refuse_addresses(component: Any) -> None:
    """Refuse web addresses in place of a file for a component.

    Gradio 6.31 would download what is there, of any size, before the page's own function is called.
    """
    import gradio as gr  # pyright: ignore[reportMissingImports]
    from gradio_client.utils import is_http_url_like  # pyright: ignore[reportMissingImports]

    keep = component.async_move_resource_to_block_cache

    async def keep_file(path: str | Path | None) -> str | None:
        if is_http_url_like(str(path)):
            raise gr.Error("expected a picture that was sent, found an address", print_exception=False)
        return await keep(path)

    component.async_move_resource_to_block_cache = keep_file


def _seen() -> Any:
    """The place for the image that the network is given."""
    import gradio as gr  # pyright: ignore[reportMissingImports]

    label = "What the network sees"
    return gr.Image(label=label, format="png", interactive=False, buttons=[], elem_classes="seen")


def _gallery(examples: Sequence[Example]) -> Any:
    """A row of images to click on, with their true classes."""
    import gradio as gr  # pyright: ignore[reportMissingImports]

    return gr.Gallery(
        [(each.image, each.true_class) for each in examples],
        show_label=False,
        format="png",
        allow_preview=False,
        interactive=False,
        columns=10,
        height="auto",
        buttons=[],
        elem_classes="examples",
    )


def _limits(network: TrainedNetwork, page: Page) -> str:
    """What the network cannot know, in Markdown."""
    no_examples = (
        "" if page.examples else "There are no examples, because its data set is not on this machine. "
    )
    return (
        f"{no_examples}The network knows {network.info.classes} classes and answers with one of them whatever the "
        "picture shows. A high probability is no proof: it says how sure the network is, not how right. Pictures are "
        "kept on the machine that runs this page, and removed after a while and when it ends."
    )
