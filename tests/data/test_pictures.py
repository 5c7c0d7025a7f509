"""Pictures of every kind become a network's images."""

import os
import struct
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from jaxresnet.data.pictures import (
    find_pictures,
    named_pictures,
    picture_size,
    read_picture,
    refuse_huge_pictures,
)
from jaxresnet.errors import UserError

SHAPE = (8, 8, 3)
COLOUR = (200, 100, 50)


def red_left() -> Image.Image:
    """16 x 8 pixels: the left quarter is red, the right quarter blue, the middle green."""
    image = Image.new("RGB", (16, 8), (0, 255, 0))
    image.paste((255, 0, 0), (0, 0, 4, 8))
    image.paste((0, 0, 255), (12, 0, 16, 8))
    return image


def saved(path: Path, image: Image.Image, **options: object) -> Path:
    image.save(path, **options)  # pyright: ignore[reportArgumentType]
    return path


def test_an_image_of_the_right_size_is_unchanged(tmp_path: Path):
    pixels = np.random.default_rng(0).integers(0, 256, SHAPE, np.uint8)
    image = read_picture(saved(tmp_path / "a.png", Image.fromarray(pixels)), SHAPE)
    assert image.dtype == np.uint8
    np.testing.assert_array_equal(image, pixels)


def test_crop_takes_the_middle_and_squash_the_whole(tmp_path: Path):
    path = saved(tmp_path / "a.png", red_left())
    np.testing.assert_array_equal(read_picture(path, SHAPE, "crop"), np.full(SHAPE, (0, 255, 0)))
    squashed = read_picture(path, SHAPE, "squash")
    assert squashed[4, 0].tolist() == [255, 0, 0]
    assert squashed[4, 7].tolist() == [0, 0, 255]


def test_a_fine_pattern_becomes_its_mean(tmp_path: Path):
    """A filter without antialiasing would take single pixels, black or white."""
    stripes = np.zeros((256, 256), np.uint8)
    stripes[:, ::2] = 254
    image = read_picture(saved(tmp_path / "a.png", Image.fromarray(stripes)), SHAPE)
    assert abs(image[2:6, 2:6].astype(int) - 127).max() <= 1


@pytest.mark.parametrize(
    ("name", "make", "options", "expected"),
    [
        ("grey.png", lambda: Image.new("L", (9, 9), 77), {}, (77, 77, 77)),
        ("bits.png", lambda: Image.new("1", (9, 9), 1), {}, (255, 255, 255)),
        ("deep.png", lambda: Image.fromarray(np.full((9, 9), 40_000, np.uint16)), {}, (156, 156, 156)),
        ("deep.tiff", lambda: Image.fromarray(np.full((9, 9), 65_535, np.uint16)), {}, (255, 255, 255)),
        ("palette.gif", lambda: Image.new("RGB", (9, 9), COLOUR).quantize(4), {}, COLOUR),
        ("alpha.png", lambda: Image.new("RGBA", (9, 9), (0, 0, 0, 0)), {}, (255, 255, 255)),
        ("half.png", lambda: Image.new("LA", (9, 9), (0, 51)), {}, (204, 204, 204)),
        ("key.png", lambda: Image.new("RGB", (9, 9), COLOUR), {"transparency": COLOUR}, (255, 255, 255)),
        ("alpha.webp", lambda: Image.new("RGBA", (9, 9), (*COLOUR, 255)), {"lossless": True}, COLOUR),
        ("ink.tiff", lambda: Image.new("CMYK", (9, 9), (255, 0, 0, 0)), {}, (0, 255, 255)),
        (
            "many.gif",
            lambda: Image.new("L", (9, 9), 0),
            {"append_images": [Image.new("L", (9, 9), 255)]},
            (0,) * 3,
        ),
    ],
)
def test_every_mode_becomes_rgb(
    tmp_path: Path, name: str, make: Callable[[], Image.Image], options: dict, expected: tuple[int, ...]
):
    path = saved(
        tmp_path / name, make(), **options, **({"save_all": True} if "append_images" in options else {})
    )
    np.testing.assert_array_equal(read_picture(path, SHAPE), np.full(SHAPE, expected))


