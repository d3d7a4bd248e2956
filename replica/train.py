"""Trains a network: `python -m replica.train --help`."""

if __name__ == "__main__":  # before the imports that it is about
    from data_prep import require_environment

    require_environment(__name__, "torch")

import sys
from contextlib import nullcontext
from functools import partial

from cuda_ext.convolution_ways import PRODUCTS
from data_prep.arguments import (
    MOST_COUNTED,
    MOST_PROCESSES,
    MOST_SEED,
    nonempty_name,
    nonempty_path,
    number,
    whole_number,
)
from data_prep.errors import (
    EXIT_USER_ERROR,
    OneLineParser,
    UserError,
    command_for,
    print_line,
    run_command,
)
from replica.distributed.launch import run_processes
from replica.distributed.mesh import Rank
from replica.distributed.torchrun import run_under_torchrun, torchrun_here
from replica.distributed.worker import WAY_OUT
from replica.recipes import ALIASES
from replica.recipes.changes import settable_fields
from replica.training.checkpoint import NUM_KEPT
from replica.training.control_log import copy_log
from replica.training.dry_run import dry_run
from replica.training.loop import run_rank
from replica.training.numerics import (
    CAPTURED,
    COMPILE_MODES,
    COMPILED,
    MEMORY_FORMATS,
    PRECISIONS,
    Numerics,
)
from replica.training.options import (
    DEFAULT_DATA,
    DEFAULT_SEED,
    DEFAULT_TIMEOUT_SECONDS,
    TrainOptions,
    say_nothing,
)
from replica.training.run import prepare_run
from replica.training.run_directory import locked_run

PROGRAM = "replica.train"
# Below, a busy machine counts as hung; above, PyTorch's clocks overflow.
LEAST_TIMEOUT_SECONDS, MOST_TIMEOUT_SECONDS = 5, 1_000_000


def _parser() -> OneLineParser:
    """The options, and what `--help` says of them."""
    parser = OneLineParser(
        prog=command_for(PROGRAM),
        description="Trains a network on shards; writes a run directory. Ctrl-C, "
        "SIGTERM and SIGHUP save a checkpoint after the step and end with status 130, 143 and 129.",
    )
    what = parser.add_argument_group("what is trained").add_argument
    what("--data", type=nonempty_path, metavar="DIR", help=f"shards (default: {DEFAULT_DATA})")
    what(
        "--recipe", type=nonempty_name, metavar="NAME", help="default: the data set's own, or paper"
    )
    what(
        "--model",
        type=nonempty_name,
        metavar="FILE:FUNCTION",
        help="your own network in the place of the recipe's: a Python file, which is run, and a "
        "function or class in it that takes num_classes and returns a torch.nn.Module from crops "
        "to logits; on one device",
    )
    several = partial(what, action="append", default=[])
    several(
        "--set",
        dest="changes",
        metavar="FIELD=VALUE",
        help="change a field of the recipe; conv3.num_kernels=192 is one of a layer, without=conv4 "
        f"leaves a layer out; fields: {', '.join(settable_fields())}",
    )
    for option, name in ALIASES.items():
        what(option, metavar="VALUE", help=f"the same as --set {name}=VALUE")
    several(
        "--freeze",
        metavar="LAYERS",
        help="layers that stay as they are, such as conv1,conv2: a rate of 0 from the first epoch",
    )
    several(
        "--rate",
        metavar="LAYER=RATE",
        help="a layer's own learning rate from the first epoch, such as fc8=0.01 or conv1.bias=0",
    )
    what("--seed", type=whole_number(0, MOST_SEED), metavar="S", help=f"default: {DEFAULT_SEED}")
    what(
        "--init", type=nonempty_path, metavar="FILE", help="begin with the weights of a checkpoint"
    )
    what("--new-head", action="store_true", help="with --init: draw the last layer anew")
    what(
        "--new-layers",
        type=nonempty_name,
        metavar="LAYERS",
        help="with --init: draw these layers anew, such as conv6,fc6",
    )
    where = parser.add_argument_group("where and how").add_argument
    where(
        "--verify",
        action="store_true",
        help="before the run, compare every byte of the shards with their manifest; it takes as "
        "long as reading them once, which is said",
    )
    where(
        "--gpus",
        type=whole_number(1, MOST_PROCESSES),
        metavar="N",
        help="devices; CPU processes where there is no GPU",
    )
    where(
        "--split",
        type=int,
        choices=(1, 2),
        help="over how many devices one network is cut (default: 2 where there are two devices)",
    )
    where("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: %(default)s")
    where("--precision", choices=PRECISIONS, help=f"default: {Numerics.precision}")
    where(
        "--memory-format",
        choices=MEMORY_FORMATS,
        help=f"of activations (default: {Numerics.memory_format})",
    )
    where(
        "--compile",
        choices=COMPILE_MODES,
        help=f"default: torch.compile for {COMPILED}; cuda-graphs: {CAPTURED}, as one CUDA graph; "
        f"anew for the smaller last batch of an epoch (default: {Numerics.compile})",
    )
    where(
        "--deterministic",
        choices=("on", "off"),
        help="refuse algorithms whose sums have no fixed order (default: on, on GPUs off)",
    )
    where(
        "--convolution",
        choices=PRODUCTS,
        help="who multiplies: PyTorch's library, or own: images in blocks of pixels on CPUs, own "
        "kernels in float32 on GPUs (default: what was measured to win on this kind of processor, "
        "on GPUs the library; python -m replica.info --operators shows it)",
    )
    where(
        *("--loader-threads", "--workers"),
        type=whole_number(0, MOST_PROCESSES),
        default=1,
        metavar="N",
        help="threads that make batches ahead of the step; 0: each is made when it is due; results "
        "do not depend on it (default: %(default)s)",
    )
    where(
        "--timeout",
        type=number(LEAST_TIMEOUT_SECONDS, MOST_TIMEOUT_SECONDS, "seconds"),
        default=DEFAULT_TIMEOUT_SECONDS,
        metavar="SECONDS",
        help="without a sign of life, after which a process counts as hung (default: %(default)g)",
    )
    run = parser.add_argument_group("the run").add_argument
    count = whole_number(1, MOST_COUNTED)
    run("--steps", type=count, metavar="S", help="end after S steps, counted from the run's first")
    run(
        "--checkpoint-steps",
        type=count,
        metavar="N",
        help="save each N steps, besides the end of each epoch",
    )
    run(
        "--keep",
        type=count,
        metavar="K",
        help=f"newest checkpoints to keep, besides the best (default: {NUM_KEPT})",
    )
    run("--out", type=nonempty_path, metavar="DIR", help="run directory (default: runs/<time>)")
    run("--resume", action="store_true", help="continue the run in --out, or the newest one")
    run(
        "--replay",
        type=nonempty_path,
        metavar="RUN",
        help="repeat the changes that were made to RUN by hand, at their steps",
    )
    run("--no-tensorboard", dest="tensorboard", action="store_false", help="write no event files")
    run(
        "--dry-run",
        action="store_true",
        help="say what would be trained, its memory and its time (three steps are tried); write "
        "nothing",
    )
    return parser


