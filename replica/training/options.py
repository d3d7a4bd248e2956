"""From a command line to a run: `python -m replica.train`'s options, and every check before it."""

import argparse
import dataclasses
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import cuda_ext
from data_prep.errors import OneLineParser, UserError
from data_prep.files import sha256_of_file
from data_prep.shards import DataSet, open_data_set
from replica.distributed.devices import Devices, choose_devices
from replica.distributed.launch import Torchrun, torchrun
from replica.network.draws import UINT32_RANGE
from replica.recipes import ALIASES, EpochChange, Recipe, find_recipe, from_record, with_changes
from replica.recipes.changes import settable_fields
from replica.training import control_log, run_directory
from replica.training.allocator import keep_large_blocks
from replica.training.board import board_problem
from replica.training.checkpoint import (
    NUM_KEPT,
    check_fits_classes,
    check_fits_network,
    check_fits_recipe,
    checkpoints_of,
    last_whole_checkpoint,
    load_checkpoint,
)
from replica.training.numerics import (
    COMPILE_MODES,
    COMPILED,
    MEMORY_FORMATS,
    PRECISIONS,
    Numerics,
    check_numerics,
)
from replica.training.state import Beginning, Run

DEFAULT_DATA = Path("shards")
DEFAULT_RECIPE = "paper"
DEFAULT_SEED = 2012
DEFAULT_TIMEOUT_SECONDS = 600.0


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = OneLineParser(
        prog="python -m replica.train",
        description="Trains a network on shards; writes a run directory. Ctrl-C and SIGTERM save "
        "a checkpoint after the step and end with status 130 and 143.",
    )
    what = parser.add_argument_group("what is trained").add_argument
    what("--data", type=Path, metavar="DIR", help=f"shards (default: {DEFAULT_DATA})")
    what("--recipe", metavar="NAME", help="default: the data set's own, or paper")
    what(
        "--set",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help=f"change a field of the recipe; fields: {', '.join(settable_fields())}",
    )
    for option, name in ALIASES.items():
        what(option, metavar="VALUE", help=f"the same as --set {name}=VALUE")
    what(
        "--freeze",
        action="append",
        default=[],
        metavar="LAYERS",
        help="layers that stay as they are, such as conv1,conv2: a rate of 0 from the first epoch",
    )
    what(
        "--rate",
        action="append",
        default=[],
        metavar="LAYER=RATE",
        help="a layer's own learning rate from the first epoch, such as fc8=0.01 or conv1.bias=0",
    )
    what("--seed", type=int, metavar="S", help=f"default: {DEFAULT_SEED}")
    what("--init", type=Path, metavar="FILE", help="begin with the weights of a checkpoint")
    what("--new-head", action="store_true", help="with --init: draw the last layer anew")
    what(
        "--new-layers",
        default="",
        metavar="LAYERS",
        help="with --init: draw these layers anew, such as conv6,fc6",
    )
    where = parser.add_argument_group("where and how").add_argument
    where("--gpus", type=int, metavar="N", help="devices; CPU processes where there is no GPU")
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
        help=f"torch.compile for {COMPILED}, each compiled anew for the smaller last batch of an "
        f"epoch; also with CUDA graphs (default: {Numerics.compile})",
    )
    where(
        "--deterministic",
        choices=("on", "off"),
        help="refuse algorithms whose sums have no fixed order (default: on, on GPUs off)",
    )
    where(
        "--loader-threads",
        type=int,
        default=1,
        metavar="N",
        help="threads that make batches; results do not depend on it (default: %(default)s)",
    )
    where(
        "--timeout",
        type=float,
        default=DEFAULT_TIMEOUT_SECONDS,
        metavar="SECONDS",
        help="without a sign of life, after which a process counts as hung (default: %(default)g)",
    )
    run = parser.add_argument_group("the run").add_argument
    run("--steps", type=int, metavar="S", help="end after S steps, counted from the run's first")
    run(
        "--checkpoint-steps",
        type=int,
        metavar="N",
        help="save each N steps, besides the end of each epoch",
    )
    run(
        "--keep",
        type=int,
        metavar="K",
        help=f"newest checkpoints to keep, besides the best (default: {NUM_KEPT})",
    )
    run("--out", type=Path, metavar="DIR", help="run directory (default: runs/<time>)")
    run("--resume", action="store_true", help="continue the run in --out, or the newest one")
    run(
        "--replay",
        type=Path,
        metavar="RUN",
        help="repeat the changes that were made to RUN by hand, at their steps",
    )
    run("--no-tensorboard", action="store_true", help="write no event files")
    run(
        "--dry-run",
        action="store_true",
        help="say what would be trained, its memory and its time (three steps are tried); write "
        "nothing",
    )
    arguments = parser.parse_args(argv)
    least_of = {"steps": 1, "checkpoint_steps": 1, "seed": 0, "keep": 1, "loader_threads": 1}
    for name, least in least_of.items():
        value = getattr(arguments, name)
        if value is not None and not least <= value < UINT32_RANGE:
            parser.error(f"--{name.replace('_', '-')}: expected at least {least}, got {value}")
    if not 5 <= arguments.timeout < float("inf"):
        parser.error(f"--timeout: expected at least 5 seconds, got {arguments.timeout:g}")
    if (arguments.new_head or arguments.new_layers) and arguments.init is None:
        parser.error("--new-head and --new-layers: expected --init beside them, got none")
    if arguments.resume and (arguments.init or arguments.replay or arguments.dry_run):
        parser.error("--init, --replay and --dry-run: expected a new run, got --resume")
    return arguments


