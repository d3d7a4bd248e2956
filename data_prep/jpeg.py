"""The JPEG files of which a shard with the storage `jpeg` is made."""

import io

import numpy as np
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
