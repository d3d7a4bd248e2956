"""Tries values of a recipe's fields: `python -m replica.sweep --help`."""

if __name__ == "__main__":  # before the imports that it is about
    from data_prep import require_environment

    require_environment(__name__, "torch")

import argparse
import sys

from data_prep.arguments import (
    MOST_PROCESSES,
    MOST_SEED,
    nonempty_name,
    nonempty_path,
    whole_number,
)
from data_prep.errors import OneLineParser, UserError, command_for, print_line, run_command
from data_prep.files import check_can_write
from data_prep.progress import write_line
from data_prep.shards import open_data_set
from replica.recipes import ALIASES, find_recipe, with_changes
from replica.results.class_figures import classes_figure
from replica.results.details import as_text
from replica.results.style import save
from replica.sweeps.outcome import (
    BEST_FILE,
    RESULTS_FILE,
    best_of,
    best_record,
    rows_of,
    show_trials,
    told,
    write_results,
)
from replica.sweeps.pictures import curves_figure
from replica.sweeps.queue import AGAIN, held, open_study, run_trials
from replica.sweeps.space import MOST_TRIALS, check_space, grid_size, read_space
from replica.sweeps.study import PRUNERS, RUNNING, SAMPLERS, SQLITE, Study, require_optuna
from replica.sweeps.trials import Sweep
from replica.train import parse_arguments as train_arguments
from replica.training.numerics import PRECISIONS, Numerics
from replica.training.options import DEFAULT_SEED, say_nothing
from replica.training.run import prepare_run
from replica.training.run_directory import can_write_events

PROGRAM = "replica.sweep"
STORAGE_FILE = "optuna.log"
CURVES_FILE, LABELS_FILE = "curves.png", "labels.png"


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = OneLineParser(
        prog=command_for(PROGRAM),
        description="Trains a recipe with each choice of values of some fields, and chooses the "
        "one with the lowest validation error. It may be interrupted, and the same command goes "
        "on; several processes of the same command share the work.",
    )
    add = parser.add_argument
    add("--data", type=nonempty_path, metavar="DIR", required=True, help="shards, with a val part")
    add("--recipe", type=nonempty_name, metavar="NAME", required=True, help="what is trained")
    add(
        "--grid",
        nargs="+",
        required=True,
        metavar="FIELD=VALUES",
        help="what is varied: fields that --set of replica.train takes, or its short options, such "
        "as lr=0.001,0.01 momentum=0.9,0.5 (values of a field that is a list: drop_epochs=5,8;7); "
        "for --sampler random and tpe also ranges such as lr=1e-4..1e-2:log",
    )
    add(
        "--sampler",
        choices=SAMPLERS,
        default=SAMPLERS[0],
        help="Optuna's: all combinations, random ones, or ones near the better trials so far "
        "(default: %(default)s)",
    )
    add(
        "--trials",
        type=whole_number(1, MOST_TRIALS),
        metavar="N",
        help="how many, for --sampler random and tpe; more of them continue a finished sweep",
    )
    add(
        "--pruner",
        choices=PRUNERS,
        default=PRUNERS[0],
        help="Optuna's: median ends a trial whose best validation error so far is above the median "
        "of the earlier trials at the same epoch (default: %(default)s)",
    )
    add(
        "--set",
        dest="changes",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="change a field of the recipe in all trials",
    )
    add("--epochs", metavar="N", help="the same as --set epochs=N")
    add(
        "--seed",
        type=whole_number(0, MOST_SEED),
        metavar="S",
        help=f"of every run, and of the order of the trials (default: {DEFAULT_SEED})",
    )
    add(
        "--out",
        type=nonempty_path,
        metavar="DIR",
        required=True,
        help="the sweep's directory: a run for each trial, results.csv, best.json, pictures",
    )
    add(
        "--storage",
        type=nonempty_path,
        metavar="FILE",
        help=f"Optuna's record: SQLite where it ends in {', '.join(SQLITE)}, else a journal "
        f"(default: {STORAGE_FILE} in --out)",
    )
    add("--gpus", type=whole_number(1, MOST_PROCESSES), metavar="N", help="devices of each run")
    add(
        "--split",
        type=int,
        choices=(1, 2),
        help="devices that one network is cut over (default: as of replica.train)",
    )
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: %(default)s")
    add("--precision", choices=PRECISIONS, help=f"default: {Numerics.precision}")
    add("--no-tensorboard", dest="tensorboard", action="store_false", help="write no event files")
    return parser.parse_args(argv)