def changes_of(arguments: argparse.Namespace) -> list[str]:
    """The `field=value` changes of the recipe, aliases under their full names."""
    changes = list(arguments.set)
    for option, field in ALIASES.items():
        value = getattr(arguments, option.removeprefix("--").replace("-", "_"))
        if value is not None:
            changes.append(f"{field}={value}")
    return changes


def with_rates(recipe: Recipe, arguments: argparse.Namespace) -> Recipe:
    """The recipe with what `--freeze` and `--rate` set from its first epoch on.

    Raises:
        UserError: a layer or a rate is none.
    """
    first = []
    for text in arguments.freeze:
        first += [EpochChange(1, layer.strip(), 0.0) for layer in text.split(",") if layer.strip()]
    for text in arguments.rate:
        layer, _, value = text.partition("=")
        try:
            first.append(EpochChange(1, layer.strip(), float(value)))
        except ValueError:
            raise UserError(f"--rate {text}: expected LAYER=RATE such as fc8=0.01") from None
    if not first:
        return recipe
    return dataclasses.replace(recipe, changes=(*first, *recipe.changes))


def choose_num_classes(recipe: Recipe, data: DataSet) -> int:
    """As many classes as the data has, unless the recipe fixes their number."""
    in_data = len(data.wnids)
    if recipe.num_classes is None:
        usual = recipe.fully_connected[-1].num_units
        if in_data != usual:
            print(f"classes: {in_data}, as the data has (recipe {recipe.name}: {usual})")
        return in_data
    if recipe.num_classes < in_data:
        raise UserError(
            f"num_classes {recipe.num_classes}: the data at {data.directory} has {in_data} "
            "classes: expected at least as many, or none to take the data's number"
        )
    if recipe.num_classes > in_data:
        print(f"classes: {recipe.num_classes}, as the recipe fixes (the data has {in_data})")
    return recipe.num_classes


def prepare_run(arguments: argparse.Namespace) -> Run:
    """Checks everything that can be checked before a process starts."""
    keep_large_blocks()  # before the first tensor is read
    told = torchrun()
    if told is not None and arguments.out is None and not arguments.dry_run:
        raise UserError("torchrun: expected --out DIR, the same for all processes, got none")
    if told is not None and told.restarts:
        print(f"torchrun: start number {told.restarts + 1}: continuing the run in {arguments.out}")
        arguments.resume = (arguments.out / run_directory.RUN_FILE).is_file()
    if arguments.resume:
        return _prepare_resumed_run(arguments, told)
    data_dir = arguments.data or DEFAULT_DATA
    if arguments.data is None:
        print(f"data: {data_dir} (no --data given)")
    data = open_data_set(data_dir)
    name = arguments.recipe or data.recipe or DEFAULT_RECIPE
    if arguments.recipe is None:
        why = f"named by the data at {data_dir}" if data.recipe else "no --recipe given"
        print(f"recipe: {name} ({why})")
    recipe = with_rates(with_changes(find_recipe(name), changes_of(arguments)), arguments)
    check_fits_images(recipe, data)
    if data.held_out != "val":
        print(f"validation: on the {data.held_out} images (the data has no val)")
    run_dir = arguments.out or run_directory.new_run_dir()
    if arguments.out is None:
        print(f"out: {run_dir} (no --out given)")
    seed = DEFAULT_SEED if arguments.seed is None else arguments.seed
    if arguments.seed is None:
        print(f"seed: {seed} (no --seed given)")
    num_classes = choose_num_classes(recipe, data)
    if arguments.replay is not None:
        _check_replay(arguments.replay, recipe)
    devices = _devices_of(arguments, recipe, told)
    run = Run(
        recipe=recipe,
        num_classes=num_classes,
        data_dir=data_dir,
        run_dir=run_dir,
        devices=devices,
        numerics=_numerics_of(arguments, {}, devices),
        seed=seed,
        steps=arguments.steps,
        checkpoint_steps=arguments.checkpoint_steps,
        resume_from=None,
        command=run_directory.command_line(),
        keep=arguments.keep or NUM_KEPT,
        loader_threads=arguments.loader_threads,
        init=_beginning_of(arguments, recipe, num_classes, data),
        tensorboard=_wants_tensorboard(arguments),
    )
    check_numerics(run.numerics, run.devices)
    return run


