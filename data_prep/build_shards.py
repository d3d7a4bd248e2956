"""Builds shards from pictures: `python data_prep/build_shards.py --help`."""

import argparse
import errno
import fcntl
import hashlib
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# A script's own folder comes first on sys.path; the project's root is what imports need.
if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from data_prep import require_environment

require_environment("numpy", "PIL", "h5py", "tqdm")

import numpy as np
from tqdm import tqdm

from data_prep.color_statistics import PixelSums, color_statistics, rgb_second_moment
from data_prep.pictures import DECODER, RESAMPLING, BadPictureError, decode_picture
from data_prep.shards import (
    FORMAT_NAME,
    FORMAT_VERSION,
    IMAGE_SIZE,
    MANIFEST_FILE,
    PARTS,
    STATISTICS_FILE,
    Shard,
    UserError,
    read_manifest,
    shard_entries,
    shard_problem,
    write_manifest,
    write_shard,
    write_statistics,
)
from data_prep.sources import PictureSet, folder, kaggle, tiny_imagenet, toy
from data_prep.workers import Workers, worker_pool

# What --input may hold, in the order in which it is recognised.
SOURCES = {"kaggle": kaggle, "tiny-imagenet": tiny_imagenet, "folder": folder}
DEFAULT_OUTPUT = Path("shards")
DEFAULT_TOY_INPUT = Path("toy")
DEFAULT_IMAGES_PER_SHARD = 1024
# The seed of the fixed order in which training goes through the images; see replica/feed.py.
CYCLE_SEED = 2012
BAD_PICTURES_SHOWN = 10


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        prog="python data_prep/build_shards.py",
        description="Pictures on disk -> HDF5 shards of 256 x 256 RGB images, restartable.",
    )
    parser.add_argument(
        "--source",
        choices=(*SOURCES, "toy"),
        help="layout of the pictures (default: toy without --input; with it, what is found there)",
    )
    parser.add_argument(
        "--input",
        type=Path,
        metavar="DIR",
        help=f"where the pictures are, or for toy are drawn (default: {DEFAULT_TOY_INPUT})",
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help=f"where the shards go (default: {DEFAULT_OUTPUT})",
    )
    parser.add_argument(
        "--workers", type=int, metavar="N", help="decoding processes (default: one a core)"
    )
    parser.add_argument(
        "--images-per-shard",
        type=int,
        metavar="N",
        default=DEFAULT_IMAGES_PER_SHARD,
        help="pictures a shard file (default: %(default)s, 201 MB)",
    )
    parser.add_argument(
        "--limit", type=int, metavar="N", help="at most N pictures of each class in each part"
    )
    parser.add_argument(
        "--strict",
        action="store_true",
        help="stop at a picture that cannot be read and at a class without pictures",
    )
    arguments = parser.parse_args(argv)
    for name in ("workers", "images_per_shard", "limit"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            parser.error(f"--{name.replace('_', '-')}: expected at least 1, got {value}")
    return arguments


def find_pictures(arguments: argparse.Namespace, *, num_workers: int) -> PictureSet:
    """Chooses the source, says which one, and lists its pictures."""
    source = arguments.source
    if source is None and arguments.input is None:
        source = "toy"
        print("source: toy, the embedded data set (no --input given)")
    if source == "toy":
        if arguments.input is None:
            print(f"input: {DEFAULT_TOY_INPUT}, where the toy set is drawn (no --input given)")
        return toy.find(arguments.input or DEFAULT_TOY_INPUT, num_workers=num_workers)
    if arguments.input is None:
        raise UserError(f"--source {source}: expected --input DIR with the pictures, got none")
    if not arguments.input.is_dir():
        raise UserError(f"--input {arguments.input}: expected a directory, found none there")
    if source is None:
        source = next(
            (name for name, module in SOURCES.items() if module.is_here(arguments.input)), None
        )
        if source is None:
            raise UserError(
                f"--input {arguments.input}: expected ILSVRC/Data/CLS-LOC/train (kaggle), "
                "wnids.txt and train (tiny-imagenet) or train/<class> (folder) below it, found none"
            )
        print(f"source: {source} (found at {arguments.input})")
    return SOURCES[source].find(arguments.input)


def plan_of(pictures: PictureSet, arguments: argparse.Namespace) -> dict[str, Any]:
    """Everything that decides the bytes of the build; two builds of one plan are the same."""
    digests = {
        part: hashlib.sha256(
            "".join(f"{path}\0{label}\n" for path, label in pictures.parts[part]).encode(
                "utf-8", "surrogateescape"
            )
        ).hexdigest()
        for part in PARTS
    }
    return {
        "format": FORMAT_NAME,
        "version": FORMAT_VERSION,
        "source": pictures.source,
        "recipe": pictures.recipe,
        "wnids": list(pictures.wnids),
        "class_names": list(pictures.class_names),
        "classes_without_pictures": pictures.classes_without_pictures(),
        "pictures_sha256": digests,
        "limit": arguments.limit,
        "image_size": IMAGE_SIZE,
        "images_per_shard": arguments.images_per_shard,
        "resampling": RESAMPLING,
        "decoder": DECODER,
        "cycle_seed": CYCLE_SEED,
    }


def start_manifest(output: Path, plan: dict[str, Any]) -> dict[str, Any]:
    """The manifest to go on with: a fresh one, or that of an interrupted build of this plan.

    Raises:
        UserError: the directory holds another data set or other files.
    """
    if (output / MANIFEST_FILE).exists():
        manifest = read_manifest(output)
        differing = [key for key, value in plan.items() if manifest.get(key) != value]
        if differing:
            raise UserError(
                f"{output}: holds another data set (differs in {', '.join(differing)}): choose "
                "another --output, or remove this directory"
            )
        return manifest
    foreign = [p.name for p in output.iterdir() if not p.name.endswith((".part", ".lock"))]
    if foreign:
        raise UserError(
            f"{output}: is in use: expected an empty directory or an unfinished build, found "
            f"{len(foreign)} other entries (such as {sorted(foreign)[0]}): choose another --output"
        )
    manifest = {**plan, "parts": {part: {"shards": []} for part in PARTS}, "complete": False}
    # Written before the first shard: an interrupted build is recognised by it.
    write_manifest(output, manifest)
    return manifest


def check_room(output: Path, pictures: PictureSet) -> None:
    """Refuses to start a build that cannot fit on the disk."""
    num_pictures = sum(len(part) for part in pictures.parts.values())
    built = sum(path.stat().st_size for path in output.glob("*.h5"))
    needed = num_pictures * IMAGE_SIZE * IMAGE_SIZE * 3 - built
    free = shutil.disk_usage(output).free
    if needed > free:
        raise UserError(
            f"--output {output}: {num_pictures} images need {needed / 1e9:.1f} GB more, the disk "
            f"has {free / 1e9:.1f} GB free: choose another directory or a --limit"
        )
    print(f"{num_pictures} images, {num_pictures * IMAGE_SIZE**2 * 3 / 1e9:.2f} GB in {output}")


def _load(path: str) -> tuple[np.ndarray, np.ndarray] | str:
    """In a worker: an image and its second moment, or why there is none."""
    try:
        # Reading, not only decoding, may fail: the file may have vanished or be a directory.
        image = decode_picture(Path(path).read_bytes(), image_size=IMAGE_SIZE)
    except BadPictureError as error:
        return str(error)
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE):
            raise
        return f"cannot be read: {error.strerror}"
    return image, rgb_second_moment(image)


