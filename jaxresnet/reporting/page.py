"""A page of a report as plain data, and writing it to files: HTML, Markdown and pictures."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2

from jaxresnet.errors import UserError
from jaxresnet.reporting.tables import as_markdown
from jaxresnet.runs.files import write_together

Table = Sequence[Sequence[str]]
"""A header and rows of cells."""


@dataclass(frozen=True)
class Picture:
    """A drawing as two PNGs: `light` for a white page, `dark` for a dark one. `light` is also the file `name`."""

    name: str
    caption: str
    light: bytes
    dark: bytes


@dataclass(frozen=True)
class Tile:
    """One of the most important numbers of a page, and its label."""

    label: str
    value: str


@dataclass(frozen=True)
class Section:
    """A part of a page. The fields that are given are shown in this order."""

    title: str
    note: str = ""
    table: Table = ()
    pictures: Sequence[Picture] = ()
    remark: str = ""


@dataclass(frozen=True)
class Page:
    """Everything that a report shows. All texts are plain; `to_html` and `to_markdown` escape them."""

    title: str
    about: str = ""
    tiles: Sequence[Tile] = ()
    sections: Sequence[Section] = ()

    @property
    def pictures(self) -> dict[str, bytes]:
        """The PNGs for a white page: file name to content."""
        return {picture.name: picture.light for section in self.sections for picture in section.pictures}


def to_html(page: Page) -> str:
    """The page as HTML that needs no other file: it contains the style and the pictures, light and dark."""
    loader = jinja2.FileSystemLoader(Path(__file__).parent / "templates")
    templates = jinja2.Environment(
        loader=loader,
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    templates.filters["data_uri"] = _data_uri
    return templates.get_template("page.html.j2").render(page=page)


def _data_uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()


def to_markdown(page: Page) -> str:
    """The page as Markdown. It refers to the picture files, which lie in the same folder."""
    parts = [f"# {escape_markdown(page.title)}", escape_markdown(page.about)]
    if page.tiles:
        parts.append(_table([("", ""), *((tile.label, tile.value) for tile in page.tiles)]))
    for section in page.sections:
        parts += [f"## {escape_markdown(section.title)}", escape_markdown(section.note)]
        if section.table:
            parts.append(_table(section.table))
        parts += [f"![{escape_markdown(picture.caption)}]({picture.name})" for picture in section.pictures]
        parts.append(escape_markdown(section.remark))
    return "\n\n".join(part for part in parts if part) + "\n"


def _table(rows: Table) -> str:
    return as_markdown([[escape_markdown(cell) for cell in row] for row in rows])


_SPECIAL = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;"} | {mark: f"\\{mark}" for mark in "\\`*[]"})


def escape_markdown(text: str) -> str:
    """A text as one line of Markdown, escaped so that it makes no HTML, link, image, code or emphasis.

    >>> print(escape_markdown("<b>[x]"))
    &lt;b&gt;\\[x\\]
    """
    return " ".join(text.split()).translate(_SPECIAL)


def write_page(page: Page, folder: Path) -> Path:
    """Write index.html, its pictures as PNGs and report.md. Returns the path of index.html.

    Raises UserError if a file cannot be written. An earlier report in the folder is then unchanged.
    """
    files: dict[str, str | bytes] = {
        **page.pictures,
        "report.md": to_markdown(page),
        "index.html": to_html(page),
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_together({folder / name: content for name, content in files.items()})
    except OSError as error:
        raise UserError(f"cannot write {error.filename or folder}: {error.strerror or error}") from None
    return folder / "index.html"
