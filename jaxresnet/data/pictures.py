"""Pictures in files, of any format, size and mode that Pillow reads, as a network's uint8 images."""

import contextlib
import functools
import glob
import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
from PIL import ExifTags, Image, ImageOps

from jaxresnet.disk import kind_of, open_file
from jaxresnet.errors import UserError

Fit = Literal["crop", "squash"]
"""How a picture of other proportions becomes an image. crop: its largest centred part of the right proportions.
squash: the whole picture, with its sides scaled differently."""

_DRAFT = 4
"""A JPEG is decoded at an eighth, a quarter or half of its size, if that leaves this many pixels for each of the
image's along a side. Decoding is then several times as fast."""

_MOST_16_BITS = 65_535

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What turns a picture upright, for each value of EXIF's orientation but 1, "upright"."""

_TURNED = (5, 6, 7, 8)
"""Values of EXIF's orientation that exchange height and width."""


@functools.cache
def _formats() -> list[str]:
    """The formats that are read: all of Pillow's but EPS and IPTC.

    For EPS it would start another program, Ghostscript. IPTC holds a picture of any format, also of EPS.
    """
    Image.init()
    return [name for name in Image.ID if name not in ("EPS", "IPTC")]


def is_picture(path: Path) -> bool:
    """Whether the name of a file has a suffix of a format that Pillow reads, such as .png, and is not hidden."""
    format_name = Image.registered_extensions().get(path.suffix.lower())
    return not path.name.startswith(".") and format_name in _formats()


def find_pictures(folder: Path, unreadable: Callable[[OSError], None] | None = None) -> list[Path]:
    """The files in `folder`, and in the folders below it, that `is_picture` holds for, sorted by path.

    Links to files are followed, and links to folders are not. Hidden folders are left out. A folder that cannot be read
    is left out, too, after `unreadable` has been called with the error.
    """

    def walk() -> Iterator[Path]:
        for place, folders, files in os.walk(folder, onerror=unreadable):
            folders[:] = [name for name in folders if not name.startswith(".")]
            yield from (Path(place, name) for name in files)

    return sorted(filter(is_picture, walk()))


def named_pictures(name: str, unreadable: Callable[[OSError], None] | None = None) -> list[str]:
    """The paths of the files that a name on a command line means.

    A file is itself, and a folder is what `find_pictures` finds in it. If there is neither, the name is a pattern as in
    a shell, with ** for folders of any depth: it means what its matches mean, in their order, each file once. Raises
    UserError if that is nothing, or the name is empty.
    """

    def files_of(place: str) -> list[str]:
        if kind_of(Path(place), follow=True) != "a folder":
            return [place]
        return [str(path) for path in find_pictures(Path(place), unreadable)]

    if not name:  # a shell's variable that is not set; as a path it would be the current folder
        raise UserError("expected a picture, a folder or a pattern, found an empty name")
    if kind_of(Path(name)):  # also if it could be a pattern
        if found := files_of(name):
            return found
        raise UserError(f"{name}: expected a folder with pictures, found none in it")
    # Not Path.glob, which takes no absolute pattern.
    matches = sorted(glob.glob(name, recursive=True))  # noqa: PTH207
    if found := dict.fromkeys(file for match in matches for file in files_of(match)):
        return list(found)
    raise UserError(f"{name}: expected a picture, a folder or a pattern with matches, found none")


def refuse_huge_pictures() -> None:
    """Let `read_picture` refuse pictures of more than 89 million pixels, of which Pillow only warns.

    For commands only, because it changes how the process treats warnings. Pillow's other warnings are not shown: they
    are of metadata, such as a damaged date in a photograph.
    """
    warnings.filterwarnings("ignore", module=r"PIL\.")
    warnings.simplefilter("error", Image.DecompressionBombWarning)


def read_picture(path: Path, image_shape: tuple[int, int, int], fit: Fit = "crop") -> np.ndarray:
    """The picture in a file as an image, uint8 [H, W, C] of `image_shape`; C is 1 (grey) or 3 (RGB).

    It is turned as its EXIF data says, and resized with an antialiasing filter (bicubic). What is transparent is put on
    white. 16 bits are scaled to 8. Palettes and other colour spaces are converted without their profiles. Of several
    frames or pages the first one is taken. It can be called in several threads at once.

    Raises UserError, which begins with the path, if the file cannot be read or holds no picture that can be used.
    """
    try:
        with os.fdopen(open_file(path, os.O_RDONLY, follow=True), "rb") as file:
            return decode_picture(file, str(path), image_shape, fit)
    except OSError as error:
        raise UserError(f"{path}: cannot read the picture: {error.strerror or error}") from None