def build(
    pictures: PictureSet, manifest: dict[str, Any], output: Path, *, num_workers: int, strict: bool
) -> None:
    """Builds the shards that the manifest does not list yet, then the statistics.

    A shard is the pictures of one slice of the source's list; those that cannot be read are left
    out of it and stand in its manifest entry with their reason.

    Raises:
        UserError: the disk refuses, or with `strict` a picture cannot be read.
    """
    size = manifest["images_per_shard"]
    slices = []
    for part in PARTS:
        shards = manifest["parts"][part]["shards"]
        for i, first in enumerate(range(0, len(pictures.parts[part]), size)):
            if i < len(shards) and _is_kept(output, shards[i]):
                continue
            slices.append((part, i, pictures.parts[part][first : first + size]))
    total = sum(len(rows) for _, _, rows in slices)
    done = sum(len(part) for part in pictures.parts.values()) - total
    if done and total:
        print(f"continuing: {done} pictures are built already")
    if total:
        with worker_pool(num_workers) as workers:
            _build_slices(pictures, manifest, output, slices, workers, strict=strict)
    for part in PARTS:
        if not shard_entries(manifest, part):
            raise UserError(f"{pictures.root}: none of the {part} pictures could be read")
    entries = shard_entries(manifest, "train")
    sums = [Shard(output / e["file"], e["num_images"], 0).sums() for e in entries]
    total_sums = sum(sums[1:], sums[0])
    manifest["statistics"] = write_statistics(
        output / STATISTICS_FILE, color_statistics(total_sums)
    )
    manifest["complete"] = True
    write_manifest(output, manifest)


def _is_kept(output: Path, entry: dict[str, Any]) -> bool:
    return entry["num_images"] == 0 or shard_problem(output / entry["file"], entry) is None


