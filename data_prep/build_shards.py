"""Builds shards from pictures: `python data_prep/build_shards.py --help`."""

import sys
from pathlib import Path

# A script's own folder comes first on sys.path; the project's root is what imports need.
if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from data_prep import require_environment

require_environment(__name__)

import argparse
import time
from collections import Counter

from data_prep.arguments import (
    MOST_COUNTED,
    MOST_PROCESSES,
    MOST_SEED,
    fraction,
    nonempty_path,
    one_of_many,
    one_or_three_counts,
    whole_number,
)
from data_prep.builder import LOCK_FILE, WHEN_HELD, build, complete, is_complete, start_manifest
from data_prep.chosen_pictures import DEFAULT_TOY_INPUT, find_pictures
from data_prep.color_statistics import comparison_with_published
from data_prep.errors import OneLineParser, UserError, command_for, print_line, run_command
from data_prep.files import locked
from data_prep.job_array import join, share_file, share_of
from data_prep.jpeg import QUALITY, SUBSAMPLING
from data_prep.manifest import (
    LABELS_FILE,
    MANIFEST_FILE,
    MAX_IMAGE_SIZE,
    PARTS,
    Manifest,
    Plan,
    Storage,
)
from data_prep.pictures import (
    DECODERS,
    EXIF_ORIENTATIONS,
    FILTERS,
    FITS,
    RESAMPLING,
    PictureFormat,
    decoder_name,
)
from data_prep.plan import all_tasks, plan_of
from data_prep.shard_builder import BuildSettings, sample_cost
from data_prep.shard_writer import Classes
from data_prep.shards import open_data_set
from data_prep.sources.class_tars import HALVES_SEED
from data_prep.sources.picture_set import PictureSet
from data_prep.sources.recognize import SOURCES
from data_prep.workers import num_cores

