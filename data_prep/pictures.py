"""A file's bytes -> 256 x 256 RGB (paper 2).

H rows, W columns, C channels (red, green, blue).
"""

import io
import warnings

import numpy as np
import PIL
from PIL import Image

# ImageNet's files are JPEG, one of them PNG under a JPEG name; nothing else is tried.
FORMATS = ("JPEG", "PNG")
# The paper does not name the filter. DEVIATION D1: bilinear, antialiased as Pillow does it.
RESAMPLING = "bilinear"
DECODER = f"Pillow {PIL.__version__}"


class BadPictureError(Exception):
    """This file gives no picture; the message is the reason that the manifest lists."""


def decode_picture(data: bytes, *, image_size: int) -> np.ndarray:
    """Decodes a file, rescales its shorter side and cuts the central square (paper 2).

    Orientation tags are not applied: no known pipeline for ImageNet did. Grey pictures get three
    equal channels, CMYK is converted, transparency is dropped.

    Args:
        data: the file's bytes.
        image_size: the side of the result in pixels, 256 in the paper.

    Returns:
        uint8 of shape (image_size, image_size, 3), red first.

    Raises:
        BadPictureError: the bytes are no readable picture.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data), formats=FORMATS) as picture:
                rgb = _to_rgb(picture)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise BadPictureError(
            f"larger than {Image.MAX_IMAGE_PIXELS} pixels, refused before it is decoded"
        ) from None
    except Image.UnidentifiedImageError:
        raise BadPictureError(f"neither JPEG nor PNG ({len(data)} bytes)") from None
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise BadPictureError(f"cannot be decoded: {error}") from None
    return _central_square(rgb, image_size=image_size)


def _to_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I"):
        # 16-bit grey: Pillow's conversion would clip at 255 instead of scaling.
        grey = (np.asarray(picture).astype(np.int64) >> 8).clip(0, 255)
        return Image.fromarray(grey.astype(np.uint8)).convert("RGB")
    return picture.convert("RGB")


def _central_square(rgb: Image.Image, *, image_size: int) -> np.ndarray:
    width, height = rgb.size
    shorter = min(width, height)
    new_width = max(image_size, round(width * image_size / shorter))
    new_height = max(image_size, round(height * image_size / shorter))
    if Image.MAX_IMAGE_PIXELS is not None and new_width * new_height > Image.MAX_IMAGE_PIXELS:
        raise BadPictureError(f"too narrow: {width} x {height} pixels")
    rgb = rgb.resize((new_width, new_height), Image.Resampling[RESAMPLING.upper()])
    # Where the remainder is odd, no square is quite central: this is the later of the two.
    left = (new_width - image_size + 1) // 2
    top = (new_height - image_size + 1) // 2
    return np.array(rgb.crop((left, top, left + image_size, top + image_size)))