def _check_replay(source: Path, recipe: Recipe) -> None:
    run_directory.read_run_record(source)
    changes = control_log.hand_changes(source, recipe)
    if not changes:
        raise UserError(f"--replay {source}: expected a run that was changed by hand, found none")
    print(f"replay: {len(changes)} changes by hand of {source}, from step {changes[0].step} on")


def _beginning_of(
    arguments: argparse.Namespace, recipe: Recipe, num_classes: int, data: DataSet
) -> Beginning | None:
    path: Path | None = arguments.init
    if path is None:
        return None
    content = load_checkpoint(path)
    new = tuple(layer.strip() for layer in arguments.new_layers.split(",") if layer.strip())
    head = recipe.fully_connected[-1].name
    if arguments.new_head and head not in new:
        new = (*new, head)
    if head not in new:
        try:
            check_fits_classes(path, content, data.wnids, data.directory)
        except UserError as error:
            raise UserError(f"{error}, or draw the last layer anew with --new-head") from None
    unused = check_fits_network(path, content, recipe, num_classes=num_classes, new=new)
    drawn = f"drawn anew: {', '.join(new)}" if new else "no layer is drawn anew"
    print(f"init: {path}, step {content['step']} of recipe {content['recipe']['name']}; {drawn}")
    if unused:
        print(f"init: not used, as recipe {recipe.name} lacks them: {', '.join(unused)}")
    return Beginning(path.resolve(), sha256_of_file(path), new)


def check_fits_images(recipe: Recipe, data: DataSet) -> None:
    """Refuses crops that are larger than the images.

    Raises:
        UserError: they are; both sizes are named.
    """
    if recipe.crop_size > data.image_size:
        raise UserError(
            f"{data.directory}: has images of {data.image_size} pixels, but recipe {recipe.name} "
            f"cuts crops of {recipe.crop_size}: build the shards with --size 256, or change the "
            "crop with --set crop_size=..."
        )


def _numerics_of(
    arguments: argparse.Namespace, recorded: dict[str, Any], devices: Devices
) -> Numerics:
    """What was asked for, else what the run was begun with, else the defaults."""
    # On by default where it is known to cost less than 5 %: on a GPU it was not measured.
    default = Numerics(deterministic=devices.kind == "cpu")
    asked = {
        "precision": arguments.precision,
        "memory_format": arguments.memory_format,
        "compile": arguments.compile,
        "deterministic": arguments.deterministic and arguments.deterministic == "on",
    }
    values = {}
    for name, value in asked.items():
        known = recorded.get(name)
        if value is not None and known is not None and value != known:
            option = name.replace("_", "-")
            given = getattr(arguments, name)
            began = {True: "on", False: "off"}.get(known, known)
            raise UserError(
                f"--{option} {given}: the run in {arguments.out} began with {began}: leave the "
                "option out to continue it"
            )
        values[name] = next(x for x in (value, known, getattr(default, name)) if x is not None)
    return Numerics(**values)


