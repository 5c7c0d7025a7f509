"""The command that predicts pictures: what it prints where, in which order, and how it ends."""

import io
import json
import re
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import initial_state
from PIL import Image

from jaxresnet import predict
from jaxresnet.data.pictures import read_picture
from jaxresnet.errors import UserError
from jaxresnet.learning.learner import Learner
from jaxresnet.reporting.console.predictions import PredictionConsole
from jaxresnet.trained.load import load_network
from jaxresnet.trained.weights import save_weights

COLOURS = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (255, 0, 255), (0, 255, 255)]


@pytest.fixture(scope="module")
def weights(tiny_learner: Learner, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("network") / "weights.safetensors"
    save_weights(path, tiny_learner.plan, initial_state(tiny_learner).variables)
    return str(path)


@pytest.fixture
def pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder with b.png, c.jpg, a.gif, sub/d.webp, text.png, which is no picture, and notes.txt."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    for number, name in enumerate(("b.png", "c.jpg", "a.gif", "sub/d.webp")):
        Image.effect_noise((40 + number, 50), 40 + number).convert("RGB").save(name)
    for name in ("text.png", "notes.txt"):
        Path(name).write_text("hello")
    return tmp_path


def lines_of(text: str) -> list[dict]:
    return [json.loads(line) for line in text.splitlines()]


def test_the_json_lines_are_the_networks_probabilities_in_the_order_of_the_arguments(
    weights: str, pictures: Path, capsys: pytest.CaptureFixture[str]
):
    predict.main(
        [weights, "c.jpg", "sub", "--top", "99", "[ab].*", "c.jpg", "--batch-size", "4", "--fit", "squash"]
    )
    out, err = capsys.readouterr()
    lines = lines_of(out)
    assert err == ""
    assert [line["file"] for line in lines] == ["c.jpg", "sub/d.webp", "a.gif", "b.png", "c.jpg"]
    network = load_network(weights)
    for line in lines:
        assert list(line) == ["file", "class", "probability", "top"]
        image = read_picture(Path(line["file"]), network.info.image_shape, "squash")
        expected = dict(
            zip(network.class_names, np.asarray(network.probabilities(image[None])[0]), strict=True)
        )
        assert dict(line["top"]) == pytest.approx(expected, rel=1e-5)
        assert [name for name, _ in line["top"]] == sorted(expected, key=expected.__getitem__, reverse=True)
        assert [line["class"], line["probability"]] == line["top"][0]


def test_a_bad_file_is_told_in_one_line_and_the_rest_goes_on(
    weights: str, pictures: Path, capsys: pytest.CaptureFixture[str]
):
    odd = "no\x1b[2J\nne.png"
    with pytest.raises(SystemExit) as end:
        predict.main([weights, "text.png", "a.gif", odd, "b.png", "--top", "2"])
    out, err = capsys.readouterr()
    assert end.value.code == 1
    assert [line["file"] for line in lines_of(out)] == ["a.gif", "b.png"]
    assert [len(line["top"]) for line in lines_of(out)] == [2, 2]
    assert err.splitlines() == [
        "error: no\\x1b[2J\\nne.png: expected a picture, a folder or a pattern with matches, found none",
        "error: text.png: expected a picture in a format that Pillow reads, found another file",
    ]


@pytest.mark.parametrize("bad", ["none.png", "text.png", "large.bmp"])
def test_one_bad_file_of_any_kind_makes_the_exit_code_1(
    weights: str, pictures: Path, capsys: pytest.CaptureFixture[str], bad: str
):
    # The header of a bitmap of 100 million pixels, of which Pillow only warns.
    header = struct.pack("<2sIHHI", b"BM", 54, 0, 0, 54)
    Path("large.bmp").write_bytes(header + struct.pack("<IiiHHIIiiII", 40, 10_000, 10_000, 1, 24, *[0] * 6))
    with pytest.raises(SystemExit) as end:
        predict.main([weights, "b.png", bad])
    out, err = capsys.readouterr()
    assert end.value.code == 1
    assert [line["file"] for line in lines_of(out)] == ["b.png"]
    assert re.fullmatch(rf"error: {bad}: expected .*\n", err)


def test_a_name_that_is_not_utf_8_is_the_same_after_json(
    weights: str, pictures: Path, capsys: pytest.CaptureFixture[str]
):
    name = "ü\udcff.png"
    Path("b.png").rename(name)
    predict.main([weights, name])
    [line] = capsys.readouterr().out.splitlines()
    assert line.isascii()
    assert json.loads(line)["file"] == name


def test_nothing_is_loaded_or_printed_if_there_is_no_picture(
    weights: str, pictures: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(predict, "start_network", None)
    with pytest.raises(SystemExit) as end:
        predict.main([weights, "*.bmp"])
    assert end.value.code == 1
    assert capsys.readouterr() == (
        "",
        "error: *.bmp: expected a picture, a folder or a pattern with matches, found none\n",
    )


@pytest.mark.parametrize(
    ("arguments", "code", "problem"),
    [
        ([], 2, "arguments are required: FILE"),
        (["a.gif", "--top", "0"], 2, "--top: expected at least 1, found 0"),
        (["a.gif", "--batch-size", "0"], 2, "--batch-size: expected at least 1, found 0"),
        (["a.gif", "--contact-sheet", "sheet.jpg"], 2, r"expected a name that ends in .png, found sheet.jpg"),
        (["a.gif", "--contact-sheet", "none/sheet.png"], 1, "expected a folder that exists, found none"),
        (["a.gif", "--checkpoint", "best"], 2, "--checkpoint: expected with the folder of a run"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_a_wrong_argument(weights: str, pictures: Path, arguments: list[str], code: int, problem: str):
    with pytest.raises(UserError, match=problem) as error:
        predict.main([weights, *arguments])
    assert error.value.exit_code == code


def test_a_missing_network_is_told_before_anything_is_loaded(pictures: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(predict, "predict_command", None)
    with pytest.raises(UserError, match="no network none: expected"):
        predict.main(["none", "a.gif"])


def test_a_picture_on_stdin_and_a_reader_that_has_gone(
    weights: str, pictures: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(Path("b.png").read_bytes())))
    predict.main([weights, "-", "b.png"])
    first, second = lines_of(capsys.readouterr().out)
    assert first["file"] == "-"
    assert first["top"] == second["top"]

    def gone(text: str) -> int:
        raise BrokenPipeError

    monkeypatch.setattr(sys.stdout, "write", gone)
    with pytest.raises(BrokenPipeError):  # from which `run_command` makes 141
        predict.main([weights, "b.png"])


def test_a_contact_sheet_shows_the_first_pictures_and_tells_which_it_leaves_out(
    weights: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(predict, "MOST_ON_SHEET", 5)
    for number, colour in enumerate(COLOURS):
        Image.new("RGB", (20, 60), colour).save(f"{number}.png")
    predict.main([weights, "?.png", "--contact-sheet", "sheet.PNG"])
    assert (
        capsys.readouterr().err == "written to sheet.PNG: 5 of 6 pictures, without 5.png and those after it\n"
    )
    sheet = np.asarray(Image.open("sheet.PNG").convert("RGB"))
    assert sheet.shape == (int(2 * 1.55 * 130), int(3 * 1.35 * 130), 3)  # two rows of three
    drawn = [int((sheet == colour).all(axis=2).sum()) for colour in COLOURS]
    assert all(abs(pixels - drawn[0]) < 0.02 * drawn[0] for pixels in drawn[:5])
    assert drawn[0] > 140 * 140
    assert drawn[5] == 0
    predict.main([weights, "0.png", "--contact-sheet", "sheet.PNG"])
    assert capsys.readouterr().err == "written to sheet.PNG\n"


class Terminal(io.StringIO):
    """In place of stdout."""

    def isatty(self) -> bool:
        return True


def shown(
    monkeypatch: pytest.MonkeyPatch, columns: int, files: list[str], json_lines: bool = False
) -> list[str]:
    """The lines on a terminal of so many columns, without colours and what is erased again."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setattr(sys, "stdout", terminal := Terminal())
    names = ["cat", "[red]do\x1bg[/red]", "a class with quite a long name", *"defghij"]
    probabilities = np.array([0.25, 0.5, 0.125, *[0.125 / 7] * 7], np.float32)
    with PredictionConsole(names, 3, len(files), json_lines) as console:
        for file in files:
            console.show(file, probabilities)
            console.done()
    text = re.sub(r"[^\n]*\x1b\[2K|\x1b\[[0-9;?]*[a-zA-Z]", "", terminal.getvalue())
    return [line.rstrip() for line in text.replace("\r", "").splitlines() if line.strip()]


LONG = "a folder with a long name/写真 and a picture whose name is even longer than the folder's.jpeg"


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        (
            80,
            [
                "a folder with a long name/写真 and a picture whose name is even longer than",
                "the folder's.jpeg",
                "  [red]do\\x1bg[/red]       50.0% █████████████████████▌",
                "  cat                      25.0% ██████████▊",
                "  a class with…a long name 12.5% █████▍",
            ],
        ),
        (
            40,
            [
                "a folder with a long name/写真 and a",
                "picture whose name is even longer",
                "than the folder's.jpeg",
                "  [red]d…/red] 50.0% ███████▌",
                "  cat          25.0% ███▊",
                "  a clas… name 12.5% █▉",
            ],
        ),
    ],
)
def test_few_files_have_a_table_each(monkeypatch: pytest.MonkeyPatch, columns: int, expected: list[str]):
    assert shown(monkeypatch, columns, [LONG]) == expected


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        (80, "[red]do\\x1bg[/red]        50.0%  a folder with a long n…han the folder's.jpeg"),
        (40, "[red]d…/red]  50.0%  a folder…'s.jpeg"),
    ],
)
def test_many_files_have_a_line_each_and_a_bar_below(
    monkeypatch: pytest.MonkeyPatch, columns: int, expected: str
):
    *lines, bar = shown(monkeypatch, columns, [LONG] * 6)
    assert lines == [expected] * 6
    assert max(map(len, lines)) <= columns - 3
    assert re.fullmatch(r"━+ 6/6 0:00:00", bar)


def test_json_lines_are_whole_on_a_terminal_too(monkeypatch: pytest.MonkeyPatch):
    files = [LONG, "a :rose:.jpg"] * 3
    *lines, _ = shown(monkeypatch, 40, files, json_lines=True)
    assert [json.loads(line)["file"] for line in lines] == files


def test_elsewhere_the_bar_is_on_stderr_alone(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stdout", out := io.StringIO())
    monkeypatch.setattr(sys, "stderr", err := Terminal())
    with PredictionConsole(["a", "b"], 1, 6, json_lines=False) as console:
        for _ in range(6):
            console.show("x.png", np.array([0.75, 0.25], np.float32))
            console.done()
        # Ctrl-C ends the command now, and the cursor is to be seen.
        assert err.getvalue().rindex("\x1b[?25h") > err.getvalue().rindex("\x1b[?25l")
    line = '{"file": "x.png", "class": "a", "probability": 0.75, "top": [["a", 0.75]]}\n'
    assert out.getvalue() == 6 * line
    assert "6/6" in err.getvalue()