def test_one_of_65536_greys_is_transparent(tmp_path: Path):
    greys = np.repeat(np.array([0, 16_384, 40_000, 65_535], np.uint16), 16).reshape(4, 16)
    path = saved(tmp_path / "a.png", Image.fromarray(greys), transparency=0)
    found = read_picture(path, (4, 16, 1))[:, 8, 0]
    assert found.tolist() == [255, 64, 156, 255]


def test_grey_images_for_a_network_of_one_channel(tmp_path: Path):
    image = read_picture(saved(tmp_path / "a.png", Image.new("RGB", (9, 9), (255, 0, 0))), (4, 6, 1))
    np.testing.assert_array_equal(image, np.full((4, 6, 1), 76))  # 0.299 R, by ITU-R 601


TURNED = ["rgb.", "rgb.", "gr.b", ".bgr", "b.rg", "rbg.", "br.g", ".gbr", "g.rb"]
"""For each of EXIF's orientations, the colours top left, top right, bottom left and bottom right; "." is black."""


@pytest.mark.parametrize("orientation", range(9))
@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.tiff", "a.webp"])
def test_a_photograph_is_turned_as_its_camera_says(tmp_path: Path, name: str, orientation: int):
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = np.zeros((32, 64, 3), np.uint8)
    stored[:16, :16, 0] = stored[:16, -16:, 1] = stored[-16:, :16, 2] = 255
    path = saved(tmp_path / name, Image.fromarray(stored), exif=exif)
    assert picture_size(path) == ((64, 32) if orientation >= 5 else (32, 64))
    image = read_picture(path, SHAPE, "squash")
    corners = [image[y, x] for y in (0, 7) for x in (0, 7)]
    assert (
        "".join("rgb"[pixel.argmax()] if pixel.max() > 128 else "." for pixel in corners)
        == TURNED[orientation]
    )


