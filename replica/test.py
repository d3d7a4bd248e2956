"""Tests a network: `python -m replica.test --help`."""

if __name__ == "__main__":  # before the imports that it is about
    from data_prep import require_environment

    require_environment(__name__, "torch")

import argparse
import json
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from data_prep.errors import OneLineParser, UserError
from data_prep.manifest import PARTS
from data_prep.shards import DataSet, open_data_set
from replica import paper
from replica.distributed.devices import choose_devices
from replica.results.evaluation import confidence_interval, test_checkpoint
from replica.training import run_directory
from replica.training.allocator import keep_large_blocks
from replica.training.checkpoint import check_fits_classes, last_whole_checkpoint, load_checkpoint
from replica.training.numerics import (
    PRECISIONS,
    Numerics,
    check_precision,
    set_numerics,
)
from replica.training.options import DEFAULT_DATA, say_operators

tqdm.set_lock(threading.RLock())


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = OneLineParser(
        prog="python -m replica.test",
        description="Top-1 and top-5 error of a checkpoint on the held-out part of its data.",
    )
    add = parser.add_argument
    add("--checkpoint", type=Path, metavar="FILE", help="default: the last one of the newest run")
    add("--data", type=Path, metavar="DIR", help="shards (default: those of the run)")
    add(
        "--ten-crop",
        action="store_true",
        help="average the softmax over the four corners, the centre, and their reflections; "
        "without it, the central crop alone",
    )
    add(
        "--part",
        choices=PARTS,
        help="which images (default: val, or test in a data set without val)",
    )
    add("--json", action="store_true", help="print one JSON object instead of text")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: %(default)s")
    add("--precision", choices=PRECISIONS, default="float32", help="default: %(default)s")
    return parser.parse_args(argv)


def choose_checkpoint(
    arguments: argparse.Namespace, say: Callable[[str], None]
) -> tuple[Path, dict[str, Any]]:
    """The named checkpoint, or the last whole one of the newest run."""
    if arguments.checkpoint is not None:
        return arguments.checkpoint, load_checkpoint(arguments.checkpoint)
    run_dir = run_directory.newest_run(purpose="test")
    path, content, passed_over = last_whole_checkpoint(run_dir)
    for line in passed_over:
        say(f"passed over {line}")
    say(f"checkpoint: {path} (no --checkpoint given: the last one of the newest run)")
    return path, content


def choose_data(
    arguments: argparse.Namespace, checkpoint: Path, say: Callable[[str], None]
) -> DataSet:
    """The named data, or those of the checkpoint's run."""
    if arguments.data is not None:
        return open_data_set(arguments.data)
    if (checkpoint.parent / run_directory.RUN_FILE).is_file():
        directory = Path(run_directory.read_run_record(checkpoint.parent)["data"]["directory"])
        say(f"data: {directory} (no --data given: that of the run)")
    else:
        directory = DEFAULT_DATA
        say(f"data: {directory} (no --data given)")
    return open_data_set(directory)


def choose_part(name: str | None, data: DataSet, say: Callable[[str], None]) -> str:
    """The named part of the data, or the one that is held out."""
    if name is None:
        if data.held_out != "val":
            say(f"part: {data.held_out} (the data has no val)")
        return data.held_out
    if not len(data.part(name)):
        have = ", ".join(part for part in PARTS if len(data.part(part)))
        raise UserError(f"--part {name}: expected one of {have}, which {data.directory} has")
    return name


def run(arguments: argparse.Namespace) -> None:
    """Tests and prints."""

    def say(line: str) -> None:
        # With --json, standard output holds the result alone.
        print(line, file=sys.stderr if arguments.json else sys.stdout)

    allocator = keep_large_blocks()  # before the first tensor is read
    path, content = choose_checkpoint(arguments, say)
    data = choose_data(arguments, path, say)
    check_fits_classes(path, content, data.wnids, data.directory)
    side = content["mean_image"].shape[0]
    if side != data.image_size:
        raise UserError(
            f"{data.directory}: has images of {data.image_size} pixels, but {path} was trained on "
            f"{side}: give such data with --data"
        )
    part = choose_part(arguments.part, data, say)
    towers = content["recipe"]["towers"]
    devices = choose_devices(
        gpus=None,
        num_gpus_present=torch.cuda.device_count() if torch.cuda.is_available() else 0,
        split=None,
        device=arguments.device,
        towers=towers,
    )
    check_precision(arguments.precision, kind=devices.kind)
    is_deterministic = devices.kind == "cpu"
    set_numerics(Numerics(precision=arguments.precision, deterministic=is_deterministic))
    say_operators(say)
    say(f"memory: {allocator.reason}")
    counts = test_checkpoint(
        content,
        data.part(part),
        ten_crop=arguments.ten_crop,
        device=torch.device(devices.kind),
        precision=arguments.precision,
    )
    result: dict[str, Any] = {
        "checkpoint": str(path),
        "data": str(data.directory),
        "manifest_sha256": data.manifest_sha256,
        "recipe": content["recipe"]["name"],
        "step": content["step"],
        "part": part,
        "views": paper.TEST_VIEWS if arguments.ten_crop else 1,
        "num_images": counts.num_images,
        "loss": counts.mean_loss,
    }
    for name, error in (("top1", counts.top1_error), ("top5", counts.top5_error)):
        result[f"{name}_error"] = error
        result[f"{name}_interval"] = confidence_interval(error, counts.num_images)
    if arguments.json:
        print(json.dumps(result, indent=1))
        return
    views = "ten crops" if arguments.ten_crop else "the central crop"
    for name in ("top1", "top5"):
        low, high = result[f"{name}_interval"]
        print(
            f"{name[:3]}-{name[3]} error {result[f'{name}_error']:.2%} "
            f"(95 % interval {low:.2%} to {high:.2%})"
        )
    print(f"on {counts.num_images} {part} images, {views}, step {content['step']}")


def main(argv: list[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    try:
        run(parse_arguments(argv))
    except UserError as error:
        print(f"replica.test: {error}", file=sys.stderr)
        return 2
    except RuntimeError as error:
        print(f"replica.test: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("replica.test: interrupted", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
