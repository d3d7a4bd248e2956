"""`python -m benchmarks`: lists the benchmarks, or runs one."""

if __name__ == "__main__":  # before the imports that it is about
    from data_prep import require_environment

    require_environment(__name__, "torch")

import argparse
import importlib
import json
import sys
from dataclasses import asdict
from pathlib import Path

from benchmarks.measure import machine, text_of
from data_prep.errors import OneLineParser, UserError, run_command

# Name of the module, and what it says in one line.
BENCHMARKS = {
    "local_response_norm": "the operator on the CPU against a copy, PyTorch and other libraries",
    "local_response_norm_gpu": "the operator on a GPU against a copy of the bytes it must move",
    "split_conv2d": "the convolutions of a recipe against PyTorch's own with groups, by layer",
    "relu_lrn_pool": "ReLU, normalization and pooling in one pass against PyTorch's three",
    "momentum_sgd": "the update of all parameters against PyTorch's fused and foreach ones",
    "feed": "batches from raw shards, against a copy of their bytes and against NumPy",
    "feed_jpeg": "batches from JPEG shards, against decoding their files alone",
    "first_batch": "the first batch for an index of ImageNet's size: seconds and memory",
    "allocator": "large tensors and a training step with their memory kept, and stock",
    "training": "whole training steps against PyTorch's own, and against no normalization",
    "training_gpu": "whole training steps on a GPU, against torchvision's AlexNet and the roofline",
    "towers": "what overlaps the exchange before conv3, as a timeline",
    "copies": "what a step of two copies waits for the sums of gradients, in buckets and after it",
    "drawing": "drawing the embedded data set, against its random numbers alone",
    "ten_crop": "the ten-crop test against its forward passes alone",
    "neighbors": "exact nearest neighbors against the product of matrices alone",
    "build_shards": "building shards of real pictures against decoding and resizing alone",
    "real_sets": "every real set in REPLICA_REAL_DATA, built and verified",
    "demo": "the error of the demo with five seeds, one and two processes, both layouts",
    "earlier": "the experiments of earlier projects at small scale, trained and tested",
    "linear_baseline": "the error of a linear classifier on raw pixels of a data set",
}


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The options of the benchmark that is named first; without a name they have none."""
    names = "\n".join(f"  {name:<25}{about}" for name, about in BENCHMARKS.items())
    parser = OneLineParser(
        prog="python -m benchmarks",
        description="Lists the benchmarks, or runs one and prints its rows.",
        epilog=f"benchmarks:\n{names}\n\npython -m benchmarks NAME --help shows one's options",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    chosen = parser.add_subparsers(dest="name", metavar="NAME")
    argv = sys.argv[1:] if argv is None else argv
    for name in BENCHMARKS:
        one = chosen.add_parser(name, help=argparse.SUPPRESS)
        if name in argv[:1]:  # the others are not imported
            module = importlib.import_module(f"benchmarks.{name}")
            one.description = module.__doc__
            one.add_argument("--json", action="store_true", help="print one JSON object")
            one.add_argument(
                "--save", type=Path, metavar="FILE", help="write that object to a file, too"
            )
            module.add_arguments(one)
            one.set_defaults(measure=module.measure)
    arguments = parser.parse_args(argv)
    if arguments.name is None:
        print(names)
    return arguments


def run(arguments: argparse.Namespace) -> None:
    """Runs the benchmark that is named, and prints its rows."""
    if arguments.name is None:
        return
    if arguments.save and not arguments.save.parent.is_dir():
        raise UserError(f"--save {arguments.save}: expected a file in a directory that exists")
    rows = arguments.measure(arguments)
    described = machine()
    command = ["python", "-m", "benchmarks", *sys.argv[1:]]
    record = {"benchmark": arguments.name, "command": command, "machine": described}
    text = json.dumps({**record, "rows": [asdict(row) for row in rows]}, indent=1)
    if arguments.save:
        arguments.save.write_text(text + "\n")
    if arguments.json:
        print(text)
        return
    device = ", ".join(described["gpus"]) or described["cpu"]
    print(f"{device}, {described['threads']} threads, {described['date']}")
    print(text_of(rows))


def main(argv: list[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    return run_command("benchmarks", lambda: run(parse_arguments(argv)))


if __name__ == "__main__":
    sys.exit(main())
