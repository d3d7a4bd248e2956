"""data_prep as a library: (picture, label) pairs of any program -> shards.

from data_prep.pairs import write_shards

data = write_shards(torchvision.datasets.Flowers102("flowers"), "shards", val_fraction=0.2)
"""

import io
import operator
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from PIL import Image

from data_prep.builder import LOCK_FILE, WHEN_HELD, complete, is_complete, is_whole, start_manifest
from data_prep.errors import UserError, print_line
from data_prep.files import disk_errors, locked, part_of
from data_prep.jpeg import QUALITY, SUBSAMPLING
from data_prep.manifest import MANIFEST_FILE, PARTS, Plan, Storage
from data_prep.manifest_json import write_manifest
from data_prep.pictures import BadPictureError, PictureFormat, decoder_name, fit_picture
from data_prep.plan import all_tasks, check_pictures, check_room, plan_of
from data_prep.shard_builder import BuildSettings, build_shard
from data_prep.shard_writer import Classes
from data_prep.shards import DataSet, open_data_set
from data_prep.sources.archives import compressed_tar_files, file_kind, tar_files
from data_prep.sources.picture_set import Picture, PictureSet, is_picture_name
from data_prep.sources.places import Place, Reader, Refused, Span, container_at

Pair = tuple[Any, Any]  # a picture and its label


class Stored(NamedTuple):
    """Where the spool has a picture: its first byte, and how many."""

    offset: int
    size: int


SEED = 2012  # of a division into train and val, as of the command
MOST_CLASSES = 1_000_000
MAX_LABEL_BYTES = 1000


def write_shards(
    pairs: Iterable[Pair] | Mapping[str, Iterable[Pair]],
    output: str | Path,
    *,
    class_names: Sequence[str] | None = None,
    wnids: Sequence[str] | None = None,
    val_fraction: float | str | Fraction | None = None,
    seed: int = SEED,
    picture_format: PictureFormat | None = None,
    storage: str = "raw",
    images_per_shard: int = 1024,
    strict: bool = False,
) -> DataSet:
    """Writes the shards of (picture, label) pairs, as `build_shards.py` does those of files.

    The pairs are gone through once, in their order, and never held in memory together: until the
    shards are there, the fitted pictures take the room of raw shards in `output`. The same pairs
    give the same bytes, and a call that was interrupted goes on. All happens in this process.

    Args:
        pairs: the pairs, all of them train; or pairs for each of train, val and test. A picture is
            a PIL image, uint8 (H, W, 3) or (H, W), the bytes of a file, or a file's path; a label
            a whole number from 0, or the text of a class.
        output: the directory of the data set, empty or new.
        class_names: of all classes, in the order of the labels; without them those that occur.
        wnids: identifiers of the classes, where names alone do not differ; else the names.
        val_fraction: so large a part of each class, between 0 and 1, is cut out of train as val.
        seed: of that division, which depends on it and on the places of the pairs alone.
        picture_format: size, fit, resampling, decoder, orientation; by default the paper's.
        storage: `raw`, or `jpeg` of quality 95.
        images_per_shard: images per file.
        strict: whether a picture that cannot be read is an error, and not listed in the manifest.

    Returns:
        The data set, open.

    Raises:
        UserError: a pair is none, with its number; there are no train or no other pictures; the
            directory is in use, or the disk refuses. What is refused leaves nothing.
    """
    output, own_format = Path(output), picture_format or PictureFormat()
    given = pairs if isinstance(pairs, Mapping) else {"train": pairs}
    if unknown := [part for part in given if part not in PARTS]:
        raise UserError(f"pairs: expected the parts {', '.join(PARTS)}, got {unknown[0]!r}")
    if storage not in ("raw", "jpeg"):
        raise UserError(f"storage: expected raw or jpeg, got {storage!r}")
    if images_per_shard < 1:
        raise UserError(f"images_per_shard: expected at least 1, got {images_per_shard}")
    kept = Storage(storage)
    if storage == "jpeg":
        kept = Storage(storage, QUALITY, SUBSAMPLING, decoder_name("pillow"))
    with locked(output / LOCK_FILE, title=f"output {output}", when_held=WHEN_HELD):
        spool = part_of(output / "pairs")
        try:
            pictures = _listed(given, spool, own_format, class_names, wnids)
            if val_fraction is not None:
                fraction = _fraction(val_fraction)
                pictures = pictures.with_val_fraction(fraction, seed=seed, by="val_fraction")
            for note in (*pictures.notes, *check_pictures(pictures, strict=strict)):
                print_line(note)
            plan = plan_of(
                pictures, own_format, kept, images_per_shard=images_per_shard, limit=None
            )
            classes = Classes(pictures.wnids, pictures.class_names, plan.sha256())
            _build(pictures, plan, BuildSettings(own_format, kept, classes, strict), output)
        finally:
            spool.unlink(missing_ok=True)
    return open_data_set(output)