def _prepare_resumed_run(arguments: argparse.Namespace, told: Torchrun | None) -> Run:
    run_dir = arguments.out or run_directory.newest_run(purpose="resume")
    if arguments.out is None:
        print(f"out: {run_dir} (no --out given: the newest run)")
        arguments.out = run_dir
    record = run_directory.read_run_record(run_dir)
    path: Path | None = None
    began: dict[str, Any] = record
    if checkpoints_of(run_dir):
        path, began, passed_over = last_whole_checkpoint(run_dir)
        for line in passed_over:
            print(f"passed over {line}")
    recipe = from_record(began["recipe"])
    changes = changes_of(arguments)
    if arguments.recipe is not None or changes or arguments.freeze or arguments.rate:
        base = find_recipe(arguments.recipe) if arguments.recipe else recipe
        changed = with_changes(base, changes)
        if arguments.recipe:
            changed = with_rates(changed, arguments)
        elif arguments.freeze or arguments.rate:
            raise UserError(
                "--freeze and --rate: expected a new run, got --resume: change a live run with "
                "`python -m replica.control`"
            )
        check_fits_recipe(path or run_dir, began, changed)
        recipe = changed
    if arguments.seed not in (None, began["seed"]):
        raise UserError(
            f"--seed {arguments.seed}: the run in {run_dir} began with seed {began['seed']}: "
            "leave the option out to continue it"
        )
    data_dir = arguments.data or Path(record["data"]["directory"])
    data = open_data_set(data_dir)
    if path is not None:
        check_fits_classes(path, began, data.wnids, data_dir)
    if data.manifest_sha256 != record["data"]["manifest_sha256"]:
        raise UserError(
            f"{data_dir}: is not the data that the run in {run_dir} began with (the manifest "
            "differs): give that with --data"
        )
    if path is not None:
        print(f"resuming {path} at step {began['step']}, epoch {began['epoch']}")
    else:
        print(f"resuming {run_dir} from the beginning: it has no checkpoint yet")
    if told is None:
        _take_over_devices(arguments, record["devices"])
    initialised = record["initialised_from"]
    devices = _devices_of(arguments, recipe, told)
    run = Run(
        recipe=recipe,
        num_classes=began["num_classes"],
        data_dir=data_dir,
        run_dir=run_dir,
        devices=devices,
        numerics=_numerics_of(arguments, record["numerics"], devices),
        seed=began["seed"],
        steps=arguments.steps,
        checkpoint_steps=arguments.checkpoint_steps or record["checkpoint_steps"],
        resume_from=path,
        command=run_directory.command_line(),
        is_resumed=True,
        keep=arguments.keep or record["keep"],
        loader_threads=arguments.loader_threads,
        init=initialised
        and Beginning(
            Path(initialised["checkpoint"]),
            initialised["sha256"],
            tuple(initialised["new_layers"]),
        ),
        tensorboard=_wants_tensorboard(arguments),
    )
    if path is None and run.init is not None and sha256_of_file(run.init.path) != run.init.sha256:
        raise UserError(f"{run.init.path}: is not the file that the run in {run_dir} began with")
    check_numerics(run.numerics, run.devices)
    return run


def _take_over_devices(arguments: argparse.Namespace, recorded: dict[str, Any]) -> None:
    """Places a resumed run as it was, where nothing else is asked for: only so is it bit-equal."""
    if arguments.device == "auto" and recorded["kind"] == "cpu":
        arguments.device = "cpu"
    if arguments.gpus is None:
        arguments.gpus = recorded["num_processes"]
        if arguments.split is None and arguments.gpus > 1:
            arguments.split = recorded["split"]
        print(f"devices: as many as the run began with, {arguments.gpus} (no --gpus given)")


def say_operators(say: Callable[[str], None] = print) -> None:
    """Says so in one line where the operators run in plain PyTorch.

    Raises:
        UserError: REPLICA_EXT has an unknown value.
    """
    try:
        state = cuda_ext.compiled_state()
    except ValueError as error:
        raise UserError(str(error)) from None
    if not state.is_live:
        say(f"operators: plain PyTorch, several times slower than compiled ({state.reason})")


def _wants_tensorboard(arguments: argparse.Namespace) -> bool:
    if arguments.no_tensorboard:
        return False
    problem = board_problem()
    if problem:
        print(f"tensorboard: no event files ({problem})")
    return problem is None


def _devices_of(arguments: argparse.Namespace, recipe: Recipe, told: Torchrun | None) -> Devices:
    present = torch.cuda.device_count() if torch.cuda.is_available() else 0
    gpus = arguments.gpus
    if told is not None:
        if gpus not in (None, told.num_processes):
            raise UserError(
                f"--gpus {gpus}: torchrun started {told.num_processes} processes: leave the option "
                "out"
            )
        if 0 < present < told.local_processes and arguments.device != "cpu":
            raise UserError(
                f"torchrun: started {told.local_processes} processes on a machine with {present} "
                "GPUs: use --nproc-per-node, or --device cpu"
            )
        gpus = told.num_processes
        present = told.num_processes if present else 0
    devices = choose_devices(
        gpus=gpus,
        num_gpus_present=present,
        split=arguments.split,
        device=arguments.device,
        towers=recipe.towers,
    )
    for note in devices.notes:
        print(note)
    say_operators()
    print(f"memory: {keep_large_blocks().reason}")
    return devices


def how_to_continue(run: Run) -> str:
    """The command that continues a run."""
    return shlex.join(["python", "-m", "replica.train", "--resume", "--out", str(run.run_dir)])
