"""In a worker process: pictures -> one shard, decoded, added up, hashed and written.

A shard is the work of one process, so pixels never travel between processes, and a process holds no
more than a few images.
"""

import errno
import os
import time
from collections import Counter
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from data_prep.color_statistics import PixelSummer
from data_prep.errors import UserError, printable
from data_prep.jpeg import encode_jpeg
from data_prep.manifest import BadPicture, ShardEntry, Storage
from data_prep.pictures import BadPictureError, Decoded, PictureFormat, decode_picture, fit_pixels
from data_prep.shard_writer import Classes, JpegShardWriter, RawShardWriter
from data_prep.sources.picture_set import Picture, Pictures
from data_prep.sources.places import InputChangedError, Pixels, Reader
from data_prep.workers import check_wanted, count

# Counters that the parent shows.
PICTURES, BAD_PICTURES, DISK_BYTES = range(3)
# A file that a listing named and that now gives one of these has not gone bad: the input has.
LOST_INPUT = (errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.ETIMEDOUT, errno.ENXIO, errno.ENODEV)
OUT_OF_FILES = (errno.EMFILE, errno.ENFILE)


@dataclass(frozen=True)
class ShardTask:
    """One shard to build."""

    part: str
    number: int
    path: Path
    pictures: Pictures


@dataclass(frozen=True)
class BuildSettings:
    """What is the same for all shards of a build."""

    picture_format: PictureFormat
    storage: Storage
    classes: Classes
    strict: bool


def read_picture(picture: Picture, reader: Reader, picture_format: PictureFormat) -> Decoded:
    """Reads and decodes a picture from wherever it is.

    Raises:
        BadPictureError: it gives no picture; the reason stands in the manifest.
        InputChangedError: the input as a whole is not what it was when it was listed.
    """
    place = picture.place
    if isinstance(place, Pixels):
        return fit_pixels(place.data, place.side, picture_format)
    try:
        data = reader.read(place)
    except InputChangedError:
        raise
    except ValueError as error:
        raise BadPictureError(str(error)) from None
    except OSError as error:
        if error.errno in OUT_OF_FILES:
            raise
        vanished = error.errno == errno.ENOENT and not os.path.lexists(str(place))
        if vanished or error.errno in LOST_INPUT:
            raise InputChangedError(
                f"{place}: was listed and cannot be read any more ({error.strerror}): bring the "
                "input back, then run the same command again; finished shards are kept"
            ) from None
        raise BadPictureError(f"cannot be read: {error.strerror}") from None
    return decode_picture(data, picture_format)


def build_shard(task: ShardTask, settings: BuildSettings) -> tuple[ShardTask, ShardEntry]:
    """Builds one shard, and returns its manifest entry.

    Pictures that cannot be read are left out and stand in the entry with their reason.

    Raises:
        UserError: the disk refuses, the input vanished, or with `strict` a picture is bad.
        StoppedError: the parent has given up.
    """
    summer, reader = PixelSummer(settings.picture_format.image_size), Reader()
    bad: list[BadPicture] = []
    seen: Counter[str] = Counter()
    writer = _open_writer(task, settings)
    try:
        for picture in task.pictures:
            check_wanted()
            try:
                decoded = read_picture(picture, reader, settings.picture_format)
            except BadPictureError as error:
                if settings.strict:
                    raise UserError(f"{picture.name}: {error} (--strict stops here)") from None
                bad.append(BadPicture(printable(picture.name), str(error)))
                count(BAD_PICTURES)
                count(PICTURES)
                continue
            seen[decoded.mode] += 1
            if decoded.is_rotated:
                seen["rotated by EXIF"] += 1
            if decoded.has_bad_exif:
                seen["damaged EXIF"] += 1
            summer.add(writer.add(decoded.image, picture=picture.name, label=picture.label))
            count(PICTURES)
        file = None
        if len(bad) < len(task.pictures):
            file = writer.finish(summer.sums())
            count(DISK_BYTES, file.num_bytes)
        else:
            writer.abandon()
    except BaseException:
        writer.abandon()
        raise
    finally:
        reader.close()
    return task, ShardEntry(file, tuple(bad), dict(seen))


def _open_writer(task: ShardTask, settings: BuildSettings) -> RawShardWriter | JpegShardWriter:
    classes, size = settings.classes, settings.picture_format.image_size
    quality, num_planned = settings.storage.quality, len(task.pictures)
    if quality is not None:
        return JpegShardWriter(task.path, classes=classes, size=size, quality=quality)
    return RawShardWriter(task.path, classes=classes, size=size, num_planned=num_planned)


def sample_cost(pictures: Pictures, settings: BuildSettings) -> tuple[int, int, float]:
    """For an estimate: how many pictures can be read, their bytes in a shard, and the seconds."""
    summer, quality = PixelSummer(settings.picture_format.image_size), settings.storage.quality
    sizes, start = [], time.perf_counter()
    with closing(Reader()) as reader:
        for picture in pictures:
            try:
                image = read_picture(picture, reader, settings.picture_format).image
            except BadPictureError:
                continue
            sizes.append(image.nbytes if quality is None else len(encode_jpeg(image, quality)))
            summer.add(image)
    return len(sizes), sum(sizes), time.perf_counter() - start