def test_a_large_jpeg_is_decoded_at_a_lower_size_and_looks_the_same(tmp_path: Path):
    y, x = np.mgrid[0:1024, 0:1024]
    smooth = np.stack([x // 4, y // 4, (x + y) // 8], 2).astype(np.uint8)
    jpeg = read_picture(saved(tmp_path / "a.jpg", Image.fromarray(smooth), quality=95), SHAPE)
    whole = read_picture(saved(tmp_path / "a.png", Image.fromarray(smooth)), SHAPE)
    assert abs(jpeg.astype(int) - whole).max() <= 3


def test_threads_read_the_same(tmp_path: Path):
    paths = [saved(tmp_path / f"{n}.png", Image.new("RGB", (20, 20), (n, 2 * n, 3 * n))) for n in range(40)]
    with ThreadPoolExecutor(8) as threads:
        images = list(threads.map(lambda path: read_picture(path, SHAPE), paths))
    assert [image[0, 0].tolist() for image in images] == [[n, 2 * n, 3 * n] for n in range(40)]


def bitmap_that_claims(side: int, path: Path) -> Path:
    """A file of 54 bytes, the header of a bitmap of side x side pixels."""
    header = struct.pack("<2sIHHI", b"BM", 54, 0, 0, 54)
    path.write_bytes(header + struct.pack("<IiiHHIIiiII", 40, side, side, 1, 24, *[0] * 6))
    return path


def test_a_command_refuses_a_picture_of_which_pillow_warns(tmp_path: Path):
    path = bitmap_that_claims(10_000, tmp_path / "large.bmp")
    with warnings.catch_warnings():
        refuse_huge_pictures()
        with pytest.raises(UserError, match="expected a picture of a usual size"):
            read_picture(path, SHAPE)


@pytest.mark.parametrize("tag", [b"\x01\x00", b"\x01\x1a", b"\x01\x28"])
def test_damaged_metadata_do_no_harm_to_the_picture(tmp_path: Path, tag: bytes):
    """A text where there should be a number: what was the description is now the width, resolution or its unit."""
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "text"
    path = saved(tmp_path / "a.jpg", red_left().resize((256, 128)), exif=exif, quality=95)
    turned = read_picture(path, SHAPE, "squash")
    content = path.read_bytes()
    assert content.count(b"\x01\x0e\x00\x02") == 1
    path.write_bytes(content.replace(b"\x01\x0e\x00\x02", tag + b"\x00\x02"))
    np.testing.assert_array_equal(read_picture(path, SHAPE, "squash"), turned)
    assert turned[0, 4, 0] > 240


@pytest.mark.parametrize("name", ["a.png", "a.webp", "a.jpg"])
def test_exif_data_that_are_none_do_no_harm_either(tmp_path: Path, name: str):
    path = saved(tmp_path / name, red_left(), exif=b"Exif\0\0garbage")
    assert picture_size(path) == (8, 16)
    assert read_picture(path, SHAPE, "squash").shape == SHAPE


def test_a_tiff_that_xmp_turns_has_the_size_that_is_read(tmp_path: Path):
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    tags = ImageFileDirectory_v2()
    tags[700] = xmp
    tags.tagtype[700] = 1
    path = saved(tmp_path / "a.tiff", red_left(), tiffinfo=tags)
    assert picture_size(path) == (16, 8)
    assert read_picture(path, SHAPE, "squash")[0, 4].tolist() == [255, 0, 0]


def test_no_other_program_is_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Pillow has Ghostscript read EPS, also in a picture of another format that holds one: IPTC."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "gs").write_text(f"#!/bin/sh\ntouch {tmp_path}/started\n")
    (tmp_path / "bin" / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)
    inner = saved(tmp_path / "a.eps", Image.new("RGB", (4, 4))).read_bytes()

    def record(tag: bytes, content: bytes) -> bytes:
        return b"\x1c" + tag + len(content).to_bytes(2, "big") + content

    layers, width, height, compression = b"\x03\x3c", b"\x03\x14", b"\x03\x1e", b"\x03\x78"
    (tmp_path / "photo.jpg").write_bytes(
        record(layers, b"\x01\x00")
        + record(width, b"\x00\x04")
        + record(height, b"\x00\x04")
        + record(compression, b"\x05")
        + record(b"\x08\x0a", inner)
        + record(b"\x09\x0a", b"\x00")
    )
    for path in (tmp_path / "a.eps", tmp_path / "photo.jpg"):
        with pytest.raises(UserError, match="in a format that Pillow reads, found another file"):
            read_picture(path, SHAPE)
        with pytest.raises(UserError, match="in a format that Pillow reads, found another file"):
            picture_size(path)
    assert not (tmp_path / "started").exists()


def test_any_error_of_pillow_is_one_of_the_picture(tmp_path: Path):
    """Its plugins raise errors of many types; the one for QOI raises IndexError."""
    whole = bytes([*b"qoif", 0, 0, 0, 8, 0, 0, 0, 8, 3, 0, 0xFE])
    (tmp_path / "a.qoi").write_bytes(whole)
    with pytest.raises(UserError, match=f"{tmp_path}/a.qoi: cannot read the picture: "):
        read_picture(tmp_path / "a.qoi", SHAPE)


def test_what_is_no_picture_is_told_by_name(tmp_path: Path):
    def refusal(path: Path) -> str:
        with pytest.raises(UserError) as error:
            read_picture(path, SHAPE)
        assert str(error.value).startswith(f"{path}: ") or str(path) in str(error.value)
        return str(error.value)

    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("hello")
    whole = saved(tmp_path / "whole.png", Image.effect_noise((64, 64), 50)).read_bytes()
    (tmp_path / "half.png").write_bytes(whole[: len(whole) // 2])
    saved(tmp_path / "float.tiff", Image.new("F", (4, 4), 0.5))
    saved(tmp_path / "wide.tiff", Image.new("I", (4, 4), 1_000_000))
    saved(tmp_path / "program.eps", Image.new("RGB", (4, 4)))  # Pillow would have Ghostscript run it
    (tmp_path / "folder.png").mkdir()
    bitmap_that_claims(60_000, tmp_path / "huge.bmp")
    assert "found an empty file" in refusal(tmp_path / "empty.png")
    assert "in a format that Pillow reads, found another file" in refusal(tmp_path / "text.png")
    assert "in a format that Pillow reads, found another file" in refusal(tmp_path / "program.eps")
    assert "truncated" in refusal(tmp_path / "half.png")
    assert "found floating-point numbers" in refusal(tmp_path / "float.tiff")
    assert "found values 1000000 to 1000000" in refusal(tmp_path / "wide.tiff")
    assert "found a folder" in refusal(tmp_path / "folder.png")
    assert "of a usual size" in refusal(tmp_path / "huge.bmp")
    assert "No such file" in refusal(tmp_path / "none.png")


def test_the_pictures_of_a_folder_are_found_in_order(tmp_path: Path):
    for name in (
        "b/2.JPG",
        "b/10.png",
        "a.webp",
        "notes.txt",
        "c.eps",
        ".hidden.png",
        ".thumbs/c.png",
        "Makefile",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = [str(path.relative_to(tmp_path)) for path in find_pictures(tmp_path)]
    assert found == ["a.webp", "b/10.png", "b/2.JPG"]


def test_a_name_means_a_file_a_folder_or_a_pattern(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a[1].png", "a1.png", "b/2.png", "b/1.png", "b/c/3.png", "b/notes.txt", "empty/x.txt"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).touch()
    assert named_pictures("./a1.png") == ["./a1.png"]
    assert named_pictures("a[1].png") == ["a[1].png"]  # a file, before it is a pattern
    assert named_pictures("[a]1.png") == ["a1.png"]
    assert named_pictures("b/notes.txt") == ["b/notes.txt"]  # named, so it is tried
    assert named_pictures("b") == ["b/1.png", "b/2.png", "b/c/3.png"]
    assert named_pictures(str(tmp_path / "b" / "?.png")) == [str(tmp_path / "b" / f"{n}.png") for n in (1, 2)]
    assert named_pictures("b/*") == ["b/1.png", "b/2.png", "b/c/3.png", "b/notes.txt"]
    assert named_pictures("**/*.png") == ["a1.png", "a[1].png", "b/1.png", "b/2.png", "b/c/3.png"]
    assert named_pictures("b*/**") == ["b/1.png", "b/2.png", "b/c/3.png", "b/notes.txt"]  # each once
    for name, problem in (
        ("none.png", "with matches, found none"),
        ("*.gif", "with matches, found none"),
        ("empty", "expected a folder with pictures, found none"),
    ):
        with pytest.raises(UserError, match=problem) as error:
            named_pictures(name)
        assert str(error.value).startswith(f"{name}: ")
    with pytest.raises(UserError, match="found an empty name"):
        named_pictures("")


def test_a_folder_that_cannot_be_read_is_told_and_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("a/1.png", "b/2.png"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    scandir = os.scandir

    def refuse(path: str) -> object:
        if str(path).endswith("a"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    problems: list[OSError] = []
    assert find_pictures(tmp_path, problems.append) == [tmp_path / "b" / "2.png"]
    assert [problem.filename for problem in problems] == [str(tmp_path / "a")]


def test_a_network_for_neither_grey_nor_rgb_is_told(tmp_path: Path):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    for channels in (2, 4):
        problem = rf"a\.png: expected a network for grey or RGB images, found one for {channels} channels"
        with pytest.raises(UserError, match=problem):
            read_picture(tmp_path / "a.png", (4, 4, channels))
