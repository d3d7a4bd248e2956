"""Builds shards from pictures: `python data_prep/build_shards.py --help`."""

import argparse
import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

# A script's own folder comes first on sys.path; the project's root is what imports need.
if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from data_prep import require_environment

require_environment(__name__)

from tqdm import tqdm

from data_prep.color_statistics import comparison_with_published
from data_prep.errors import OneLineParser, UserError
from data_prep.files import part_of
from data_prep.manifest import (
    FORMAT_NAME,
    FORMAT_VERSION,
    LABELS_FILE,
    MANIFEST_FILE,
    MAX_IMAGE_SIZE,
    PARTS,
    plan_sha256,
    shard_entries,
    shard_file,
    write_manifest,
)
from data_prep.manifests import (
    complete,
    is_complete,
    join,
    share_file,
    share_of,
    start_manifest,
)
from data_prep.pictures import DECODERS, FILTERS, FITS, RESAMPLING, PictureFormat, decoder_name
from data_prep.recognise import SOURCES, only_folder, recognise
from data_prep.shard_builder import (
    BAD_PICTURES,
    DISK_BYTES,
    PICTURES,
    BuildSettings,
    ShardTask,
    build_shard,
    sample_cost,
)
from data_prep.shard_writer import Classes, Storage
from data_prep.shards import open_data_set, shard_problem
from data_prep.sources import (
    PictureSet,
    toy,
)
from data_prep.trees import Folder, open_tree, text_lines
from data_prep.workers import StoppedError, Workers, num_cores, worker_pool

