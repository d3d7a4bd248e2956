"""What a build is to make: the pictures checked, the plan, the shards."""

import hashlib
import shutil
from pathlib import Path

from data_prep.errors import UserError
from data_prep.manifest import (
    MANIFEST_FILE,
    PARTS,
    RECORDED_ORIENTATION,
    Plan,
    Storage,
    shard_file,
)
from data_prep.pictures import PictureFormat, decoder_name
from data_prep.shard_builder import BuildSettings, ShardTask
from data_prep.sources.picture_set import PictureSet
from data_prep.sources.places import Refused

# The seed of the fixed order in which training goes through the images; see replica/feed/feed.py.
CYCLE_SEED = 2012
# So many held-out pictures of one class only are taken for pictures without labels.
SUSPICIOUS_PICTURES = 50


def check_pictures(pictures: PictureSet, *, strict: bool) -> list[str]:
    """Says what is odd about the list of pictures, one line each, or refuses it.

    Raises:
        UserError: a part is missing or has no labels, or with `strict` a class has no pictures.
    """
    if not pictures.parts.get("train"):
        raise UserError(f"{pictures.title}: expected train pictures, found none")
    held_out = [part for part in PARTS[1:] if pictures.parts.get(part)]
    if not held_out:
        raise UserError(
            f"{pictures.title}: expected val or test pictures beside train, found none: "
            "--val-fraction 0.2 or --per-class 50 cuts them out of train"
        )
    for part in held_out:
        labels = [picture.label for picture in pictures.parts[part]]
        is_suspicious = len(labels) >= SUSPICIOUS_PICTURES and len(pictures.wnids) > 1
        if is_suspicious and len(set(labels)) == 1:
            raise UserError(
                f"{pictures.title}: all {len(labels)} {part} pictures have the same label "
                f"({pictures.wnids[labels[0]]}) among {len(pictures.wnids)} classes: expected "
                "pictures with labels of their own"
            )
    notes = []
    for part, wnids in pictures.classes_without_pictures().items():
        if not wnids:
            continue
        lack = f"{len(wnids)} of {len(pictures.wnids)} classes have no"
        if strict:
            raise UserError(
                f"{pictures.title}: {lack} {part} pictures (such as {wnids[0]}); --strict stops "
                "here"
            )
        notes.append(f"{part}: {lack} pictures (such as {wnids[0]}); {MANIFEST_FILE} lists them")
    return notes


def plan_of(
    pictures: PictureSet,
    picture_format: PictureFormat,
    storage: Storage,
    *,
    images_per_shard: int,
    limit: int | None,
) -> Plan:
    """Everything that decides the bytes of a build of these pictures."""
    digests = {}
    for part in PARTS:
        digest = hashlib.sha256()
        for picture in pictures.parts.get(part, ()):
            # A build with --follow-links has other pictures than one without.
            refused = "\0refused" if isinstance(picture.place, Refused) else ""
            line = f"{picture.name}\0{picture.label}{refused}\n"
            digest.update(line.encode("utf-8", "surrogateescape"))
        digests[part] = digest.hexdigest()
    return Plan(
        source=pictures.source,
        recipe=pictures.recipe,
        wnids=pictures.wnids,
        class_names=pictures.class_names,
        classes_without_pictures=pictures.classes_without_pictures(),
        pictures_sha256=digests,
        limit=limit,
        image_size=picture_format.image_size,
        fit=picture_format.fit,
        images_per_shard=images_per_shard,
        resampling=picture_format.resampling,
        decoder=decoder_name(picture_format.decoder),
        exif_orientation=RECORDED_ORIENTATION[picture_format.exif_orientation],
        storage=storage,
        cycle_seed=CYCLE_SEED,
    )


def all_tasks(pictures: PictureSet, output: Path, images_per_shard: int) -> list[ShardTask]:
    """The shards of a build: slices of the source's list."""
    return [
        ShardTask(part, number, output / shard_file(part, number), rows[first:][:images_per_shard])
        for part in PARTS
        for rows in [pictures.parts.get(part, ())]
        for number, first in enumerate(range(0, len(rows), images_per_shard))
    ]


def check_room(output: Path, tasks: list[ShardTask], settings: BuildSettings) -> None:
    """Refuses to start a build of raw pixels that cannot fit on the disk."""
    if settings.storage.kind != "raw":
        return
    num_pictures = sum(len(task.pictures) for task in tasks)
    needed = num_pictures * settings.picture_format.image_size**2 * 3
    free = shutil.disk_usage(output).free
    if needed > free:
        raise UserError(
            f"--output {output}: {num_pictures} images need {needed / 1e9:.1f} GB more, the disk "
            f"has {free / 1e9:.1f} GB free: choose another directory, --storage jpeg or a --limit"
        )
