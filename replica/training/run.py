"""From options to a run: every check before its first process starts."""

import dataclasses
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch

import cuda_ext
from cuda_ext.convolution_ways import Products
from data_prep.errors import UserError, command_for
from data_prep.files import sha256_of_file
from data_prep.shards import DataSet, check_every_byte, open_data_set
from replica import paper
from replica.distributed.devices import Devices, choose_devices
from replica.distributed.torchrun import Torchrun
from replica.feed.order import cost_of_blocks
from replica.feed.variants import check_variants
from replica.network.own_network import ModelFile, same_model_file
from replica.recipes import Recipe, find_recipe, with_changes
from replica.training.allocator import keep_large_blocks
from replica.training.checkpoint import (
    NUM_KEPT,
    Checkpoint,
    check_fits_classes,
    check_fits_recipe,
    checkpoints_of,
    last_whole_checkpoint,
)
from replica.training.control_log import hand_changes
from replica.training.numerics import Numerics, check_numerics
from replica.training.options import (
    DEFAULT_DATA,
    DEFAULT_RECIPE,
    DEFAULT_SEED,
    Say,
    TrainOptions,
    with_rates,
)
from replica.training.own_network import check_own_network
from replica.training.run_directory import can_write_events, new_run_dir, newest_run
from replica.training.run_record import (
    RUN_FILE,
    Initialization,
    RunRecord,
    read_run_record,
    ways_to_continue,
)
from replica.training.torch_optimizers import check_optimizer
from replica.training.transfer import initialization


@dataclass(frozen=True)
class Run:
    """What every rank of a run is given.

    Attributes:
        steps: stop after this many, counted from the beginning of the run.
        checkpoint_steps: save after so many steps each, too.
        resume_from: the checkpoint to go on from; None also where there was none yet.
        keep: newest checkpoints, besides the best.
        convolution_ways: who multiplies in each convolution, where the run began with it; None
            where `numerics` decides.
        model_file: of a user's own network; None for that of the recipe.
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
    convolution_ways: dict[str, Products] | None = None
    model_file: ModelFile | None = None


def prepare_run(options: TrainOptions, torchrun: Torchrun | None, *, say: Say) -> Run:
    """Makes a run of its options, after everything that can be checked before a process starts.

    Raises:
        UserError: the options contradict each other, the data, the machine, or the run to resume.
    """
    keep_large_blocks()  # before the first tensor is read
    if options.recipe is not None:
        find_recipe(options.recipe)  # a wrong name is said before the data is looked for
    if torchrun is not None and options.out is None and not options.dry_run:
        raise UserError("torchrun: expected --out DIR, the same for all processes, got none")
    if torchrun is not None and torchrun.restarts and options.out is not None:
        say(f"torchrun: start number {torchrun.restarts + 1}: continuing the run in {options.out}")
        options = dataclasses.replace(options, resume=(options.out / RUN_FILE).is_file())
    prepare = _resumed_run if options.resume else _new_run
    given = None if options.model is None else ModelFile.read(options.model)
    run = prepare(options, torchrun, given, say)
    check_numerics(run.numerics, run.devices)
    check_optimizer(run.recipe, run.numerics)
    check_own_network(run, options, say)
    check_variants(run.recipe)
    _check_scope(run)
    if run.recipe.image_order == "block":
        part = open_data_set(run.data_dir).train
        say(f"order: {cost_of_blocks(run.recipe, part, seed=run.seed)}")
    if options.verify:
        _verify(run.data_dir, torchrun, say)
    return run


def _verify(data_dir: Path, torchrun: Torchrun | None, say: Say) -> None:
    """Compares every byte of the shards; of a machine's processes, each takes some of them."""
    first, step = (torchrun.local_rank, torchrun.local_processes) if torchrun else (0, 1)
    began = time.perf_counter()
    num_bytes = check_every_byte(open_data_set(data_dir), first=first, step=step)
    done = f"{num_bytes / 1e6:.1f} MB of shards are in every byte what their manifest says"
    say(f"verify: {done} ({time.perf_counter() - began:.1f} s)")


def _check_scope(run: Run) -> None:
    """Refuses windows that would need the other device's channels (D7)."""
    if run.recipe.lrn_scope == "layer" and run.devices.split == 2:
        raise UserError(
            f"recipe {run.recipe.name}: lrn_scope=layer: its windows cross the towers: expected "
            "each network on one device: give --split 1"
        )


# --- A new run


