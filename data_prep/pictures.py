"""A file's bytes -> 256 x 256 RGB (paper 2).

H rows, W columns, C channels (red, green, blue).
"""

import functools
import importlib.metadata
import importlib.util
import io
import struct
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import PIL
from PIL import Image, ImageChops

from data_prep.errors import UserError

# By their first bytes, whatever the name; nothing else is tried. ImageNet's files are JPEG, one of
# them PNG under a JPEG name. Of several frames the first is taken.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "AVIF")
# The paper does not name the filter. DEVIATION D1: bilinear, antialiased as Pillow does it.
RESAMPLING = "bilinear"
FILTERS = ("bilinear", "bicubic", "lanczos", "hamming", "box", "nearest")
# `crop` is the paper's; in the source's notes `pad` is called full; others squash.
FITS = ("crop", "pad", "squash")
DECODERS = ("pillow", "fast")
EXIF_ORIENTATIONS = ("ignore", "apply")
ORIENTATION_TAG = 0x0112
# What turns the stored pixels into those to be seen, for each value of the tag.
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# A gray level of 16 bits is cut to its upper 8: 257 of its levels become one.
DEEP_MODES = ("I", "I;16", "I;16B", "I;16L")
# Whatever else damaged files lead Pillow's readers to, of which not all expect them.
DAMAGE = (
    *(ArithmeticError, AttributeError, EOFError, LookupError, OSError, RuntimeError, SyntaxError),
    *(TypeError, ValueError, struct.error),
)


class BadPictureError(Exception):
    """This file gives no picture; the message is the reason that the manifest lists."""


@dataclass(frozen=True)
class PictureFormat:
    """How a file becomes an image.

    The fit `crop` rescales the shorter side and keeps the central square (paper 2); `pad` rescales
    the longer side and fills the rest with black, the source's "full" variant; `squash` rescales
    each side for itself, as other projects do. The pixels of the decoder `fast` differ a little.
    The orientation that EXIF asks for is ignored or applied.
    """

    image_size: int = 256
    fit: str = FITS[0]
    resampling: str = RESAMPLING
    decoder: str = DECODERS[0]
    exif_orientation: str = EXIF_ORIENTATIONS[0]


@dataclass(frozen=True)
class Decoded:
    """An image, and what is worth counting about the file that it came from."""

    image: np.ndarray  # uint8 (H, W, 3)
    mode: str  # the file's own, such as `RGB`, `L` or `CMYK`
    is_rotated: bool = False  # EXIF asks for a rotation, whether it is applied or not
    has_bad_exif: bool = False


@functools.cache
def _formats() -> tuple[str, ...]:
    """The formats that are tried: HEIC, too, where its plug-in is installed."""
    if importlib.util.find_spec("pillow_heif") is None:
        return FORMATS
    import pillow_heif

    pillow_heif.register_heif_opener()
    return (*FORMATS, "HEIF")


def decoder_name(decoder: str) -> str:
    """The libraries behind a decoder, if they are installed, with the versions that matter.

    Raises:
        UserError: the fast decoder is not installed.
    """
    pillow = f"Pillow {PIL.__version__}"
    if "HEIF" in _formats():
        pillow += f" with pillow-heif {importlib.metadata.version('pillow-heif')}"
    if decoder == "pillow":
        return pillow
    modules = {"simplejpeg": "simplejpeg", "cv2": "opencv-python-headless"}
    missing = [name for module, name in modules.items() if not importlib.util.find_spec(module)]
    if missing:
        raise UserError(
            f"--decoder fast: expected {' and '.join(missing)}, not installed here: "
            "`pip install 'replica-alexnet[fast]'`, or leave the option out"
        )
    # Under other distributions of OpenCV the name differs; the version is the module's own.
    import cv2

    simplejpeg = importlib.metadata.version("simplejpeg")
    return f"fast: simplejpeg {simplejpeg}, OpenCV {cv2.__version__}, else {pillow}"


