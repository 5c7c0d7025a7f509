"""A page of a report as plain data, and writing it to files: HTML, Markdown and pictures."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2

from jaxresnet.errors import UserError
from jaxresnet.reporting.tables import as_markdown
from jaxresnet.reporting.text import escape_markdown, fenced, printable_lines
from jaxresnet.runs.files import write_together

Table = Sequence[Sequence[str]]
"""A header and rows of cells."""

Facts = Sequence[tuple[str, str]]
"""Names and what is known of each, in words of any length."""


@dataclass(frozen=True)
class Drawing:
    """A drawing as two PNGs: `light` for a white page, `dark` for a dark one."""

    light: bytes
    dark: bytes


@dataclass(frozen=True)
class Picture:
    """A drawing with its caption, and the one that narrow pages show instead, if there is one.

    The light PNG of `wide` is also the file `name`.
    """

    name: str
    caption: str
    wide: Drawing
    narrow: Drawing | None = None


@dataclass(frozen=True)
class Tile:
    """One of the most important numbers of a page, its label, and a remark in small letters."""

    label: str
    value: str
    remark: str = ""


@dataclass(frozen=True)
class Fold:
    """A part that is folded until the reader opens it: facts, or a text that is shown line by line as it is."""

    title: str
    facts: Facts = ()
    text: str = ""


@dataclass(frozen=True)
class Section:
    """A part of a page. The fields that are given are shown in this order."""

    title: str
    note: str = ""
    table: Table = ()
    facts: Facts = ()
    pictures: Sequence[Picture] = ()
    folds: Sequence[Fold] = ()
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
        return {picture.name: picture.wide.light for section in self.sections for picture in section.pictures}


def to_html(page: Page) -> str:
    """The page as HTML that needs no other file: it contains the style and the pictures, light and dark."""
    loader = jinja2.FileSystemLoader(Path(__file__).parent / "templates")
    templates = jinja2.Environment(
        loader=loader,
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=lambda value: (
            value if hasattr(value, "__html__") else printable_lines(value)
        ),  # not a macro's HTML
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
        rows = [
            (tile.label, f"{tile.value} ({tile.remark})" if tile.remark else tile.value)
            for tile in page.tiles
        ]
        parts.append(_table([("", ""), *rows]))
    for section in page.sections:
        parts += [f"## {escape_markdown(section.title)}", escape_markdown(section.note)]
        if section.table:
            parts.append(_table(section.table))
        parts.append(_list(section.facts))
        parts += [f"![{escape_markdown(picture.caption)}]({picture.name})" for picture in section.pictures]
        for fold in section.folds:
            parts += [f"<details><summary>{escape_markdown(fold.title)}</summary>", _list(fold.facts)]
            parts += [fenced(fold.text) if fold.text else "", "</details>"]
        parts.append(escape_markdown(section.remark))
    return "\n\n".join(part for part in parts if part) + "\n"


def _table(rows: Table) -> str:
    return as_markdown([[escape_markdown(cell) for cell in row] for row in rows])


def _list(facts: Facts) -> str:
    return "\n".join(f"- {escape_markdown(name)}: {escape_markdown(value)}" for name, value in facts)


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