def _new_run(
    options: TrainOptions, torchrun: Torchrun | None, given: ModelFile | None, say: Say
) -> Run:
    """A run from the beginning: its recipe, data, directory and seed."""
    data_dir = options.data or DEFAULT_DATA
    if options.data is None:
        say(f"data: {data_dir} (no --data given)")
    data = open_data_set(data_dir)
    name = options.recipe or data.recipe or DEFAULT_RECIPE
    if options.recipe is None:
        why = f"named by the data at {data_dir}" if data.recipe else "no --recipe given"
        say(f"recipe: {name} ({why})")
    recipe = recipe_of(name, options)
    check_fits_images(recipe, data)
    if recipe.batch_size > len(data.train):
        images = f"all {len(data.train)} training images"
        say(f"batch: {images} (recipe {recipe.name}: {recipe.batch_size})")
    if data.held_out != "val":
        say(f"validation: on the {data.held_out} images (the data has no val)")
    run_dir = options.out or new_run_dir()
    if options.out is None:
        say(f"out: {run_dir} (no --out given)")
    seed = DEFAULT_SEED if options.seed is None else options.seed
    if options.seed is None:
        say(f"seed: {seed} (no --seed given)")
    num_classes = _choose_num_classes(recipe, data, say)
    if options.replay is not None:
        read_run_record(options.replay)
        changes = hand_changes(options.replay, recipe)
        if not changes:
            raise UserError(
                f"--replay {options.replay}: expected a run that was changed by hand, found none"
            )
        first = changes[0].step
        say(f"replay: {len(changes)} changes by hand of {options.replay}, from step {first} on")
    init = None
    if options.init is not None:
        init = initialization(options.init, options, recipe, num_classes, data, say)
    devices = _devices(options, torchrun, say, towers=recipe.towers)
    say_what_computes(data, say)
    return Run(
        recipe=recipe,
        num_classes=num_classes,
        data_dir=data_dir,
        run_dir=run_dir,
        devices=devices,
        # On by default where it is known to cost less than 5 %: on a GPU it was not measured.
        numerics=_numerics(options, Numerics(deterministic=devices.kind == "cpu")),
        seed=seed,
        steps=options.steps,
        checkpoint_steps=options.checkpoint_steps,
        resume_from=None,
        command=list(sys.orig_argv),
        keep=options.keep or NUM_KEPT,
        loader_threads=options.loader_threads,
        init=init,
        tensorboard=options.tensorboard and can_write_events(run_dir, say),
        model_file=given,
    )


def recipe_of(name: str, options: TrainOptions) -> Recipe:
    """A recipe with all changes that the options make.

    Raises:
        UserError: there is no such recipe, or it cannot be changed so.
    """
    return with_rates(with_changes(find_recipe(name), options.changes), options)


def check_fits_images(recipe: Recipe, data: DataSet) -> None:
    """Refuses crops that are larger than the images, with a UserError that names both."""
    if recipe.crop_size > data.image_size:
        size = f"--size {recipe.crop_size} or more (the paper's is {paper.IMAGE_SIZE})"
        raise UserError(
            f"{data.directory}: has images of {data.image_size} pixels, but recipe {recipe.name} "
            f"cuts crops of {recipe.crop_size}: build the shards with {size}, or change the "
            "crop with --set crop_size=..."
        )


def _choose_num_classes(recipe: Recipe, data: DataSet, say: Say) -> int:
    """As many classes as the data has, unless the recipe fixes their number."""
    in_data = len(data.wnids)
    if recipe.num_classes is None:
        usual = recipe.fully_connected[-1].num_units
        if in_data != usual:
            say(f"classes: {in_data}, as the data has (recipe {recipe.name}: {usual})")
        return in_data
    if recipe.num_classes < in_data:
        raise UserError(
            f"num_classes {recipe.num_classes}: the data at {data.directory} has {in_data} "
            "classes: expected at least as many, or none to take the data's number"
        )
    if recipe.num_classes > in_data:
        say(f"classes: {recipe.num_classes}, as the recipe fixes (the data has {in_data})")
    return recipe.num_classes


# --- A resumed run


