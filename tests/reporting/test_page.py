"""A page's two renderings and its files, from made-up content."""

from html.parser import HTMLParser
from pathlib import Path

import pytest
from helpers import largest_file

from jaxresnet.errors import UserError
from jaxresnet.reporting.page import Page, Picture, Section, Tile, to_html, to_markdown, write_page

NAME = '<script>alert("1")</script>|\\|[x](y)&'
PAGE = Page(
    "a run",
    "about it",
    [Tile("accuracy", "90 %")],
    [
        Section(
            "Part", "A note.", [("a", "b"), ("1", "2")], [Picture("a.png", "A picture", b"l", b"d")], "Last."
        )
    ],
)


class Content(HTMLParser):
    """The tags of a page, and the texts between them."""

    def __init__(self, page: str):
        super().__init__()
        self.tags: list[str] = []
        self.texts: list[str] = []
        self.alternatives: list[str | None] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.alternatives += [value for name, value in attrs if name == "alt"]

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def test_markdown():
    assert to_markdown(PAGE) == (
        "# a run\n\nabout it\n\n|  |  |\n|---|--:|\n| accuracy | 90 % |\n\n"
        "## Part\n\nA note.\n\n| a | b |\n|---|--:|\n| 1 | 2 |\n\n![A picture](a.png)\n\nLast.\n"
    )
    assert to_markdown(Page("a", sections=[Section("b")])) == "# a\n\n## b\n"


def test_html_shows_the_same_in_the_same_order():
    page = Content(to_html(PAGE))
    shown = [text for text in map(str.strip, page.texts) if text]
    after_style = shown[2:]
    assert shown[0] == "a run"
    assert after_style == [
        *("a run", "about it", "90 %", "accuracy", "Part", "A note."),
        *("a", "b", "1", "2", "A picture", "Last."),
    ]
    assert 'src="data:image/png;base64,bA=="' in to_html(PAGE)
    assert 'srcset="data:image/png;base64,ZA==" media="(prefers-color-scheme: dark)"' in to_html(PAGE)


def test_a_name_is_never_markup():
    picture = Picture("a.png", NAME, b"", b"")
    section = Section(NAME, NAME, [("class", NAME), (NAME, "1")], [picture], NAME)
    page = Page(NAME, NAME, [Tile(NAME, NAME)], [section])
    content = Content(to_html(page))
    assert "script" not in content.tags
    assert content.texts.count(NAME) == 11  # as it is, in every place: the title is in the head, too
    assert content.alternatives == [NAME]

    markdown = to_markdown(page)
    assert "<" not in markdown
    assert ">" not in markdown.replace("&gt;", "")
    shown = '&lt;script&gt;alert("1")&lt;/script&gt;|\\\\|\\[x\\](y)&amp;'
    assert markdown.startswith(f"# {shown}\n")
    # In a table | ends a cell but after a \, and two of those are the one in the name.
    cell = shown.replace("|", "\\|")
    assert f"| class | {cell} |\n|---|--:|\n| {cell} | 1 |\n" in markdown


def test_a_line_break_in_a_name_begins_no_paragraph():
    assert to_markdown(Page("a\n\n# b")) == "# a # b\n"


def test_a_refused_report_leaves_the_one_before_it_as_it_was(tmp_path: Path):
    folder = tmp_path / "report"
    write_page(PAGE, folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert set(before) == {"a.png", "report.md", "index.html"}
    other = Page("another run", sections=[Section("Part", pictures=[Picture("a.png", "", b"new", b"")])])
    with (
        pytest.raises(UserError, match=r"cannot write \S+/index.html.tmp: File too large"),
        largest_file(500),
    ):
        write_page(other, folder)  # only index.html is larger
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    write_page(other, folder)
    assert (folder / "a.png").read_bytes() == b"new"
    assert "another run" in (folder / "index.html").read_text(encoding="utf-8")


def test_a_folder_that_cannot_be_made(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write"):
        write_page(PAGE, tmp_path / "file" / "report")