def checked_sweep(arguments: argparse.Namespace) -> Sweep:
    """The sweep that was asked for, after everything that can be checked before a trial.

    Raises:
        UserError: a field, a value or another option is wrong.
    """
    require_optuna()
    base = find_recipe(arguments.recipe)
    fixed = [*arguments.changes]
    if arguments.epochs is not None:
        fixed.append(f"{ALIASES['--epochs']}={arguments.epochs}")
    recipe = with_changes(base, fixed)
    space = read_space(arguments.grid, recipe, fixed)
    num_trials = arguments.trials
    if arguments.sampler == "grid":
        if num_trials is not None:
            raise UserError(
                f"--trials {num_trials}: expected --sampler random or tpe beside it: a grid has as "
                "many as it has combinations"
            )
        num_trials = grid_size(space)
    elif num_trials is None:
        raise UserError(f"--sampler {arguments.sampler}: expected --trials N beside it, got none")
    data = open_data_set(arguments.data)
    if not len(data.val):
        raise UserError(
            f"--data {data.directory}: expected a val part to choose by, as the test part must not "
            "be chosen by: build the shards with --val-fraction or --per-class"
        )
    devices = ["--device", arguments.device]
    if arguments.gpus:
        devices += ["--gpus", str(arguments.gpus)]
    if arguments.split:
        devices += ["--split", str(arguments.split)]
    sweep = Sweep(
        data=data,
        recipe=arguments.recipe,
        fixed=fixed,
        space=space,
        sampler=arguments.sampler,
        pruner=arguments.pruner,
        seed=DEFAULT_SEED if arguments.seed is None else arguments.seed,
        num_trials=num_trials,
        precision=arguments.precision,
        devices=devices,
        tensorboard=arguments.tensorboard,
        out=arguments.out,
        storage=arguments.storage or arguments.out / STORAGE_FILE,
    )
    if arguments.storage is not None:
        check_can_write(sweep.storage, f"--storage {sweep.storage}")

    def prepare(changes: list[str]) -> None:
        values = dict(change.split("=", 1) for change in changes)
        options = train_arguments([*sweep.train_options(values), "--no-tensorboard"])
        prepare_run(options, None, say=say_nothing)

    prepare([])  # what is wrong with all trials is said of no value
    check_space(space, recipe, prepare=prepare)
    return sweep


def say_plan(sweep: Sweep, *, seed_is_given: bool) -> None:
    """Says what will run, and what was chosen by default."""
    if not seed_is_given:
        print_line(f"seed: {sweep.seed} (no --seed given)")
    images = sweep.num_trials * sweep.num_images(None)
    print_line(
        f"sweep: {sweep.num_trials} trials in {sweep.out}, {images:,} training images in all; "
        f"{AGAIN} if it is interrupted, and more processes of it share the work"
    )
    if sweep.tensorboard:
        can_write_events(sweep.out, print_line)


def sweep(arguments: argparse.Namespace) -> None:
    """Runs what is missing, and shows what came of it."""
    asked = checked_sweep(arguments)
    study = open_study(asked)
    say_plan(asked, seed_is_given=arguments.seed is not None)
    lines = run_trials(asked, study)
    unfinished = [trial.number for trial in study.trials() if trial.state == RUNNING]
    failed = [lines[number] for number in unfinished if number in lines]
    left = len(unfinished) - len(failed)
    if left:
        write_line(f"trials that other processes run: {left}; the last of them finishes the sweep")
    else:
        with held(asked):
            show(asked, study, device=arguments.device)
    if failed:
        raise RuntimeError(f"{len(failed)} trials failed; {AGAIN} with them: {failed[0]}")


def show(asked: Sweep, study: Study, *, device: str) -> None:
    """Writes the results, tests the best trial, draws, and prints."""
    trials = show_trials(asked, study.trials())
    rows = rows_of(asked, trials)
    write_results(asked, rows)
    best = best_of(trials)
    record = None if best is None else best_record(asked, best, device=device, say=print_line)
    for line in as_text(rows).split("\n"):
        print_line(line)
    if best is None or record is None:
        raise RuntimeError(f"no trial was finished, so there is no best one: see {asked.out}")
    for line in told(record):
        print_line(line)
    written = [RESULTS_FILE, BEST_FILE]
    try:
        save(curves_figure(trials, best), asked.out / CURVES_FILE)
        title = f"{best.trial.name} on the {record['labels_of']} images"
        save(classes_figure(record["labels"], title=title), asked.out / LABELS_FILE)
        written += [CURVES_FILE, LABELS_FILE]
    except UserError as error:
        print_line(f"no pictures: {error}")
    print_line(f"wrote {', '.join(str(asked.out / name) for name in written)}")


def main(argv: list[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    return run_command(
        PROGRAM,
        lambda: sweep(parse_arguments(argv)),
        when_interrupted=f"interrupted; {AGAIN}",
    )


if __name__ == "__main__":
    sys.exit(main())