def _build_slices(
    pictures: PictureSet,
    manifest: dict[str, Any],
    output: Path,
    slices: list[tuple[str, int, tuple[tuple[str, int], ...]]],
    workers: Workers,
    *,
    strict: bool,
) -> None:
    def submit(rows: tuple[tuple[str, int], ...]) -> Iterator[Any]:
        return workers.map(_load, [str(pictures.root / path) for path, _ in rows], chunksize=8)

    progress = tqdm(
        total=sum(len(rows) for _, _, rows in slices),
        unit=" pictures",
        mininterval=0.5 if sys.stderr.isatty() else 10,
    )
    with progress:
        ahead = submit(slices[0][2])
        for number, (part, i, rows) in enumerate(slices):
            results = ahead
            if number + 1 < len(slices):
                # The next shard is decoded while this one is written.
                ahead = submit(slices[number + 1][2])
            images, labels, names, bad = [], [], [], []
            moment = np.zeros((3, 3), np.uint64)
            for (path, label), result in zip(rows, results, strict=True):
                progress.update()
                if isinstance(result, str):
                    shown = os.fsencode(path).decode("utf-8", "backslashreplace")
                    if strict:
                        raise UserError(f"{pictures.root / shown}: {result} (--strict stops here)")
                    bad.append({"picture": shown, "reason": result})
                    continue
                images.append(result[0])
                moment += result[1]
                labels.append(label)
                names.append(path)
            entry: dict[str, Any] = {"num_images": 0}
            if images:
                images_NHWC = np.stack(images)
                entry = write_shard(
                    output / f"{part}-{i:05d}.h5",
                    images_NHWC=images_NHWC,
                    labels=np.array(labels),
                    pictures=names,
                    wnids=pictures.wnids,
                    names=pictures.class_names,
                    sums=PixelSums(len(images), images_NHWC.sum(axis=0, dtype=np.uint64), moment),
                )
            shards = manifest["parts"][part]["shards"]
            shards[i : i + 1] = [{**entry, "bad_pictures": bad}]
            manifest["complete"] = False
            write_manifest(output, manifest)


def report(manifest: dict[str, Any], output: Path) -> None:
    """Prints what was built and what could not be read."""
    for part in PARTS:
        entries = manifest["parts"][part]["shards"]
        num_images = sum(entry["num_images"] for entry in entries)
        print(f"{part}: {num_images} images in {len(shard_entries(manifest, part))} shards")
        bad = [item for entry in entries for item in entry["bad_pictures"]]
        if bad:
            print(f"{part}: {len(bad)} pictures could not be read; {MANIFEST_FILE} lists them all:")
        for item in bad[:BAD_PICTURES_SHOWN]:
            print(f"  {item['picture']}: {item['reason']}")
    print(f"{output / MANIFEST_FILE} is complete")


@contextmanager
def locked(output: Path) -> Iterator[None]:
    """Holds the directory for this build alone; the lock ends with the process, however it ends."""
    try:
        output.mkdir(parents=True, exist_ok=True)
        lock = (output / "build.lock").open("w")
    except OSError as error:
        raise UserError(f"--output {output}: cannot be written: {error.strerror}") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(
                f"--output {output}: another build is at work there: wait for it, or choose "
                "another directory"
            ) from None
        yield


def run(arguments: argparse.Namespace) -> None:
    """Builds what the command line asks for."""
    num_workers = arguments.workers or num_cores()
    output = arguments.output or DEFAULT_OUTPUT
    if arguments.output is None:
        print(f"output: {output} (no --output given)")
    if arguments.workers is None:
        print(f"workers: {num_workers}, one a core (no --workers given)")
    with locked(output):
        pictures = find_pictures(arguments, num_workers=num_workers)
        for note in pictures.notes:
            print(note)
        if arguments.limit:
            pictures = pictures.limited(arguments.limit)
        for part, wnids in pictures.classes_without_pictures().items():
            if len(wnids) == len(pictures.wnids):
                raise UserError(f"{pictures.root}: expected {part} pictures, found none")
            if wnids and arguments.strict:
                raise UserError(
                    f"{pictures.root}: {len(wnids)} of {len(pictures.wnids)} classes have no "
                    f"{part} pictures (such as {wnids[0]}); --strict stops here"
                )
            if wnids:
                print(
                    f"{part}: {len(wnids)} of {len(pictures.wnids)} classes have no pictures "
                    f"(such as {wnids[0]}); {MANIFEST_FILE} lists them"
                )
        check_room(output, pictures)
        manifest = start_manifest(output, plan_of(pictures, arguments))
        build(pictures, manifest, output, num_workers=num_workers, strict=arguments.strict)
        report(manifest, output)


def num_cores() -> int:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def main(argv: list[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    try:
        run(parse_arguments(argv))
    except UserError as error:
        print(f"build_shards: {error}", file=sys.stderr)
        return 2
    except RuntimeError as error:
        print(f"build_shards: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(
            "build_shards: interrupted; run the same command again to continue after the last "
            "whole shard",
            file=sys.stderr,
        )
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
