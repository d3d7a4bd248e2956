"""The JPEG files of which a shard with the storage `jpeg` is made."""

import functools
import importlib.metadata
import importlib.util
import io

import numpy as np
import PIL
from PIL import Image

from data_prep.errors import UserError

QUALITY = 95  # 85 was the 2012 value
# Colors at full resolution: at quality 95 it takes some more room, and the largest error of a
# pixel falls from 183 to 25 (on benchmarks/build_shards.py's pictures; Pillow's default is 4:2:0).
SUBSAMPLING = "4:4:4"


def encode_jpeg(image: np.ndarray, quality: int) -> bytes:
    """An image as the JPEG file that a shard holds."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=quality, subsampling=SUBSAMPLING)
    return buffer.getvalue()


def decode_jpeg(data: bytes, image_size: int) -> np.ndarray:
    """The image of a JPEG file of a shard, which the caller names: uint8 (size, size, 3).

    Raises:
        UserError: it is no such file; the caller knows of which shard.
    """
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG",)) as picture:
            if picture.size != (image_size, image_size) or picture.mode != "RGB":
                raise UserError(
                    f"expected a JPEG of {image_size} x {image_size} RGB, got {picture.size[0]} x "
                    f"{picture.size[1]} {picture.mode}"
                )
            return np.asarray(picture)
    except (OSError, SyntaxError, EOFError, ValueError, Image.DecompressionBombError) as error:
        if isinstance(error, UserError):
            raise
        # What Pillow says of these is an address.
        is_none = isinstance(error, Image.UnidentifiedImageError)
        reason = f"its {len(data)} bytes are none" if is_none else error
        raise UserError(f"a JPEG in it cannot be decoded: {reason}") from None


@functools.cache
def _has_simplejpeg() -> bool:
    return importlib.util.find_spec("simplejpeg") is not None


def decoder_in_use() -> str:
    """Which library `decode_jpeg_into` calls, in words."""
    if _has_simplejpeg():
        return f"simplejpeg {importlib.metadata.version('simplejpeg')}"
    return f"Pillow {PIL.__version__} (simplejpeg would be faster: `pip install simplejpeg`)"


def decode_jpeg_into(data: np.ndarray, out: np.ndarray) -> None:
    """As `decode_jpeg`, the same pixels, into the memory of an image.

    By simplejpeg where it is installed: it is libjpeg-turbo, as Pillow is, holds no interpreter's
    lock while it decodes, and writes where it is told. Pillow says what is wrong with a file.

    Args:
        data: uint8 (B,), the file.
        out: uint8 (size, size, 3), without gaps.

    Raises:
        UserError: it is no such file; the caller knows of which shard.
    """
    if _has_simplejpeg():
        import simplejpeg

        try:
            height, width, colors, _ = simplejpeg.decode_jpeg_header(data)
            if (height, width) == out.shape[:2] and colors in ("YCbCr", "RGB"):
                simplejpeg.decode_jpeg(data, "RGB", buffer=out)
                return
        except ValueError:
            pass
    out[:] = decode_jpeg(data.tobytes(), len(out))
