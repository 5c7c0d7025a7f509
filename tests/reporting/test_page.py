"""A page's two renderings and its files, from made-up content."""

import base64
import os
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from helpers import largest_file

from jaxresnet.errors import UserError
from jaxresnet.reporting.page import (
    Drawing,
    Fold,
    Page,
    Picture,
    Section,
    Tile,
    to_html,
    to_markdown,
    write_page,
)
from jaxresnet.reporting.text import escape_markdown, fenced

NAME = '<script>alert("1")</script>|\\|[x](y)&'
PICTURE = Picture("a.png", "A picture", Drawing(b"l", b"d"), Drawing(b"nl", b"nd"))
FOLD = Fold("More", [("cpu", "one")], "x = 1\ny = 2\n")
PAGE = Page(
    "a run",
    "about it",
    [Tile("accuracy", "90 %", "of 10")],
    [Section("Part", "A note.", [("a", "b"), ("1", "2")], [("made", "here")], [PICTURE], [FOLD], "Last.")],
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
        "# a run\n\nabout it\n\n|  |  |\n|---|--:|\n| accuracy | 90 % (of 10) |\n\n"
        "## Part\n\nA note.\n\n| a | b |\n|---|--:|\n| 1 | 2 |\n\n- made: here\n\n![A picture](a.png)\n\n"
        "<details><summary>More</summary>\n\n- cpu: one\n\n```\nx = 1\ny = 2\n```\n\n</details>\n\nLast.\n"
    )
    assert to_markdown(Page("a", sections=[Section("b")])) == "# a\n\n## b\n"


def test_html_shows_the_same_in_the_same_order():
    page = Content(to_html(PAGE))
    shown = [text for text in map(str.strip, page.texts) if text]
    after_style = shown[2:]
    assert shown[0] == "a run"
    assert after_style == [
        *("a run", "about it", "90 %", "accuracy", "of 10", "Part", "A note."),
        *("a", "b", "1", "2", "made", "here", "A picture", "More", "cpu", "one", "x = 1\ny = 2", "Last."),
    ]


def test_a_narrow_page_and_a_dark_one_have_their_own_drawings():
    pictures = re.findall(r'(?:src|srcset)="data:image/png;base64,(\S+)"(?: media="(.+?)")?', to_html(PAGE))
    assert [(base64.b64decode(png), media) for png, media in pictures] == [
        (b"nd", "(max-width: 40rem) and (prefers-color-scheme: dark)"),
        (b"nl", "(max-width: 40rem)"),
        (b"d", "(prefers-color-scheme: dark)"),
        (b"l", ""),
    ]


def test_a_name_is_never_markup():
    picture, fold = Picture("a.png", NAME, Drawing(b"", b"")), Fold(NAME, [(NAME, NAME)], NAME)
    section = Section(NAME, NAME, [("class", NAME), (NAME, "1")], [(NAME, NAME)], [picture], [fold], NAME)
    page = Page(NAME, NAME, [Tile(NAME, NAME, NAME)], [section])
    content = Content(to_html(page))
    assert "script" not in content.tags
    assert content.texts.count(NAME) == 18  # as it is, in every place: the title is in the head, too
    assert content.alternatives == [NAME]

    markdown = to_markdown(page)
    block = f"```\n{NAME}\n```\n"
    assert markdown.count(block) == 1
    rest = markdown.replace(block, "")
    for ours in ("<details>", "</details>", "<summary>", "</summary>"):
        rest = rest.replace(ours, "", 1)
    assert "<" not in rest
    assert ">" not in rest.replace("&gt;", "")
    shown = '&lt;script&gt;alert("1")&lt;/script&gt;|\\\\|\\[x\\](y)&amp;'
    assert markdown.startswith(f"# {shown}\n")
    # In a table | ends a cell but after a \, and two of those are the one in the name.
    cell = shown.replace("|", "\\|")
    assert f"| class | {cell} |\n|---|--:|\n| {cell} | 1 |\n" in markdown


def test_markdown_of_names_that_would_mean_something():
    assert escape_markdown("_a_ b_c ~~d~~ $e$") == r"\_a\_ b_c \~\~d\~\~ \$e\$"
    assert escape_markdown("see https://x.y or www.x.y") == r"see https:\//x.y or www\.x.y"
    assert fenced("a = '```'\nb = '``'") == "````\na = '```'\nb = '``'\n````"


def test_names_that_cannot_be_written_as_utf8_are_shown(tmp_path: Path):
    name = os.fsdecode(b"bad\xff\x1b[31m")
    page = Page(name, sections=[Section(name, table=[(name,)], folds=[Fold(name, text=f"x = 1\n{name}")])])
    folder = write_page(page, tmp_path / name).parent
    shown = r"bad\udcff\x1b[31m"
    assert (folder / "index.html").read_text(encoding="utf-8").count(shown) == 6
    markdown = (folder / "report.md").read_text(encoding="utf-8")
    assert markdown.count(escape_markdown(shown)) == 4
    assert markdown.count(f"x = 1\n{shown}\n") == 1


def test_a_line_break_in_a_name_begins_no_paragraph():
    assert to_markdown(Page("a\n\n# b")) == "# a # b\n"


def test_a_refused_report_leaves_the_one_before_it_as_it_was(tmp_path: Path):
    folder = tmp_path / "report"
    write_page(PAGE, folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert set(before) == {"a.png", "report.md", "index.html"}
    other = Page(
        "another run", sections=[Section("Part", pictures=[Picture("a.png", "", Drawing(b"new", b""))])]
    )
    with (
        pytest.raises(UserError, match=r"cannot write \S+/index.html.[0-9a-f]{8}.tmp: File too large"),
        largest_file(500),
    ):
        write_page(other, folder)  # only index.html is larger
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    write_page(other, folder)
    assert (folder / "a.png").read_bytes() == b"new"
    assert "another run" in (folder / "index.html").read_text(encoding="utf-8")


def test_the_page_is_replaced_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    names: list[str] = []
    monkeypatch.setattr(
        "jaxresnet.reporting.page.write_together", lambda files: names.extend(p.name for p in files)
    )
    write_page(PAGE, tmp_path)
    assert names == ["a.png", "report.md", "index.html"]


def test_a_folder_that_cannot_be_made(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write"):
        write_page(PAGE, tmp_path / "file" / "report")