def parse_arguments(argv: list[str] | None = None) -> TrainOptions:
    """Reads the command line."""
    parser = _parser()
    given = vars(parser.parse_args(argv))
    if (given["new_head"] or given["new_layers"]) and given["init"] is None:
        parser.error("--new-head and --new-layers: expected --init beside them, got none")
    if given["resume"] and (given["init"] or given["replay"] or given["dry_run"]):
        parser.error("--init, --replay and --dry-run: expected a new run, got --resume")
    for option, field in ALIASES.items():
        value = given.pop(option.removeprefix("--").replace("-", "_"))
        if value is not None:
            given["changes"] = [*given["changes"], f"{field}={value}"]
    deterministic = given["deterministic"]
    given["deterministic"] = None if deterministic is None else deterministic == "on"
    return TrainOptions(**given)


def train(options: TrainOptions) -> int:
    """Prepares the run, and makes it or says what it would be; returns the exit status."""
    torchrun = torchrun_here()
    # Of many processes with the same arguments one says what it found.
    is_first = torchrun is None or torchrun.rank == 0
    try:
        run = prepare_run(options, torchrun, say=print_line if is_first else say_nothing)
        if options.dry_run:
            if is_first:
                print(dry_run(run))
            return 0
        sys.stdout.flush()
        # A run that torchrun starts anew may have ended before it left a record.
        may_have_begun = run.is_resumed or (torchrun is not None and torchrun.restarts > 0)
        lock = locked_run(run.run_dir, resume=may_have_begun) if is_first else nullcontext()
        with lock:
            if is_first and options.replay is not None and not run.is_resumed:
                copy_log(options.replay, run.run_dir, run.recipe)
            if torchrun is None or torchrun.num_processes == 1:
                return run_processes(run_rank, run, run.devices, timeout=options.timeout)
            rank = Rank(torchrun.rank, run.devices, torchrun.local_rank)
            run_under_torchrun(PROGRAM, run_rank, rank, run, timeout=options.timeout)
    except UserError:
        if is_first:
            raise
        return EXIT_USER_ERROR


def main(argv: list[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    return run_command(
        PROGRAM,
        lambda: train(parse_arguments(argv)),
        when_interrupted="stopped at once; the last checkpoint is kept",
        way_out=WAY_OUT,
    )


if __name__ == "__main__":
    sys.exit(main())