def decode_picture(data: bytes, picture_format: PictureFormat | None = None) -> Decoded:
    """Decodes a file, rescales it and cuts the square (paper 2).

    Orientation tags are not applied by default: no known pipeline for ImageNet did. Gray pictures
    get three equal channels, CMYK is converted, transparency is dropped. By default the result is
    the paper's, of 256 x 256.

    Raises:
        BadPictureError: the bytes are no readable picture.
    """
    picture_format = picture_format or PictureFormat()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data), formats=_formats()) as picture:
                mode, kind = picture.mode, picture.format
                if kind == "TIFF" and mode in ("I", "F"):
                    raise BadPictureError(f"a TIFF of mode {mode}, whose white is not known")
                _new_size(picture.size, picture_format)
                if kind == "PNG" and picture_format.exif_orientation == "apply":
                    picture.load()  # its EXIF may come after the pixels
                orientation, bad_exif = _exif(picture)
                turn = _turn_of(orientation, picture_format, is_turned=kind == "TIFF")
                is_fast = picture_format.decoder == "fast" and kind == "JPEG" and turn is None
                image = _fast(data, picture_format) if is_fast and mode in ("RGB", "L") else None
                if image is None:
                    rgb = _to_rgb(picture)
                    image = _fitted(rgb if turn is None else rgb.transpose(turn), picture_format)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise BadPictureError(
            f"larger than {Image.MAX_IMAGE_PIXELS} pixels, refused before it is decoded"
        ) from None
    except Image.UnidentifiedImageError:
        *names, last = _formats()
        expected = f"neither {', '.join(names)} nor {last}"
        raise BadPictureError(f"{expected} ({len(data)} bytes)") from None
    except DAMAGE as error:
        raise BadPictureError(f"cannot be decoded: {error}") from None
    return Decoded(image, mode, orientation not in (0, 1), bad_exif)


def fit_picture(picture: Image.Image, picture_format: PictureFormat) -> np.ndarray:
    """A picture that is open already, rescaled and cut: uint8 (H, W, 3).

    Raises:
        BadPictureError: it is too narrow, or its file is damaged.
    """
    try:
        turn = None
        if picture.format != "TIFF":  # which Pillow turns itself
            turn = _turn_of(_exif(picture)[0], picture_format, is_turned=False)
        rgb = _to_rgb(picture)
        return _fitted(rgb if turn is None else rgb.transpose(turn), picture_format)
    except DAMAGE as error:
        raise BadPictureError(f"cannot be decoded: {error}") from None


def fit_pixels(planes: bytes, side: int, picture_format: PictureFormat) -> Decoded:
    """An image from pixels that need no decoding: uint8 planes (3, side, side), red first."""
    pixels = np.frombuffer(planes, np.uint8).reshape(3, side, side).transpose(1, 2, 0)
    picture = Image.fromarray(np.ascontiguousarray(pixels))
    return Decoded(_fitted(picture, picture_format), "RGB")


def _exif(picture: Image.Image) -> tuple[int, bool]:
    """The orientation tag, 1 where there is none, and whether the EXIF data is damaged."""
    if picture.format == "TIFF":
        return getattr(picture, "tag_v2", {}).get(ORIENTATION_TAG, 1), False
    if not picture.info.get("exif"):
        return 1, False
    try:
        # Not picture.getexif(): the JPEG plugin has read and forgiven it when it opened the file.
        exif = Image.Exif()
        exif.load(picture.info["exif"])
        return exif.get(ORIENTATION_TAG, 1), False
    except Exception:  # whatever damaged tags lead Pillow to
        return 1, True


def _turn_of(
    orientation: int, picture_format: PictureFormat, *, is_turned: bool
) -> Image.Transpose | None:
    """What the pixels that Pillow gives are still to be turned by, or turned back."""
    if is_turned == (picture_format.exif_orientation == "apply"):
        return None
    if is_turned and orientation in (6, 8):  # the two that are not their own inverse
        orientation = 14 - orientation
    return TURNS.get(orientation)


def _to_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode in DEEP_MODES:
        # 16-bit gray: Pillow's conversion would clip at 255 instead of scaling.
        gray = (np.asarray(picture).astype(np.int64) >> 8).clip(0, 255)
        return Image.fromarray(gray.astype(np.uint8)).convert("RGB")
    is_jpeg = picture.format in ("JPEG", "MPO")
    if picture.mode == "CMYK" and is_jpeg and "adobe" not in picture.info:
        # Pillow takes every CMYK JPEG for Adobe's, whose inks are inverted; this one says nothing.
        picture.load()
        return ImageChops.invert(picture).convert("RGB")
    picture.load()
    # convert() would copy what is RGB already.
    return picture if picture.mode == "RGB" else picture.convert("RGB")


