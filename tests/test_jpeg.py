"""JPEG files of shards: the same pixels and messages, whichever library decodes them."""

import io

import numpy as np
import pytest
from PIL import Image

from data_prep import jpeg
from data_prep.errors import UserError
from data_prep.jpeg import decode_jpeg, decode_jpeg_into, encode_jpeg


@pytest.fixture(params=["simplejpeg", "Pillow"])
def decoder(request, monkeypatch):
    """Each library that may decode; the other is out of reach."""
    if request.param == "simplejpeg":
        simplejpeg = pytest.importorskip("simplejpeg")
        monkeypatch.setattr(jpeg, "_has_simplejpeg", lambda: True)
        return simplejpeg
    monkeypatch.setattr(jpeg, "_has_simplejpeg", lambda: False)
    return None


def picture(size=32, seed=0):
    """Smooth and noisy parts."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:size, :size] / size
    smooth = np.stack([rows, columns, rows * columns], axis=-1) * 255
    return (smooth * 0.7 + rng.uniform(0, 76, smooth.shape)).astype(np.uint8)


def as_file(image, **options):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", **options)
    return buffer.getvalue()


def decoded(file, size):
    """What it writes, and that it writes nothing around it."""
    memory = np.full((3, size, size, 3), 7, np.uint8)
    decode_jpeg_into(np.frombuffer(file, np.uint8), memory[1])
    assert (memory[[0, 2]] == 7).all()
    return memory[1]


@pytest.mark.parametrize("quality", [50, 85, 95, 100])
@pytest.mark.parametrize("size", [8, 29, 256])
def test_pixels_are_those_that_the_sums_were_made_of(decoder, quality, size):
    for seed in range(3):
        file = encode_jpeg(picture(size, seed), quality)
        with Image.open(io.BytesIO(file)) as opened:
            expected = np.array(opened)
        assert np.array_equal(decoded(file, size), expected)
        assert np.array_equal(decode_jpeg(file, size), expected)


@pytest.mark.parametrize("options", [{"subsampling": 2}, {"progressive": True}], ids=str)
def test_so_are_those_of_other_files_that_pillow_writes(decoder, options):
    file = as_file(picture(96), quality=90, **options)
    assert np.array_equal(decoded(file, 96), decode_jpeg(file, 96))


@pytest.mark.parametrize(
    ("file", "message"),
    [
        (encode_jpeg(picture(24), 90), "expected a JPEG of 32 x 32 RGB, got 24 x 24 RGB"),
        (encode_jpeg(picture(40), 90), "expected a JPEG of 32 x 32 RGB, got 40 x 40 RGB"),
        (as_file(picture()[..., 0]), "expected a JPEG of 32 x 32 RGB, got 32 x 32 L"),
        (encode_jpeg(picture(), 90)[:700], "a JPEG in it cannot be decoded: .*truncated"),
        (b"not a JPEG at all", "a JPEG in it cannot be decoded: its 17 bytes are none"),
    ],
    ids=["smaller", "larger", "gray", "cut off", "text"],
)
def test_what_is_no_such_file_is_refused_with_pillows_words(decoder, file, message):
    with pytest.raises(UserError, match=message):
        decoded(file, 32)


def test_simplejpeg_is_asked_where_it_is_installed(monkeypatch):
    simplejpeg = pytest.importorskip("simplejpeg")
    monkeypatch.setattr(jpeg, "decode_jpeg", None)
    file = encode_jpeg(picture(), 90)
    assert np.array_equal(decoded(file, 32), simplejpeg.decode_jpeg(file, "RGB"))


def test_the_decoder_is_named(decoder):
    name = jpeg.decoder_in_use()
    assert name.startswith(f"simplejpeg {decoder.__version__}" if decoder else "Pillow ")
    assert ("pip install simplejpeg" in name) == (decoder is None)