# The sets whose statistics are set beside those that others measured on ImageNet.
IMAGENET_SOURCES = ("kaggle", "ilsvrc2012", "ilsvrc2010", "class-tars")
DEFAULT_OUTPUT = Path("shards")
DEFAULT_IMAGES_PER_SHARD = 1024
BAD_PICTURES_SHOWN = 10
SAMPLE_SIZE = 64  # pictures that --dry-run decodes


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = OneLineParser(
        prog=command_for("data_prep.build_shards"),
        description="Pictures -> HDF5 shards of 256 x 256 RGB images, restartable.",
        epilog="sources, in the order in which they are recognized:\n"
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
        type=nonempty_path,
        metavar="PATH",
        help="a directory, a zip or a tar with the pictures; for toy, where they are drawn "
        f"(default: {DEFAULT_TOY_INPUT})",
    )
    where.add_argument(
        "--output",
        type=nonempty_path,
        metavar="DIR",
        help=f"where the shards go (default: {DEFAULT_OUTPUT})",
    )
    which = parser.add_argument_group("which pictures")
    which.add_argument(
        "--classes",
        type=nonempty_path,
        metavar="FILE",
        help="only these: a wnid or a name per line",
    )
    which.add_argument(
        "--class-names",
        type=nonempty_path,
        metavar="FILE",
        help="names of the classes: a class (its folder or label), a tab and its name per line",
    )
    which.add_argument(
        "--val-fraction",
        type=fraction,
        metavar="FRACTION",
        help="cut so large a part of each class out of the training pictures as val, such as 0.2",
    )
    which.add_argument(
        "--seed",
        type=whole_number(0, MOST_SEED),
        metavar="N",
        help=f"of --val-fraction and --per-class VAL (default: {HALVES_SEED})",
    )
    which.add_argument(
        "--per-class",
        type=one_or_three_counts,
        metavar="VAL|TRAIN,VAL,TEST",
        help="cut so many pictures of each class out of the training pictures: 50 as val by seed, "
        "the rest stays; or such as 400,50,50 in their order, and no others",
    )
    which.add_argument(
        "--limit",
        type=whole_number(1, MOST_COUNTED),
        metavar="N",
        help="at most N pictures of each class in each part",
    )
    which.add_argument(
        "--follow-links",
        action="store_true",
        help="read also what links in a directory point to outside of it",
    )
    which.add_argument(
        "--strict",
        action="store_true",
        help="stop at a picture that cannot be read and at a class without pictures",
    )
    what = parser.add_argument_group("what becomes of them")
    what.add_argument(
        "--size",
        type=whole_number(1, MAX_IMAGE_SIZE),
        metavar="PIXELS",
        default=256,
        help="side of an image (default: %(default)s, the paper's)",
    )
    what.add_argument(
        "--fit",
        choices=FITS,
        default=FITS[0],
        help="crop: shorter side to SIZE, central square (default, the paper's); pad: longer side "
        'to SIZE, the rest black (the 2012 source\'s "full"); squash: both sides to SIZE',
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
        "--exif-orientation",
        choices=EXIF_ORIENTATIONS,
        default=EXIF_ORIENTATIONS[0],
        help="whether pictures are turned as EXIF asks for (default: %(default)s, as ImageNet was)",
    )
    what.add_argument(
        "--storage",
        choices=("raw", "jpeg"),
        default="raw",
        help="raw: pixels, read without decoding (default); jpeg: several times smaller, lossy",
    )
    what.add_argument(
        "--quality",
        type=whole_number(1, 100),
        metavar="1..100",
        help=f"of the JPEG files (default: {QUALITY}; 85 was the 2012 value)",
    )
    what.add_argument(
        "--images-per-shard",
        type=whole_number(1, MOST_COUNTED),
        metavar="N",
        default=DEFAULT_IMAGES_PER_SHARD,
        help="images per shard file (default: %(default)s, 201 MB)",
    )
    how = parser.add_argument_group("how")
    how.add_argument(
        "--workers",
        type=whole_number(1, MOST_PROCESSES),
        metavar="N",
        help="decoding processes (default: one per core)",
    )
    how.add_argument(
        "--shard",
        type=one_of_many,
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
    if arguments.quality is not None and arguments.storage != "jpeg":
        parser.error("--quality: expected --storage jpeg beside it")
    if arguments.follow_links and (arguments.input is None or arguments.source == "toy"):
        parser.error("--follow-links: expected --input beside it, a directory with pictures")
    if arguments.val_fraction is not None and arguments.per_class is not None:
        parser.error("--val-fraction: expected no --per-class beside it, which divides, too")
    is_by_seed = arguments.val_fraction is not None or isinstance(arguments.per_class, int)
    if arguments.seed is not None and not is_by_seed:
        parser.error("--seed: expected --val-fraction or --per-class VAL beside it")
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


def format_of(arguments: argparse.Namespace) -> PictureFormat:
    """How the files become images."""
    return PictureFormat(
        arguments.size,
        arguments.fit,
        arguments.resampling,
        arguments.decoder,
        arguments.exif_orientation,
    )


def settings_of(pictures: PictureSet, arguments: argparse.Namespace) -> tuple[Plan, BuildSettings]:
    """The plan of a build, and what every worker needs to know of it."""
    picture_format, storage = format_of(arguments), Storage("raw")
    if arguments.storage == "jpeg":
        quality = QUALITY if arguments.quality is None else arguments.quality
        storage = Storage("jpeg", quality, SUBSAMPLING, decoder_name("pillow"))
    plan = plan_of(
        pictures,
        picture_format,
        storage,
        images_per_shard=arguments.images_per_shard,
        limit=arguments.limit,
    )
    classes = Classes(pictures.wnids, pictures.class_names, plan.sha256())
    return plan, BuildSettings(picture_format, storage, classes, arguments.strict)


def report(manifest: Manifest, output: Path, *, seconds: float | None) -> None:
    """Prints what was built and what could not be read."""
    for part in PARTS:
        entries = [entry for entry in manifest.parts[part] if entry]
        if not entries:
            continue
        files = manifest.shard_files(part)
        num_images = sum(file.num_images for file in files)
        num_bytes = sum(file.num_bytes for file in files)
        seen: Counter[str] = Counter()
        for entry in entries:
            seen.update(entry.pictures_seen)
        kinds = ", ".join(f"{what} {number}" for what, number in sorted(seen.items()))
        print(
            f"{part}: {num_images} images in {len(files)} shards, "
            f"{num_bytes / 1e9:.2f} GB ({kinds})"
        )
        bad = [item for entry in entries for item in entry.bad_pictures]
        if bad:
            print(f"{part}: {len(bad)} pictures could not be read; {MANIFEST_FILE} lists them all:")
            for item in bad[:BAD_PICTURES_SHOWN]:
                print_line(f"  {item.picture}: {item.reason}")
    plan, files = manifest.plan, [file for part in PARTS for file in manifest.shard_files(part)]
    num_images, num_bytes = sum(f.num_images for f in files), sum(f.num_bytes for f in files)
    print(
        f"{len(plan.wnids)} classes, {num_images} images of {plan.image_size} x {plan.image_size}, "
        f"{num_bytes / 1e9:.2f} GB" + (f", {seconds:.0f} s" if seconds is not None else "")
    )
    statistics = open_data_set(output).statistics
    if plan.source in IMAGENET_SOURCES:
        print("\n".join(comparison_with_published(statistics)))
    print_line(
        f"{output / MANIFEST_FILE} is complete; {LABELS_FILE} lists every image with its label"
    )


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


def run(arguments: argparse.Namespace) -> None:
    """Builds what the command line asks for."""
    num_workers = arguments.workers or num_cores()
    output = arguments.output or DEFAULT_OUTPUT
    start = time.perf_counter()
    if arguments.output is None and not arguments.dry_run:
        print_line(f"output: {output} (no --output given)")
    if arguments.finish:
        finish(output)
        return
    if arguments.workers is None:
        print(f"workers: {num_workers}, one per core (no --workers given)")
    decoder_name(arguments.decoder)
    if arguments.dry_run:
        pictures = find_pictures(arguments, num_workers=num_workers)
        estimate(pictures, settings_of(pictures, arguments)[1], num_workers=num_workers)
        return
    is_drawn = arguments.source == "toy" or (arguments.source is None and arguments.input is None)
    if not is_drawn:
        # Before anything is written, as the input may turn out to be no good.
        pictures = find_pictures(arguments, num_workers=num_workers)
    share: tuple[int, int] | None = arguments.shard
    lock_name = LOCK_FILE if share is None else f"build-{share[0]}-of-{share[1]}.lock"
    with locked(output / lock_name, title=f"--output {output}", when_held=WHEN_HELD):
        if is_drawn:  # under the lock, as the toy set may have to be drawn
            pictures = find_pictures(arguments, num_workers=num_workers)
        plan, settings = settings_of(pictures, arguments)
        tasks = all_tasks(pictures, output, arguments.images_per_shard)
        num_shards = {part: sum(task.part == part for task in tasks) for part in PARTS}
        name = MANIFEST_FILE if share is None else share_file(share)
        manifest = start_manifest(output, plan, num_shards, name)
        if share is not None:
            tasks = [task for task in tasks if share_of(task.number, share[1]) == share[0]]
        manifest = build(
            tasks, settings, manifest, output=output, manifest_name=name, num_workers=num_workers
        )
        if share is None:
            if not is_complete(manifest, output):
                manifest = complete(manifest, output)
            report(manifest, output, seconds=time.perf_counter() - start)
        else:
            print_line(
                f"share {share[0]} of {share[1]} is ready: {len(tasks)} shards; when all are, run "
                f"this with --finish --output {output}"
            )


def finish(output: Path) -> None:
    """Joins what the machines of a job array have built."""
    if not output.is_dir():
        raise UserError(f"--finish: expected --output with the shares, found no {output}")
    with locked(output / LOCK_FILE, title=f"--output {output}", when_held=WHEN_HELD):
        manifest = join(output)
        for lock in output.glob("build-*-of-*.lock"):
            lock.unlink()
        report(manifest, output, seconds=None)


def main(argv: list[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    return run_command(
        "build_shards",
        lambda: run(parse_arguments(argv)),
        when_interrupted="interrupted; run the same command again to continue after the last "
        "whole shard",
    )


if __name__ == "__main__":
    sys.exit(main())
