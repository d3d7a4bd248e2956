"""Pictures of every kind become the right pixels, or a reason."""

import io
import struct
import sys
import zlib

import numpy as np
import pytest
from PIL import Image

from data_prep import pictures
from data_prep.pictures import BadPictureError, PictureFormat, decode_picture


def encoded(picture, format_name="PNG", **options):
    buffer = io.BytesIO()
    picture.save(buffer, format_name, **options)
    return buffer.getvalue()


def gradient(width, height):
    """A picture in which every pixel tells its place."""
    rows, columns = np.mgrid[0:height, 0:width]
    channels = (255 * columns / width, 255 * rows / height, 128 + 0 * rows)
    return Image.fromarray(np.stack(channels, axis=-1).astype(np.uint8))


def plain(color, size=(300, 280)):
    return Image.new("RGB", size, color)


# --- Geometry


@pytest.mark.parametrize(("width", "height"), [(512, 300), (300, 512), (100, 700), (256, 256)])
def test_the_shorter_side_becomes_256_and_the_center_is_kept(width, height):
    square = decode_picture(encoded(gradient(width, height))).image
    assert square.shape == (256, 256, 3)
    shorter = min(width, height)
    middle_columns = (np.arange(256) - 127.5) / 256 * shorter / width + 0.5
    middle_rows = (np.arange(256) - 127.5) / 256 * shorter / height + 0.5
    np.testing.assert_allclose(square[128, 4:-4, 0], 255 * middle_columns[4:-4], atol=3)
    np.testing.assert_allclose(square[4:-4, 128, 1], 255 * middle_rows[4:-4], atol=3)


def test_a_picture_of_the_right_size_keeps_every_pixel():
    for size in (32, 64, 256):
        pixels = np.random.default_rng(size).integers(0, 256, (size, size, 3), np.uint8)
        image = decode_picture(encoded(Image.fromarray(pixels)), PictureFormat(size)).image
        assert np.array_equal(image, pixels)


def test_a_wide_picture_of_the_right_height_is_only_cut():
    pixels = np.random.default_rng(1).integers(0, 256, (64, 101, 3), np.uint8)
    image = decode_picture(encoded(Image.fromarray(pixels)), PictureFormat(64)).image
    # 37 columns too many: 19 go on the left.
    assert np.array_equal(image, pixels[:, 19 : 19 + 64])