def _new_size(size: tuple[int, int], picture_format: PictureFormat) -> tuple[int, int]:
    """Width and height after rescaling, before the square is cut; BadPictureError if too large."""
    width, height = size
    side = picture_format.image_size
    if picture_format.fit == "squash":
        return side, side
    if picture_format.fit == "pad":
        longer = max(width, height)
        return max(1, round(width * side / longer)), max(1, round(height * side / longer))
    shorter = min(width, height)
    new_width = max(side, round(width * side / shorter))
    new_height = max(side, round(height * side / shorter))
    if Image.MAX_IMAGE_PIXELS is not None and new_width * new_height > Image.MAX_IMAGE_PIXELS:
        raise BadPictureError(f"too narrow: {width} x {height} pixels")
    return new_width, new_height


def _offset(length: int, side: int) -> int:
    """Where the central square begins; of two that are equally central, the later."""
    return (length - side + 1) // 2


def _fitted(rgb: Image.Image, picture_format: PictureFormat) -> np.ndarray:
    side = picture_format.image_size
    new_width, new_height = _new_size(rgb.size, picture_format)

    def resized(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
        if picture.size == size:
            return picture
        return picture.resize(size, Image.Resampling[picture_format.resampling.upper()])

    if picture_format.fit == "pad":
        # DEVIATION D13: the source's notes do not say with what they fill; here it is black.
        return _padded(np.asarray(resized(rgb, (new_width, new_height))), side)
    if picture_format.fit == "squash":
        return np.asarray(resized(rgb, (new_width, new_height)))
    # Pillow rescales the width, rounds, then rescales the height. Cutting the columns in between
    # gives the same bytes as cutting all at the end, and rescales fewer of them.
    left, top = _offset(new_width, side), _offset(new_height, side)
    rgb = resized(rgb, (new_width, rgb.height))
    if new_width > side:
        rgb = rgb.crop((left, 0, left + side, rgb.height))
    rgb = resized(rgb, (side, new_height))
    if new_height > side:
        rgb = rgb.crop((0, top, side, top + side))
    return np.asarray(rgb)


def _padded(image: np.ndarray, side: int) -> np.ndarray:
    height, width = image.shape[:2]
    square = np.zeros((side, side, 3), np.uint8)
    top, left = _offset(side, height), _offset(side, width)
    square[top : top + height, left : left + width] = image
    return square


def _fast(data: bytes, picture_format: PictureFormat) -> np.ndarray | None:
    """Decodes a JPEG with other libraries; None where they cannot, so that Pillow says why.

    libjpeg-turbo's faster transforms, its exact halving of large pictures, and two taps per pixel
    instead of an antialiased filter.
    """
    import cv2
    import simplejpeg

    cv2.setNumThreads(1)
    side = picture_format.image_size
    height, width, _, _ = simplejpeg.decode_jpeg_header(data)
    # Halving is fast; reductions by less than two are slower than none.
    can_halve = min(width, height) >= 2 * side
    limits: dict[str, Any] = {"min_height": side, "min_width": side} if can_halve else {}
    try:
        pixels = simplejpeg.decode_jpeg(data, "RGB", fastdct=True, fastupsample=True, **limits)
    except ValueError:
        return None
    new_width, new_height = _new_size((width, height), picture_format)
    if pixels.shape[:2] != (new_height, new_width):
        interpolation = {"nearest": cv2.INTER_NEAREST, "bicubic": cv2.INTER_CUBIC}.get(
            picture_format.resampling, cv2.INTER_LINEAR
        )
        pixels = cv2.resize(pixels, (new_width, new_height), interpolation=interpolation)
    if picture_format.fit == "pad":
        return _padded(pixels, side)
    left, top = _offset(new_width, side), _offset(new_height, side)
    return np.ascontiguousarray(pixels[top : top + side, left : left + side])