def pairs_of_tar(path: str | Path) -> Iterator[tuple[bytes, int | str]]:
    """The pairs of a tar as WebDataset packs it: `key.jpg` (or another format) beside `key.cls`.

    Yields:
        The bytes of each picture, and its label: a number where the text is one.

    Raises:
        UserError: it is no tar, or a damaged one, or a key has not one picture and one label.
    """
    path = Path(path)
    kind = file_kind(path)
    if kind not in ("tar", "gz", "bz2", "xz"):
        raise UserError(f"{path}: expected a tar file, found {kind or 'something else'}")
    samples: dict[str, dict[str, Place]] = {}
    for name, place in tar_files(path) if kind == "tar" else compressed_tar_files(path):
        folder, _, file = name.rpartition("/")
        stem, _, suffix = file.partition(".")
        if stem:
            samples.setdefault(f"{folder}/{stem}".lstrip("/"), {})[suffix.lower()] = place
    with closing(Reader()) as reader:
        for key, files in samples.items():
            pictures = [suffix for suffix in files if is_picture_name(f"x.{suffix}")]
            if len(pictures) != 1 or "cls" not in files:
                raise UserError(
                    f"{path}: expected one picture and its label (.cls) for each key, got "
                    f"{', '.join(sorted(files))} for {key[:60]!r}"
                )
            try:
                text = reader.read(files["cls"], limit=MAX_LABEL_BYTES).decode().strip()
            except ValueError as error:
                raise UserError(f"{path}: {key[:60]}.cls: expected a label, but {error}") from None
            is_number = text.isascii() and text.isdecimal()
            yield reader.read(files[pictures[0]]), int(text) if is_number else text


def _fraction(value: float | str | Fraction) -> Fraction:
    try:
        fraction = Fraction(str(value))
    except ValueError:
        fraction = Fraction(0)
    if not 0 < fraction < 1:
        raise UserError(f"val_fraction: expected a number between 0 and 1, got {value!r}")
    return fraction


def _listed(
    given: Mapping[str, Iterable[Pair]],
    spool: Path,
    picture_format: PictureFormat,
    class_names: Sequence[str] | None,
    wnids: Sequence[str] | None,
) -> PictureSet:
    """The pictures with their labels; those that are no files lie in the spool from now on."""
    rows: list[tuple[str, str, int | str, str | Refused | Stored]] = []
    with disk_errors(spool.with_suffix(""), 0), spool.open("wb") as file:
        pass
    with spool.open("ab") as file:
        for part in PARTS:
            for number, pair in enumerate(given.get(part, ())):
                name, title = f"{part}/{number:08d}", f"pair {number} of {part}"
                try:
                    picture, label = pair
                except (TypeError, ValueError):
                    shown = type(pair).__name__
                    raise UserError(
                        f"{title}: expected a picture and its label, got {shown}"
                    ) from None
                if isinstance(picture, str | os.PathLike):
                    place: str | Refused | Stored = os.fspath(picture)
                    name += f"-{Path(picture).name}"
                else:
                    place = _spooled(picture, file, picture_format, title)
                rows.append((part, name, _label_of(label, title), place))
        with disk_errors(spool.with_suffix(""), file.tell()):
            file.flush()
    container = container_at(spool)
    seen = {label: name for _, name, label, _ in rows}
    ids, names, labels = _classes(seen, class_names, wnids)
    parts: dict[str, list[Picture]] = {part: [] for part in PARTS}
    for part, name, label, where in rows:
        at: Place = Span(container, *where) if isinstance(where, Stored) else where
        parts[part].append(Picture(name, labels[label], at))
    return PictureSet(
        "pairs",
        "pairs",
        ids,
        names,
        {part: tuple(pictures) for part, pictures in parts.items()},
    )