@pytest.mark.parametrize("name", pictures.FILTERS)
def test_rescaling_in_two_steps_gives_the_bytes_of_one(name):
    generator = np.random.default_rng(4)
    for width, height in ((150, 99), (99, 150), (64, 130), (130, 64), (20, 31), (97, 97), (3, 70)):
        picture = Image.fromarray(generator.integers(0, 256, (height, width, 3), np.uint8))
        scale = 64 / min(width, height)
        size = (round(width * scale), round(height * scale))
        whole = np.asarray(picture.resize(size, Image.Resampling[name.upper()]))
        left, top = ((side - 64 + 1) // 2 for side in size)
        image = decode_picture(encoded(picture), PictureFormat(64, resampling=name)).image
        assert np.array_equal(image, whole[top : top + 64, left : left + 64]), (width, height)


@pytest.mark.parametrize(("width", "height"), [(512, 256), (128, 256), (300, 300)])
def test_padding_keeps_the_whole_picture_and_fills_with_black(width, height):
    padded = PictureFormat(256, fit="pad")
    image = decode_picture(encoded(plain((200, 100, 50), (width, height))), padded).image
    longer = max(width, height)
    rows, columns = (256 * side // longer for side in (height, width))
    inside = (image == (200, 100, 50)).all(axis=-1)
    assert inside.sum() == rows * columns
    assert (image[~inside] == 0).all()
    top, left = (257 - rows) // 2, (257 - columns) // 2
    assert inside[top : top + rows, left : left + columns].all()


@pytest.mark.parametrize("size", [(150, 99), (20, 310), (64, 64), (1, 300)])
def test_squashing_keeps_the_whole_picture_and_not_its_shape(size):
    generator = np.random.default_rng(5)
    picture = Image.fromarray(generator.integers(0, 256, (*size[::-1], 3), np.uint8))
    image = decode_picture(encoded(picture), PictureFormat(64, fit="squash")).image
    whole = picture.resize((64, 64), Image.Resampling.BILINEAR)
    assert np.array_equal(image, np.asarray(whole))


def test_the_filter_is_the_one_that_was_asked_for():
    data = encoded(gradient(700, 500), "JPEG", quality=95)
    with Image.open(io.BytesIO(data)) as picture:
        rgb = picture.convert("RGB")
    seen = set()
    for name in pictures.FILTERS:
        image = decode_picture(data, PictureFormat(256, resampling=name)).image
        resized = rgb.resize((358, 256), Image.Resampling[name.upper()])
        assert np.array_equal(image, np.asarray(resized)[:, 51 : 51 + 256]), name
        seen.add(image.tobytes())
    assert len(seen) == len(pictures.FILTERS)


@pytest.mark.fault(23)
@pytest.mark.parametrize(
    "size", [(1, 1), (1, 300), (600, 2), (40, 1600), (1600, 40), (1, 255), (255, 1)]
)
def test_narrow_and_wide_pictures_come_out_right(size):
    """40:1 and one pixel wide: the color of the middle, over the whole square."""
    width, height = size
    picture = plain((10, 20, 30), size)
    # The ends are another color: they lie outside of the central square.
    if max(size) > 4 * min(size):
        ends = (0, 0, width // 4, height) if width > height else (0, 0, width, height // 4)
        picture.paste((250, 250, 250), ends)
    image = decode_picture(encoded(picture)).image
    assert image.shape == (256, 256, 3)
    assert (image[128, 128] == (10, 20, 30)).all()
    if max(size) >= 40 * min(size) or max(size) == min(size):
        assert (image == (10, 20, 30)).all()


# --- Modes: known pixels, not Pillow's opinion of them


def cmyk_file(inks, *, has_adobe):
    """A JPEG of four inks, each 0 (none) to 255; Adobe's files store them inverted."""
    data = encoded(Image.new("CMYK", (300, 280), inks), "JPEG", quality=100)
    start = data.index(b"\xff\xee")
    length = struct.unpack(">H", data[start + 2 : start + 4])[0]
    assert data[start + 4 : start + 9] == b"Adobe"
    if has_adobe:
        return data
    # Pillow writes inverted inks and says Adobe: without the mark, the file must not be inverted.
    inverted = tuple(255 - ink for ink in inks)
    data = encoded(Image.new("CMYK", (300, 280), inverted), "JPEG", quality=100)
    return data[:start] + data[start + 2 + length :]


MODES = {
    "RGB": (encoded(plain((200, 100, 50))), (200, 100, 50)),
    "gray": (encoded(Image.new("L", (300, 280), 77)), (77, 77, 77)),
    "gray JPEG": (encoded(Image.new("L", (300, 280), 77), "JPEG"), (77, 77, 77)),
    "RGBA": (encoded(Image.new("RGBA", (300, 280), (200, 100, 50, 3))), (200, 100, 50)),
    "gray with alpha": (encoded(Image.new("LA", (300, 280), (77, 3))), (77, 77, 77)),
    "palette": (
        encoded(plain((200, 100, 50)).convert("P", palette=Image.Palette.ADAPTIVE)),
        (200, 100, 50),
    ),
    "black and white": (encoded(Image.new("1", (300, 280), 1)), (255, 255, 255)),
    "16 bits": (
        encoded(Image.fromarray(np.full((280, 300), 0x4D7F, np.uint16))),
        (0x4D, 0x4D, 0x4D),
    ),
    "PNG named JPEG": (encoded(plain((1, 2, 3))), (1, 2, 3)),
    "CMYK of Adobe": (cmyk_file((0, 128, 255, 0), has_adobe=True), (255, 127, 0)),
    "CMYK": (cmyk_file((0, 128, 255, 0), has_adobe=False), (255, 127, 0)),
    "black ink": (cmyk_file((0, 0, 0, 200), has_adobe=True), (55, 55, 55)),
}


@pytest.mark.fault(23)
@pytest.mark.parametrize("mode", MODES)
def test_every_mode_becomes_the_right_rgb(mode):
    data, color = MODES[mode]
    image = decode_picture(data).image
    assert np.abs(image.astype(int) - color).max() <= 2, image[0, 0]


# --- EXIF


def with_orientation(orientation, picture):
    exif = Image.Exif()
    exif[pictures.ORIENTATION_TAG] = orientation
    return encoded(picture, "JPEG", quality=95, exif=exif)


@pytest.mark.fault(26)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_ignored_and_counted(orientation):
    picture = gradient(300, 280)
    turned = decode_picture(with_orientation(orientation, picture))
    assert np.array_equal(turned.image, decode_picture(encoded(picture, "JPEG", quality=95)).image)
    assert turned.is_rotated == (orientation != 1)
    assert not turned.has_bad_exif


@pytest.mark.fault(26)
def test_damaged_exif_is_counted_and_the_picture_kept():
    picture = gradient(300, 280)
    data = with_orientation(6, picture)
    start = data.index(b"Exif\0\0") + 6
    damaged = data[:start] + b"\x00\x01" + data[start + 2 :]
    decoded = decode_picture(damaged)
    assert decoded.has_bad_exif
    assert not decoded.is_rotated
    assert np.array_equal(decoded.image, decode_picture(data).image)


def turned(pixels, orientation):
    """What EXIF's table of orientations says: where the stored row 0 and column 0 are to be seen.

    1 top left, 2 top right, 3 bottom right, 4 bottom left; 5 left top, 6 right top, 7 right
    bottom, 8 left bottom.
    """
    row_at, column_at = {
        1: ("top", "left"), 2: ("top", "right"), 3: ("bottom", "right"), 4: ("bottom", "left"),
        5: ("left", "top"), 6: ("right", "top"), 7: ("right", "bottom"), 8: ("left", "bottom"),
    }[orientation]  # fmt: skip
    if row_at in ("left", "right"):  # the stored rows are seen as columns
        pixels = pixels.transpose(1, 0, 2)
        row_at, column_at = column_at, row_at
    if row_at == "bottom":
        pixels = pixels[::-1]
    return pixels[:, ::-1] if column_at == "right" else pixels


LOSSLESS = {
    "PNG": {},
    "WEBP": {"lossless": True},
    "TIFF": {},
    "TIFF LZW": {"compression": "tiff_lzw"},
}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", LOSSLESS)
def test_orientation_is_ignored_or_applied_alike_in_every_format(name, orientation):
    pixels = np.random.default_rng(orientation).integers(0, 256, (48, 64, 3), np.uint8)
    exif = Image.Exif()
    exif[pictures.ORIENTATION_TAG] = orientation
    data = encoded(Image.fromarray(pixels), name.split()[0], exif=exif, **LOSSLESS[name])
    plain_way = PictureFormat(64, fit="pad")
    ignored = decode_picture(data, plain_way)
    applied = decode_picture(data, PictureFormat(64, fit="pad", exif_orientation="apply"))
    for decoded, seen in ((ignored, pixels), (applied, turned(pixels, orientation))):
        wanted = decode_picture(encoded(Image.fromarray(np.ascontiguousarray(seen))), plain_way)
        assert np.array_equal(decoded.image, wanted.image)
        assert decoded.is_rotated == (orientation != 1)


@pytest.mark.parametrize("name", ["JPEG", "AVIF"])
@pytest.mark.parametrize("decoder", pictures.DECODERS)
@pytest.mark.parametrize("orientation", [1, 2, 6, 8])
def test_orientation_is_applied_in_lossy_formats_by_each_decoder(name, decoder, orientation):
    if decoder == "fast":
        pytest.importorskip("cv2")
        pytest.importorskip("simplejpeg")
    exif = Image.Exif()
    exif[pictures.ORIENTATION_TAG] = orientation
    data = encoded(gradient(64, 64), name, quality=95, exif=exif)
    for way in pictures.EXIF_ORIENTATIONS:
        own = PictureFormat(64, decoder=decoder, exif_orientation=way)
        image = decode_picture(data, own).image.astype(int)
        seen = np.asarray(gradient(64, 64)).astype(int)
        wanted = turned(seen, orientation) if way == "apply" else seen
        assert np.abs(image - wanted).mean() < 4, way


def test_exif_after_the_pixels_of_a_png_is_applied():
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    exif = Image.Exif()
    exif[pictures.ORIENTATION_TAG] = 6
    data = encoded(Image.fromarray(pixels), exif=exif)
    start = data.index(b"eXIf") - 4
    end = start + 12 + struct.unpack(">I", data[start : start + 4])[0]
    late = data[:start] + data[end:-12] + data[start:end] + data[-12:]
    image = decode_picture(late, PictureFormat(64, exif_orientation="apply")).image
    assert np.array_equal(image, turned(pixels, 6))


@pytest.mark.parametrize("way", pictures.EXIF_ORIENTATIONS)
def test_a_picture_that_is_open_is_turned_as_its_file_is(way):
    data = with_orientation(6, gradient(300, 280))
    own = PictureFormat(exif_orientation=way)
    with Image.open(io.BytesIO(data)) as picture:
        image = pictures.fit_picture(picture, own)
    assert np.array_equal(image, decode_picture(data, own).image)


# --- Formats


def animated(format_name, **options):
    """Three frames, of which the first is red."""
    frames = [plain(color, (64, 64)) for color in ((255, 0, 0), (0, 255, 0), (0, 0, 255))]
    options |= {"save_all": True, "append_images": frames[1:]}
    return encoded(frames[0], format_name, **options)


ANIMATED = {
    "GIF": animated("GIF"),
    "WEBP": animated("WEBP", lossless=True),
    "PNG": animated("PNG"),
    "TIFF": animated("TIFF"),
    "AVIF": animated("AVIF"),
    "BMP": encoded(plain((255, 0, 0), (64, 64)), "BMP"),
    "JPEG": encoded(plain((255, 0, 0), (64, 64)), "JPEG"),
}


@pytest.mark.parametrize("name", pictures.FORMATS)
@pytest.mark.parametrize("decoder", pictures.DECODERS)
def test_the_first_frame_of_every_format_is_read(name, decoder):
    if decoder == "fast":
        pytest.importorskip("cv2")
        pytest.importorskip("simplejpeg")
    image = decode_picture(ANIMATED[name], PictureFormat(32, decoder=decoder)).image
    assert np.abs(image.astype(int) - (255, 0, 0)).max() <= 4


OTHER_MODES = {
    "TIFF CMYK": (encoded(Image.new("CMYK", (64, 64), (0, 128, 255, 0)), "TIFF"), (255, 127, 0)),
    "TIFF 16 bits": (
        encoded(Image.fromarray(np.full((64, 64), 0x4D7F, np.uint16)), "TIFF"),
        (0x4D, 0x4D, 0x4D),
    ),
    "TIFF gray": (encoded(Image.new("L", (64, 64), 77), "TIFF"), (77, 77, 77)),
    "GIF gray": (encoded(Image.new("L", (64, 64), 77), "GIF"), (77, 77, 77)),
    "BMP black and white": (encoded(Image.new("1", (64, 64), 1), "BMP"), (255, 255, 255)),
    "WEBP RGBA": (
        encoded(Image.new("RGBA", (64, 64), (200, 100, 50, 255)), "WEBP", lossless=True),
        (200, 100, 50),
    ),
}


@pytest.mark.parametrize("mode", OTHER_MODES)
def test_modes_of_the_other_formats_become_the_right_rgb(mode):
    data, color = OTHER_MODES[mode]
    image = decode_picture(data, PictureFormat(32)).image
    assert np.abs(image.astype(int) - color).max() <= 2, image[0, 0]


def test_inks_that_are_in_no_file_are_not_inverted():
    picture = Image.new("CMYK", (32, 32), (0, 128, 255, 0))
    assert np.array_equal(
        pictures.fit_picture(picture, PictureFormat(32))[0, 0], np.array([255, 127, 0])
    )


@pytest.mark.parametrize("name", pictures.FORMATS)
def test_a_bomb_of_every_format_is_refused_before_it_is_decoded(name, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 64 * 64 - 1)
    with pytest.raises(BadPictureError, match="refused before it is decoded"):
        decode_picture(ANIMATED[name], PictureFormat(8))


@pytest.mark.parametrize("name", pictures.FORMATS)
def test_a_damaged_file_of_every_format_gives_an_image_or_a_reason(name):
    generator = np.random.default_rng(5)
    whole = np.frombuffer(ANIMATED[name], np.uint8)
    for i in range(150):
        data = whole[: len(whole) if i % 3 else generator.integers(1, len(whole))].copy()
        places = generator.integers(0, min(len(data), 400 if i % 2 else len(data)), 1 + i % 5)
        data[places] = generator.integers(0, 256, len(places))
        try:
            image = decode_picture(data.tobytes(), PictureFormat(8)).image
        except BadPictureError:
            continue
        assert (image.shape, image.dtype) == ((8, 8, 3), np.uint8)


class Heif:
    """What pillow-heif does when it is installed: it adds an opener to Pillow."""

    @staticmethod
    def register_heif_opener():
        Image.register_open("HEIF", lambda *_: plain((1, 2, 3)), lambda _: True)


def test_heic_is_read_where_its_plug_in_is_installed(monkeypatch):
    found = pictures.importlib.util.find_spec
    monkeypatch.setattr(
        pictures.importlib.util,
        "find_spec",
        lambda name: Heif if name == "pillow_heif" else found(name),
    )
    monkeypatch.setattr(pictures.importlib.metadata, "version", lambda _: "1.0")
    monkeypatch.setitem(sys.modules, "pillow_heif", Heif)
    monkeypatch.setattr(Image, "OPEN", dict(Image.OPEN))
    monkeypatch.setattr(Image, "ID", list(Image.ID))
    pictures._formats.cache_clear()
    try:
        assert (decode_picture(HEIC, PictureFormat(32)).image == (1, 2, 3)).all()
        assert pictures.decoder_name("pillow").endswith(" with pillow-heif 1.0")
    finally:
        monkeypatch.undo()
        pictures._formats.cache_clear()
    with pytest.raises(BadPictureError, match="neither JPEG, PNG"):
        decode_picture(HEIC)


# --- What is no picture


HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + b"\0" * 100


def png_header(width, height):
    """A PNG that says it is large, and holds nothing."""
    data = bytearray(encoded(plain((0, 0, 0), (8, 8))))
    data[16:24] = struct.pack(">II", width, height)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    return bytes(data)


@pytest.mark.fault(24, 25)
@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", r"neither JPEG, PNG, WEBP, GIF, TIFF, BMP nor AVIF \(0 bytes\)"),
        (b"I am a text file\n", "neither JPEG, PNG"),
        (HEIC, "neither JPEG, PNG"),
        (encoded(gradient(300, 300), "JPEG")[:2000], "cannot be decoded: .*truncated"),
        (encoded(gradient(300, 300))[:900], "cannot be decoded"),
        (encoded(gradient(60, 60), "PPM"), "neither JPEG, PNG"),
        (encoded(gradient(60, 60), "ICO"), "neither JPEG, PNG"),
        (encoded(gradient(60, 60), "PDF"), "neither JPEG, PNG"),
        (encoded(Image.new("F", (60, 60)), "TIFF"), "a TIFF of mode F, whose white is not known"),
        (encoded(Image.new("1", (20_000, 20_000))), "refused before it is decoded"),
        (png_header(2**31 - 1, 2**31 - 1), "refused before it is decoded"),
        (png_header(65_500, 65_500), "refused before it is decoded"),
        (encoded(Image.new("L", (1, 2000))), "too narrow: 1 x 2000 pixels"),
        (encoded(Image.new("L", (65_500, 20)), "JPEG"), "too narrow: 65500 x 20 pixels"),
    ],
    ids=["empty", "text", "heic", "cut jpeg", "cut png", "ppm", "ico", "pdf", "float", "bomb",
         "giant", "square", "narrow", "wide"],
)  # fmt: skip
@pytest.mark.parametrize("decoder", pictures.DECODERS)
def test_what_is_no_picture_gives_its_reason(data, reason, decoder):
    if decoder == "fast":
        pytest.importorskip("cv2")
        pytest.importorskip("simplejpeg")
    with pytest.raises(BadPictureError, match=reason):
        decode_picture(data, PictureFormat(decoder=decoder))


@pytest.mark.fault(23)
def test_a_picture_65500_pixels_wide_is_decoded_where_it_is_not_too_narrow():
    data = encoded(plain((9, 8, 7), (65_500, 300)), "JPEG", quality=95)
    assert np.abs(decode_picture(data).image.astype(int) - (9, 8, 7)).max() <= 2


# --- The fast decoder


@pytest.mark.parametrize("size", [(500, 375), (1400, 1100), (300, 700)])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("fit", pictures.FITS)
def test_the_fast_decoder_gives_nearly_the_same_pixels(size, mode, fit):
    pytest.importorskip("cv2")
    pytest.importorskip("simplejpeg")
    data = encoded(gradient(*size).convert(mode), "JPEG", quality=95)
    slow = decode_picture(data, PictureFormat(fit=fit))
    fast = decode_picture(data, PictureFormat(fit=fit, decoder="fast"))
    assert fast.mode == slow.mode
    difference = np.abs(fast.image.astype(int) - slow.image)
    assert difference.mean() < 1.5
    # A shift by two pixels, or by one row, would be seen.
    shifted = np.roll(slow.image, 2, axis=1).astype(int)
    assert np.abs(fast.image - shifted).mean() > difference.mean()


def test_the_fast_decoder_refuses_to_be_missing(monkeypatch):
    monkeypatch.setattr(pictures.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(pictures.UserError, match="simplejpeg and opencv-python-headless, not inst"):
        pictures.decoder_name("fast")