def _resumed_run(
    options: TrainOptions, torchrun: Torchrun | None, given: ModelFile | None, say: Say
) -> Run:
    """A run as its last session left it, which the options may only repeat."""
    run_dir = options.out or newest_run(purpose="resume")
    if options.out is None:
        say(f"out: {run_dir} (no --out given: the newest run)")
    record = read_run_record(run_dir)
    same_model_file(run_dir, record.model_file, given)
    path: Path | None = None
    began: RunRecord | Checkpoint = record
    found = f"resuming {run_dir} from the beginning: it has no checkpoint yet"
    if checkpoints_of(run_dir):
        path, began, passed_over = last_whole_checkpoint(run_dir)
        for line in passed_over:
            say(f"passed over {line}")
        found = f"resuming {path} at step {began.step}, epoch {began.epoch}"
    recipe = _recipe_to_continue(options, began.recipe, path or run_dir)
    if options.seed not in (None, began.seed):
        raise UserError(
            f"--seed {options.seed}: the run in {run_dir} began with seed {began.seed}: "
            "leave the option out to continue it"
        )
    data_dir = options.data or Path(record.data.directory)
    data = open_data_set(data_dir)
    if isinstance(began, Checkpoint):
        check_fits_classes(path or run_dir, began.wnids, data.wnids, data_dir)
    if data.manifest_sha256 != record.data.manifest_sha256:
        raise UserError(
            f"{data_dir}: is not the data that the run in {run_dir} began with (the manifest "
            "differs): give that with --data"
        )
    say(found)
    init = record.initialized_from
    if path is None and init is not None and sha256_of_file(Path(init.checkpoint)) != init.sha256:
        raise UserError(f"{init.checkpoint}: is not the file that the run in {run_dir} began with")
    devices = _devices(options, torchrun, say, towers=recipe.towers, before=record.devices)
    say_what_computes(data, say)
    return Run(
        recipe=recipe,
        num_classes=began.num_classes,
        data_dir=data_dir,
        run_dir=run_dir,
        devices=devices,
        numerics=_numerics(options, record.numerics, began_in=run_dir),
        convolution_ways=ways_to_continue(record, recipe, devices, place=run_dir, say=say),
        seed=began.seed,
        steps=options.steps,
        checkpoint_steps=options.checkpoint_steps or record.checkpoint_steps,
        resume_from=path,
        command=list(sys.orig_argv),
        is_resumed=True,
        keep=options.keep or record.keep,
        loader_threads=options.loader_threads,
        init=init,
        tensorboard=options.tensorboard and can_write_events(run_dir, say),
        model_file=given,
    )


def _recipe_to_continue(options: TrainOptions, began_with: Recipe, place: Path) -> Recipe:
    """The recipe of a resumed run, of which only the number of epochs may change."""
    is_named = options.recipe is not None
    if not (is_named or options.changes or options.freeze or options.rate):
        return began_with
    base = find_recipe(options.recipe) if options.recipe is not None else began_with
    changed = with_changes(base, options.changes)
    if is_named:
        changed = with_rates(changed, options)
    elif options.freeze or options.rate:
        raise UserError(
            "--freeze and --rate: expected a new run, got --resume: change a live run with "
            f"`{command_for('replica.control')}`"
        )
    check_fits_recipe(place, began_with, changed)
    return changed


# --- Both


def _devices(
    options: TrainOptions,
    torchrun: Torchrun | None,
    say: Say,
    *,
    towers: int,
    before: Devices | None = None,
) -> Devices:
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
    elif before is not None:
        if device == "auto" and before.kind == "cpu":
            device = "cpu"
        if gpus is None:
            gpus = before.num_processes
            if split is None and gpus > 1:
                split = before.split
            say(f"devices: as many as the run began with, {gpus} (no --gpus given)")
    return choose_devices(
        gpus=gpus, num_gpus_present=present, split=split, device=device, towers=towers, say=say
    )


def _numerics(options: TrainOptions, began: Numerics, *, began_in: Path | None = None) -> Numerics:
    """What was asked for, else what the run was begun with; a resumed run refuses another."""
    values = {}
    for name in (field.name for field in dataclasses.fields(Numerics)):
        asked, known = getattr(options, name), getattr(began, name)
        if began_in is not None and asked not in (None, known):
            on_off = {True: "on", False: "off"}
            raise UserError(
                f"--{name.replace('_', '-')} {on_off.get(asked, asked)}: the run in {began_in} "
                f"began with {on_off.get(known, known)}: leave the option out to continue it"
            )
        values[name] = known if asked is None else asked
    return Numerics(**values)


def say_what_computes(data: DataSet, say: Say) -> None:
    """Says so where the operators run in plain PyTorch, what decodes JPEG shards, and the memory.

    Raises:
        UserError: REPLICA_EXT or REPLICA_MALLOC has an unknown value.
    """
    try:
        state = cuda_ext.compiled_state()
    except ValueError as error:
        raise UserError(str(error)) from None
    if not state.is_live:
        say(f"operators: plain PyTorch, several times slower than compiled ({state.reason})")
    if data.decoder:
        say(f"images: decoded by {data.decoder}")
    say(f"memory: {keep_large_blocks()}")