def _spooled(
    picture: Any, file: BinaryIO, picture_format: PictureFormat, title: str
) -> Refused | Stored:
    """Appends a picture to the spool, and returns offset and size; or why there is none."""
    if isinstance(picture, np.ndarray) and picture.dtype == np.uint8 and picture.size:
        is_picture = picture.ndim == 2 or picture.shape[2:] == (3,)
        picture = Image.fromarray(picture) if is_picture else picture
    if isinstance(picture, bytes | bytearray | memoryview):
        data = bytes(picture)
    elif isinstance(picture, Image.Image):
        try:
            image = fit_picture(picture, picture_format)
        except BadPictureError as error:
            return Refused(str(error))
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "BMP")  # which keeps every pixel
        data = buffer.getvalue()
    else:
        shown = type(picture).__name__
        if isinstance(picture, np.ndarray):
            shown = f"{picture.dtype} {picture.shape}"
        raise UserError(
            f"{title}: expected a picture as PIL image, uint8 (H, W, 3) or (H, W), bytes of a file "
            f"or path, got {shown}: give the pictures without transforms"
        )
    offset = file.tell()
    with disk_errors(Path(file.name).with_suffix(""), len(data)):
        file.write(data)
    return Stored(offset, len(data))


def _label_of(label: Any, title: str) -> int | str:
    if isinstance(label, str) and label.strip():
        return label
    try:
        number = operator.index(label)
    except TypeError:
        number = -1
    if not 0 <= number < MOST_CLASSES:
        raise UserError(
            f"{title}: expected a label as a whole number of 0 to {MOST_CLASSES - 1} or as a text, "
            f"got {label!r:.60}"
        )
    return number


def _classes(
    seen: Mapping[int | str, str], class_names: Sequence[str] | None, wnids: Sequence[str] | None
) -> tuple[tuple[str, ...], tuple[str, ...], dict[int | str, int]]:
    """The wnids and names of the classes, and the place of each label."""
    are_texts = {isinstance(label, str) for label in seen}
    if len(are_texts) > 1:
        raise UserError("pairs: expected labels all whole numbers or all texts, got both")
    known = wnids if wnids is not None else class_names
    if known is None:
        if are_texts == {True}:
            known = sorted(str(label) for label in seen)
        else:
            known = [str(i) for i in range(max((int(label) for label in seen), default=-1) + 1)]
    names = tuple(known if class_names is None else class_names)
    if len(set(known)) != len(known):
        twice = next(name for i, name in enumerate(known) if name in known[:i])
        raise UserError(f"class_names: {twice!r} stands there twice: give wnids, which differ")
    if len(names) != len(known):
        raise UserError(f"class_names: expected one per wnid, got {len(names)} for {len(known)}")
    places: dict[int | str, int] = {i: i for i in range(len(known))}
    if are_texts == {True}:
        places = {name: i for i, name in enumerate(known)}
    for label, name in seen.items():
        if label not in places:
            raise UserError(
                f"{name}: expected a label of the {len(known)} classes, got {label!r:.60}"
            )
    return tuple(known), names, places


def _build(pictures: PictureSet, plan: Plan, settings: BuildSettings, output: Path) -> None:
    tasks = all_tasks(pictures, output, plan.images_per_shard)
    num_shards = {part: sum(task.part == part for task in tasks) for part in PARTS}
    manifest = start_manifest(output, plan, num_shards, MANIFEST_FILE)
    missing = [
        task
        for task in tasks
        if manifest.parts[task.part][task.number] is None or not is_whole(task, manifest)
    ]
    check_room(output, missing, settings)
    for task in missing:
        _, entry = build_shard(task, settings)
        manifest = manifest.with_shard(task.part, task.number, entry)
        write_manifest(output, manifest)
    if not is_complete(manifest, output):
        manifest = complete(manifest, output)
    for part in PARTS:
        bad = [item for entry in manifest.parts[part] if entry for item in entry.bad_pictures]
        if bad:
            print_line(
                f"{part}: {len(bad)} pictures could not be read (such as {bad[0].picture}: "
                f"{bad[0].reason}); {MANIFEST_FILE} lists them all"
            )