def decode_picture(
    file: BinaryIO, name: str, image_shape: tuple[int, int, int], fit: Fit = "crop"
) -> np.ndarray:
    """The picture in an open file, which is called `name` in errors, as `read_picture` returns it."""
    height, width, channels = image_shape
    if channels not in (1, 3):
        raise UserError(
            f"{name}: expected a network for grey or RGB images, found one for {channels} channels"
        )
    with _opened(file, name) as picture:
        side = _DRAFT * max(height, width)
        picture.draft(None, (side, side))
        plain = _plain(_upright(picture)).convert("RGB" if channels == 3 else "L")
    size, bicubic = (width, height), Image.Resampling.BICUBIC
    image = ImageOps.fit(plain, size, bicubic) if fit == "crop" else plain.resize(size, bicubic)
    return np.asarray(image).reshape(image_shape)


def picture_size(path: Path) -> tuple[int, int]:
    """Height and width in pixels of the picture in a file, turned as its EXIF data says. Decodes only its header.

    Raises UserError, which begins with the path, if it holds no picture.
    """
    try:
        with (
            os.fdopen(open_file(path, os.O_RDONLY, follow=True), "rb") as file,
            _opened(file, str(path)) as picture,
        ):
            width, height = picture.size
            # Pillow tells the size as it is stored, but with the orientation among a TIFF's own tags as it is turned.
            own_tags = getattr(picture, "tag_v2", {})
            already = own_tags.get(ExifTags.Base.Orientation) in _TURNED
            turned = _orientation(picture) in _TURNED and not already
            return (width, height) if turned else (height, width)
    except OSError as error:
        raise UserError(f"{path}: cannot read the picture: {error.strerror or error}") from None


@contextlib.contextmanager
def _opened(file: BinaryIO, name: str) -> Iterator[Image.Image]:
    """The picture in an open file, which is called `name` in errors.

    All that goes wrong in the context is raised as UserError: on damaged files, Pillow's plugins raise errors of many
    types.
    """
    try:
        with Image.open(file, formats=_formats()) as picture:
            yield picture
    except Image.UnidentifiedImageError:
        content = "another file" if file.seek(0, os.SEEK_END) else "an empty file"
        raise UserError(
            f"{name}: expected a picture in a format that Pillow reads, found {content}"
        ) from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UserError(f"{name}: expected a picture of a usual size: {error}") from None
    except Exception as error:
        raise UserError(f"{name}: cannot read the picture: {error or type(error).__name__}") from None


def _orientation(picture: Image.Image) -> int:
    """EXIF's orientation of a picture; 1, "upright", if it has none or its EXIF data are damaged."""
    try:
        return picture.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # of many types, as for the pixels
        return 1


def _upright(picture: Image.Image) -> Image.Image:
    """A picture turned as its EXIF data says.

    Not ImageOps.exif_transpose, which writes all of the EXIF data anew: a value of a wrong type anywhere in it would
    make a good picture unreadable.
    """
    picture.load()  # the data of a PNG may come after its pixels, and a TIFF is turned already
    turn = _TURNS.get(_orientation(picture))
    return picture if turn is None else picture.transpose(turn)


def _plain(picture: Image.Image) -> Image.Image:
    """A picture in 8 bits without transparency. Raises ValueError if its pixel values have no known range."""
    if picture.has_transparency_data and not picture.mode.startswith("I"):
        return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture.convert("RGBA"))
    if picture.mode == "F":
        raise ValueError("expected 8 or 16 bits a channel, found floating-point numbers")
    if not picture.mode.startswith("I"):
        return picture
    values = np.asarray(picture.convert("I"))  # `convert` to 8 bits would cut them off at 255
    if values.min() < 0 or values.max() > _MOST_16_BITS:
        raise ValueError(f"expected 8 or 16 bits a channel, found values {values.min()} to {values.max()}")
    grey = np.round(values * (255 / _MOST_16_BITS)).astype(np.uint8)
    transparent = picture.info.get("transparency")  # of a PNG, one value
    return Image.fromarray(
        grey if transparent is None else np.where(values == transparent, np.uint8(255), grey)
    )
