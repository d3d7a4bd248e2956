"""From options to a run: every check before its first process starts."""

import dataclasses
import shlex
from dataclasses import dataclass
from pathlib import Path

import torch

import cuda_ext
from data_prep.errors import UserError
from replica.distributed.devices import Devices, choose_devices
from replica.distributed.torchrun import Torchrun
from replica.recipes import Recipe
from replica.training.allocator import keep_large_blocks
from replica.training.board import board_problem
from replica.training.checkpoint import NUM_KEPT
from replica.training.numerics import Numerics, check_numerics
from replica.training.options import Say, TrainOptions
from replica.training.run_directory import command_line
from replica.training.run_record import RUN_FILE, Initialization
from replica.training.start import Start, new_run, resumed_run


@dataclass(frozen=True)
class Run:
    """What every rank of a run is told.

    Attributes:
        recipe, num_classes, seed: what is trained.
        data_dir, run_dir: where the shards are, and where the run writes.
        devices, numerics: on what and how it computes.
        steps: stop after this many, counted from the beginning of the run.
        checkpoint_steps: save after so many steps each, too.
        resume_from: the checkpoint to go on from.
        command: as it was typed.
        is_resumed: also where there was no checkpoint yet.
        keep: newest checkpoints, besides the best.
        loader_threads: that make batches.
        init: where the weights come from, if not all are drawn.
        tensorboard: whether event files are written.
    """

    recipe: Recipe
    num_classes: int
    data_dir: Path
    run_dir: Path
    devices: Devices
    numerics: Numerics
    seed: int
    steps: int | None
    checkpoint_steps: int | None
    resume_from: Path | None
    command: list[str]
    is_resumed: bool = False
    keep: int = NUM_KEPT
    loader_threads: int = 1
    init: Initialization | None = None
    tensorboard: bool = False

    @property
    def command_to_continue(self) -> str:
        """What a user types to go on with it."""
        words = ["python", "-m", "replica.train", "--resume", "--out", str(self.run_dir)]
        return shlex.join(words)


def prepare_run(options: TrainOptions, torchrun: Torchrun | None, *, say: Say) -> Run:
    """Makes a run of its options, after everything that can be checked before a process starts.

    Args:
        options: of the command line.
        torchrun: what it says, if it started this process.
        say: told each default that is taken.

    Raises:
        UserError: the options contradict each other, the data, the machine, or the run to resume.
    """
    keep_large_blocks()  # before the first tensor is read
    if torchrun is not None and options.out is None and not options.dry_run:
        raise UserError("torchrun: expected --out DIR, the same for all processes, got none")
    if torchrun is not None and torchrun.restarts and options.out is not None:
        say(f"torchrun: start number {torchrun.restarts + 1}: continuing the run in {options.out}")
        options = dataclasses.replace(options, resume=(options.out / RUN_FILE).is_file())
    start = resumed_run(options, say=say) if options.resume else new_run(options, say=say)
    devices = _devices(options, start, torchrun, say)
    say_what_computes(say)
    record = start.record
    run = Run(
        recipe=start.recipe,
        num_classes=start.num_classes,
        data_dir=start.data_dir,
        run_dir=start.run_dir,
        devices=devices,
        numerics=_numerics(options, start, devices),
        seed=start.seed,
        steps=options.steps,
        checkpoint_steps=options.checkpoint_steps or (record.checkpoint_steps if record else None),
        resume_from=start.resume_from,
        command=command_line(),
        is_resumed=record is not None,
        keep=options.keep or (record.keep if record else NUM_KEPT),
        loader_threads=options.loader_threads,
        init=start.init,
        tensorboard=options.tensorboard and _can_write_events(say),
    )
    check_numerics(run.numerics, run.devices)
    return run


def _devices(options: TrainOptions, start: Start, torchrun: Torchrun | None, say: Say) -> Devices:
    """The devices that were asked for; those of the last session, else: only so is it bit-equal."""
    gpus, split, device = options.gpus, options.split, options.device
    present = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if torchrun is not None:
        if gpus not in (None, torchrun.num_processes):
            raise UserError(
                f"--gpus {gpus}: torchrun started {torchrun.num_processes} processes: leave the "
                "option out"
            )
        if 0 < present < torchrun.local_processes and device != "cpu":
            raise UserError(
                f"torchrun: started {torchrun.local_processes} processes on a machine with "
                f"{present} GPUs: use --nproc-per-node, or --device cpu"
            )
        gpus = torchrun.num_processes
        present = torchrun.num_processes if present else 0
    elif start.record is not None:
        before = start.record.devices
        if device == "auto" and before.kind == "cpu":
            device = "cpu"
        if gpus is None:
            gpus = before.num_processes
            if split is None and gpus > 1:
                split = before.split
            say(f"devices: as many as the run began with, {gpus} (no --gpus given)")
    return choose_devices(
        gpus=gpus,
        num_gpus_present=present,
        split=split,
        device=device,
        towers=start.recipe.towers,
        say=say,
    )


def _numerics(options: TrainOptions, start: Start, devices: Devices) -> Numerics:
    """What was asked for, else what the run was begun with, else the defaults."""
    # On by default where it is known to cost less than 5 %: on a GPU it was not measured.
    began: Numerics = Numerics(deterministic=devices.kind == "cpu")
    if start.record is not None:
        began = start.record.numerics
    values = {}
    for name in (field.name for field in dataclasses.fields(Numerics)):
        asked, known = getattr(options, name), getattr(began, name)
        if start.record is not None and asked not in (None, known):
            on_off = {True: "on", False: "off"}
            raise UserError(
                f"--{name.replace('_', '-')} {on_off.get(asked, asked)}: the run in "
                f"{start.run_dir} began with {on_off.get(known, known)}: leave the option out to "
                "continue it"
            )
        values[name] = known if asked is None else asked
    return Numerics(**values)


def say_what_computes(say: Say) -> None:
    """Says so where the operators run in plain PyTorch, and how memory is kept.

    Raises:
        UserError: REPLICA_EXT or REPLICA_MALLOC has an unknown value.
    """
    try:
        state = cuda_ext.compiled_state()
    except ValueError as error:
        raise UserError(str(error)) from None
    if not state.is_live:
        say(f"operators: plain PyTorch, several times slower than compiled ({state.reason})")
    say(f"memory: {keep_large_blocks().reason}")


def _can_write_events(say: Say) -> bool:
    """Whether TensorBoard is installed, which writes the event files."""
    problem = board_problem()
    if problem:
        say(f"tensorboard: no event files ({problem})")
    return problem is None