# The sets whose statistics are set beside those that others measured on ImageNet.
IMAGENET_SOURCES = ("kaggle", "ilsvrc2012", "ilsvrc2010", "class-tars")
DEFAULT_OUTPUT = Path("shards")
DEFAULT_TOY_INPUT = Path("toy")
DEFAULT_IMAGES_PER_SHARD = 1024
# The seed of the fixed order in which training goes through the images; see replica/feed.py.
CYCLE_SEED = 2012
BAD_PICTURES_SHOWN = 10
SAMPLE_SIZE = 64  # pictures that --dry-run decodes
# So many held-out pictures of one class only are taken for pictures without labels.
SUSPICIOUS_PICTURES = 50


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = OneLineParser(
        prog="python data_prep/build_shards.py",
        description="Pictures -> HDF5 shards of 256 x 256 RGB images, restartable.",
        epilog="sources, in the order in which they are recognised:\n"
        + "\n".join(f"  {name:<15}{module.LAYOUT}" for name, module in SOURCES.items())
        + "\n  toy            the embedded data set, which is drawn",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    where = parser.add_argument_group("from where to where")
    where.add_argument(
        "--source",
        choices=("auto", *SOURCES, "toy"),
        help="layout of the pictures (default: toy without --input, auto with it)",
    )
    where.add_argument(
        "--input",
        type=Path,
        metavar="PATH",
        help="a directory, a zip or a tar with the pictures; for toy, where they are drawn "
        f"(default: {DEFAULT_TOY_INPUT})",
    )
    where.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help=f"where the shards go (default: {DEFAULT_OUTPUT})",
    )
    which = parser.add_argument_group("which pictures")
    which.add_argument(
        "--classes", type=Path, metavar="FILE", help="only these: a wnid or a name a line"
    )
    which.add_argument(
        "--per-class",
        type=_three_counts,
        metavar="TRAIN,VAL,TEST",
        help="cut so many pictures of each class out of the training pictures, such as 400,50,50",
    )
    which.add_argument(
        "--limit", type=int, metavar="N", help="at most N pictures of each class in each part"
    )
    which.add_argument(
        "--strict",
        action="store_true",
        help="stop at a picture that cannot be read and at a class without pictures",
    )
    what = parser.add_argument_group("what becomes of them")
    what.add_argument(
        "--size",
        type=int,
        metavar="PIXELS",
        default=256,
        help="side of an image (default: %(default)s, the paper's)",
    )
    what.add_argument(
        "--fit",
        choices=FITS,
        default=FITS[0],
        help="crop: shorter side to SIZE, central square (default, the paper's); pad: longer side "
        'to SIZE, the rest black (the 2012 source\'s "full")',
    )
    what.add_argument(
        "--resampling", choices=FILTERS, default=RESAMPLING, help="default: %(default)s"
    )
    what.add_argument(
        "--decoder",
        choices=DECODERS,
        default=DECODERS[0],
        help="fast: other libraries, pixels that differ a little (default: %(default)s)",
    )
    what.add_argument(
        "--storage",
        choices=("raw", "jpeg"),
        default="raw",
        help="raw: pixels, read without decoding (default); jpeg: several times smaller, lossy",
    )
    what.add_argument(
        "--quality",
        type=int,
        metavar="1..100",
        help=f"of the JPEG files (default: {Storage().quality}; 85 was the 2012 value)",
    )
    what.add_argument(
        "--images-per-shard",
        type=int,
        metavar="N",
        default=DEFAULT_IMAGES_PER_SHARD,
        help="pictures a shard file (default: %(default)s, 201 MB)",
    )
    how = parser.add_argument_group("how")
    how.add_argument(
        "--workers", type=int, metavar="N", help="decoding processes (default: one a core)"
    )
    how.add_argument(
        "--shard",
        type=_one_of_many,
        metavar="i/n",
        help="build the i-th of n shares of the shards: one machine of a job array",
    )
    how.add_argument(
        "--finish",
        action="store_true",
        help="join what the machines of a job array left in --output",
    )
    how.add_argument(
        "--dry-run",
        action="store_true",
        help="say how many pictures, how much disk and how long, and write nothing",
    )
    arguments = parser.parse_args(argv)
    for name in ("workers", "images_per_shard", "limit"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            parser.error(f"--{name.replace('_', '-')}: expected at least 1, got {value}")
    if not 1 <= arguments.size <= MAX_IMAGE_SIZE:
        parser.error(f"--size: expected 1 to {MAX_IMAGE_SIZE}, got {arguments.size}")
    if arguments.quality is not None and arguments.storage != "jpeg":
        parser.error("--quality: expected --storage jpeg beside it")
    if arguments.quality is not None and not 1 <= arguments.quality <= 100:
        parser.error(f"--quality: expected 1 to 100, got {arguments.quality}")
    if arguments.finish:
        given = [
            f"--{action.dest.replace('_', '-')}"
            for action in parser._actions
            if action.dest not in ("help", "output", "finish")
            and getattr(arguments, action.dest) != action.default
        ]
        if given:
            parser.error(f"--finish: expected nothing but --output beside it, got {given[0]}")
    return arguments


def _three_counts(text: str) -> tuple[int, int, int]:
    match = re.fullmatch(r"(\d{1,9}),(\d{1,9}),(\d{1,9})", text)
    if match is None or int(match[1]) < 1:
        raise argparse.ArgumentTypeError(f"expected TRAIN,VAL,TEST such as 400,50,50, got {text}")
    return int(match[1]), int(match[2]), int(match[3])


def _one_of_many(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise argparse.ArgumentTypeError(f"expected i/n with 1 <= i <= n, such as 3/16, got {text}")
    return int(match[1]), int(match[2])


# --- Which pictures


def find_pictures(arguments: argparse.Namespace, *, num_workers: int) -> PictureSet:
    """Chooses the source, says which one, and lists its pictures."""
    source = arguments.source
    if source is None and arguments.input is None:
        source = "toy"
        print("source: toy, the embedded data set (no --input given)")
    if source == "toy":
        if arguments.input is None:
            print(f"input: {DEFAULT_TOY_INPUT}, where the toy set is drawn (no --input given)")
        found = toy.find(arguments.input or DEFAULT_TOY_INPUT, num_workers=num_workers)
    else:
        if arguments.input is None:
            raise UserError(f"--source {source}: expected --input PATH with the pictures, got none")
        tree = open_tree(arguments.input)
        if source in (None, "auto"):
            source, tree = recognise(tree, arguments.input)
        elif not SOURCES[source].is_here(tree):
            tree = next(
                (inner for inner in only_folder(tree) if SOURCES[source].is_here(inner)), tree
            )
        found = SOURCES[source].find(tree)
    for note in found.notes:
        print(note)
    if arguments.classes is not None:
        wanted = Folder(arguments.classes.parent)
        lines = text_lines(wanted, arguments.classes.name, "a wnid or a name of a class a line")
        found = found.with_classes(line.strip() for _, line in lines)
    if arguments.per_class is not None:
        found = found.cut_from_train(arguments.per_class)
    return found.limited(arguments.limit) if arguments.limit else found


def check_pictures(pictures: PictureSet, *, strict: bool) -> None:
    """Says what is odd about the list of pictures, or refuses it."""
    if not pictures.parts.get("train"):
        raise UserError(f"{pictures.title}: expected train pictures, found none")
    held_out = [part for part in PARTS[1:] if pictures.parts.get(part)]
    if not held_out:
        raise UserError(
            f"{pictures.title}: expected val or test pictures beside train, found none: "
            "--per-class cuts them out of train, such as --per-class 400,50,50"
        )
    for part in held_out:
        labels = {picture.label for picture in pictures.parts[part]}
        if (
            len(labels) == 1
            and len(pictures.wnids) > 1
            and len(pictures.parts[part]) >= SUSPICIOUS_PICTURES
        ):
            raise UserError(
                f"{pictures.title}: all {len(pictures.parts[part])} {part} pictures have the same "
                f"label ({pictures.wnids[labels.pop()]}) among {len(pictures.wnids)} classes: "
                "expected pictures with labels of their own"
            )
    for part, wnids in pictures.classes_without_pictures().items():
        if wnids and strict:
            raise UserError(
                f"{pictures.title}: {len(wnids)} of {len(pictures.wnids)} classes have no "
                f"{part} pictures (such as {wnids[0]}); --strict stops here"
            )
        if wnids:
            print(
                f"{part}: {len(wnids)} of {len(pictures.wnids)} classes have no pictures "
                f"(such as {wnids[0]}); {MANIFEST_FILE} lists them"
            )


# --- The plan


def plan_of(pictures: PictureSet, arguments: argparse.Namespace) -> dict[str, Any]:
    """Everything that decides the bytes of the build; two builds of one plan are the same."""
    digests = {}
    for part in PARTS:
        digest = hashlib.sha256()
        for picture in pictures.parts.get(part, ()):
            line = f"{picture.name}\0{picture.label}\n"
            digest.update(line.encode("utf-8", "surrogateescape"))
        digests[part] = digest.hexdigest()
    storage = storage_of(arguments).record()
    if storage["kind"] == "jpeg":
        storage["encoder"] = decoder_name("pillow")
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
        "image_size": arguments.size,
        "fit": arguments.fit,
        "images_per_shard": arguments.images_per_shard,
        "resampling": arguments.resampling,
        "decoder": decoder_name(arguments.decoder),
        "exif_orientation": "ignored",
        "storage": storage,
        "cycle_seed": CYCLE_SEED,
    }


def storage_of(arguments: argparse.Namespace) -> Storage:
    """How the shards will hold their images."""
    if arguments.storage == "raw":
        return Storage("raw")
    return Storage("jpeg", Storage().quality if arguments.quality is None else arguments.quality)


def settings_of(
    pictures: PictureSet, arguments: argparse.Namespace, plan: dict[str, Any]
) -> BuildSettings:
    """What every worker needs to know."""
    return BuildSettings(
        PictureFormat(arguments.size, arguments.fit, arguments.resampling, arguments.decoder),
        storage_of(arguments),
        Classes(pictures.wnids, pictures.class_names, plan_sha256(plan)),
        arguments.strict,
    )


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


def all_tasks(pictures: PictureSet, output: Path, images_per_shard: int) -> list[ShardTask]:
    """The shards of a build: slices of the source's list."""
    return [
        ShardTask(part, number, output / shard_file(part, number), rows[first:][:images_per_shard])
        for part in PARTS
        for rows in [pictures.parts.get(part, ())]
        for number, first in enumerate(range(0, len(rows), images_per_shard))
    ]


# --- Building


def build(
    tasks: list[ShardTask],
    settings: BuildSettings,
    manifest: dict[str, Any],
    *,
    output: Path,
    manifest_name: str,
    num_workers: int,
) -> None:
    """Builds the shards that the manifest does not list yet.

    Raises:
        UserError: the disk refuses, the input changed, or with `strict` a picture cannot be read.
    """
    sizes = _sizes(output)
    missing = [task for task in tasks if not _is_listed(task, manifest, sizes)]
    if not missing:
        # To be mended, or only to be joined: now each shard is looked into.
        missing = [task for task in tasks if not _is_whole(task, manifest)]
    kept = sum(len(task.pictures) for task in tasks) - sum(len(task.pictures) for task in missing)
    for task in tasks:
        if part_of(task.path).name in sizes:
            part_of(task.path).unlink(missing_ok=True)
    if kept and missing:
        print(f"continuing: {kept} pictures are built already")
    if not missing:
        return
    check_room(output, missing, settings)
    with (
        _no_parts_left(missing),
        worker_pool(min(num_workers, len(missing))) as workers,
        _Progress(sum(len(task.pictures) for task in missing), workers) as progress,
    ):
        work = partial(build_shard, settings=settings)
        for task, entry in workers.each(work, missing, on_wait=progress.update):
            manifest["parts"][task.part]["shards"][task.number] = entry
            manifest["complete"] = False
            write_manifest(output, manifest, manifest_name)


def _sizes(directory: Path) -> dict[str, int]:
    """The bytes of each file of a directory, by its name."""
    sizes = {}
    with os.scandir(directory) as listing:
        for file in listing:
            # Another machine of a job array may rename its own meanwhile.
            with contextlib.suppress(FileNotFoundError):
                sizes[file.name] = file.stat().st_size
    return sizes


def _is_listed(task: ShardTask, manifest: dict[str, Any], sizes: dict[str, int]) -> bool:
    """Whether the manifest has a shard, and the directory a file of its size."""
    entry = manifest["parts"][task.part]["shards"][task.number]
    if entry is None:
        return False
    return not entry["num_images"] or sizes.get(task.path.name) == entry["num_bytes"]


def _is_whole(task: ShardTask, manifest: dict[str, Any]) -> bool:
    """Whether a shard that is listed can be the one that the manifest names."""
    entry = manifest["parts"][task.part]["shards"][task.number]
    return not entry["num_images"] or shard_problem(task.path, entry) is None


@contextmanager
def _no_parts_left(tasks: list[ShardTask]) -> Iterator[None]:
    """Removes what a killed worker left; the parent is the last to go."""
    try:
        yield
    except StoppedError:
        raise KeyboardInterrupt from None
    finally:
        for task in tasks:
            with contextlib.suppress(OSError):
                part_of(task.path).unlink(missing_ok=True)


class _Progress:
    """One line: pictures, pictures a second, time left, disk written, bad files so far."""

    def __init__(self, total: int, workers: Workers):
        self._bar = tqdm(
            total=total,
            unit=" images",
            mininterval=0.5 if sys.stderr.isatty() else 10,
            # A smoothed rate would swing, as workers finish pictures of different sizes.
            smoothing=0.05,
        )
        self._workers = workers

    def __enter__(self) -> "_Progress":
        return self

    def update(self) -> None:
        counters = self._workers.counters()
        self._bar.set_postfix_str(
            f"{counters[DISK_BYTES] / 1e9:.2f} GB written, {counters[BAD_PICTURES]} bad files",
            refresh=False,
        )
        self._bar.update(counters[PICTURES] - self._bar.n)

    def __exit__(self, *exception: object) -> None:
        self.update()
        self._bar.close()


# --- The command


def report(manifest: dict[str, Any], output: Path, *, seconds: float | None) -> None:
    """Prints what was built and what could not be read."""
    total_bytes = total_images = 0
    for part in PARTS:
        entries = manifest["parts"][part]["shards"]
        if not entries:
            continue
        num_images = sum(entry["num_images"] for entry in entries)
        num_bytes = sum(entry.get("num_bytes", 0) for entry in entries)
        total_bytes, total_images = total_bytes + num_bytes, total_images + num_images
        seen: dict[str, int] = {}
        for entry in entries:
            for what, number in entry.get("pictures_seen", {}).items():
                seen[what] = seen.get(what, 0) + number
        kinds = ", ".join(f"{what} {number}" for what, number in sorted(seen.items()))
        print(
            f"{part}: {num_images} images in {len(shard_entries(manifest, part))} shards, "
            f"{num_bytes / 1e9:.2f} GB ({kinds})"
        )
        bad = [item for entry in entries for item in entry["bad_pictures"]]
        if bad:
            print(f"{part}: {len(bad)} pictures could not be read; {MANIFEST_FILE} lists them all:")
            for item in bad[:BAD_PICTURES_SHOWN]:
                print(f"  {item['picture']}: {item['reason']}")
    print(
        f"{len(manifest['wnids'])} classes, {total_images} images of {manifest['image_size']} x "
        f"{manifest['image_size']}, {total_bytes / 1e9:.2f} GB"
        + (f", {seconds:.0f} s" if seconds is not None else "")
    )
    statistics = open_data_set(output).statistics
    if manifest["source"] in IMAGENET_SOURCES:
        print("\n".join(comparison_with_published(statistics)))
    print(f"{output / MANIFEST_FILE} is complete; {LABELS_FILE} lists every image with its label")


def estimate(pictures: PictureSet, settings: BuildSettings, *, num_workers: int) -> None:
    """Prints how many pictures, how much disk and how long: `--dry-run`."""
    for part in PARTS:
        if pictures.parts.get(part):
            print(f"{part}: {len(pictures.parts[part])} pictures")
    everything = [picture for part in PARTS for picture in pictures.parts.get(part, ())]
    step = max(1, len(everything) // SAMPLE_SIZE)
    sample = tuple(everything[::step][:SAMPLE_SIZE])
    num_good, num_bytes, seconds = sample_cost(sample, settings)
    if not num_good:
        raise UserError(f"{pictures.title}: none of {len(sample)} pictures tried could be read")
    size = settings.picture_format.image_size
    disk = len(everything) * num_bytes / num_good
    hours = len(everything) * seconds / len(sample) / num_workers / 3600
    length = f"{hours:.1f} hours" if hours >= 2 else f"{hours * 60:.1f} minutes"
    print(
        f"{len(pictures.wnids)} classes, {len(everything)} pictures to {size} x {size}, "
        f"{settings.storage.kind}\n"
        f"disk: about {disk / 1e9:.2f} GB\n"
        f"time: about {length} with {num_workers} workers, writing not counted "
        f"({len(sample)} pictures tried, {len(sample) - num_good} of them could not be read)\n"
        "nothing was written (--dry-run)"
    )


@contextmanager
def locked(output: Path, name: str) -> Iterator[None]:
    """Holds the directory for this build alone; the lock ends with the process, however it ends."""
    try:
        output.mkdir(parents=True, exist_ok=True)
        lock = (output / name).open("w")
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
    share: tuple[int, int] | None = arguments.shard
    start = time.perf_counter()
    if arguments.output is None and not arguments.dry_run:
        print(f"output: {output} (no --output given)")
    if arguments.finish:
        if not output.is_dir():
            raise UserError(f"--finish: expected --output with the shares, found no {output}")
        with locked(output, "build.lock"):
            manifest = join(output)
            for lock in output.glob("build-*-of-*.lock"):
                lock.unlink()
            report(manifest, output, seconds=None)
        return
    if arguments.workers is None:
        print(f"workers: {num_workers}, one a core (no --workers given)")
    decoder_name(arguments.decoder)
    if arguments.dry_run:
        pictures = find_pictures(arguments, num_workers=num_workers)
        check_pictures(pictures, strict=arguments.strict)
        settings = settings_of(pictures, arguments, plan_of(pictures, arguments))
        estimate(pictures, settings, num_workers=num_workers)
        return
    is_drawn = arguments.source == "toy" or (arguments.source is None and arguments.input is None)
    if not is_drawn:
        # Before anything is written, as the input may turn out to be no good.
        pictures = find_pictures(arguments, num_workers=num_workers)
        check_pictures(pictures, strict=arguments.strict)
    lock_name = "build.lock" if share is None else f"build-{share[0]}-of-{share[1]}.lock"
    with locked(output, lock_name):
        if is_drawn:  # under the lock, as the toy set may have to be drawn
            pictures = find_pictures(arguments, num_workers=num_workers)
            check_pictures(pictures, strict=arguments.strict)
        plan = plan_of(pictures, arguments)
        settings = settings_of(pictures, arguments, plan)
        tasks = all_tasks(pictures, output, arguments.images_per_shard)
        num_shards = {part: sum(task.part == part for task in tasks) for part in PARTS}
        name = MANIFEST_FILE if share is None else share_file(share)
        manifest = start_manifest(output, plan, num_shards, name)
        if share is not None:
            tasks = [task for task in tasks if share_of(task.number, share[1]) == share[0]]
        build(
            tasks,
            settings,
            manifest,
            output=output,
            manifest_name=name,
            num_workers=num_workers,
        )
        if share is None:
            if not is_complete(manifest, output):
                complete(manifest, output)
            report(manifest, output, seconds=time.perf_counter() - start)
        else:
            print(
                f"share {share[0]} of {share[1]} is ready: {len(tasks)} shards; when all are, run "
                f"this with --finish --output {output}"
            )


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
