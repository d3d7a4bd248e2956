"""Changes a live run by hand, as in 2012: `python -m replica.control --help`."""

if __name__ == "__main__":  # before the imports that it is about
    from data_prep import require_environment

    require_environment(__name__, "torch")

import argparse
import json
import os
import sys
import time
from pathlib import Path

from data_prep.errors import OneLineParser, UserError
from data_prep.files import locked, write_whole
from replica.recipes import from_record
from replica.recipes.recipe import target_problem
from replica.training import run_directory
from replica.training.control_log import ACTIONS, REQUESTS_DIR, read_log

DEFAULT_WAIT_SECONDS = 120.0


# --- In the run


# --- The log


# --- The command


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = OneLineParser(
        prog="python -m replica.control",
        description="Changes a live run: the request acts on its next step, on all processes, and "
        "is logged in control.jsonl with the step and the reason.",
    )
    add = parser.add_argument
    add("run", type=Path, metavar="RUN", help="the run's directory")
    add("--lr", type=float, metavar="RATE", help="learning rate of all layers but frozen ones")
    add("--bias-lr", type=float, metavar="RATE", help="learning rate of all biases")
    add(
        "--rate",
        action="append",
        default=[],
        metavar="LAYER=RATE",
        help="learning rate of one layer (conv1) or one of its tensors (conv1.bias)",
    )
    add(
        "--freeze",
        action="append",
        default=[],
        metavar="LAYERS",
        help="the same as a rate of 0: the layers, and their velocities, stay as they are",
    )
    add("--color-noise", metavar="off|SD", help="standard deviation of the alphas; off is 0")
    add("--checkpoint", action="store_true", help="save after the next step")
    add("--stop", action="store_true", help="save after the next step, and end")
    add("--reason", default="", metavar="TEXT", help="for the log")
    add(
        "--wait",
        type=float,
        default=DEFAULT_WAIT_SECONDS,
        metavar="SECONDS",
        help="for the run to read the request (default: %(default)g)",
    )
    return parser.parse_args(argv)


def changes_of(arguments: argparse.Namespace) -> dict[str, float]:
    """Target -> value, in the order in which the targets act.

    Raises:
        UserError: a value is no number, or a target is named twice.
    """
    pairs: list[tuple[str, float]] = []
    if arguments.lr is not None:
        pairs.append(("learning_rate", arguments.lr))
    if arguments.bias_lr is not None:
        pairs.append(("bias_learning_rate", arguments.bias_lr))
    for text in arguments.rate:
        target, _, value = text.partition("=")
        try:
            pairs.append((target, float(value)))
        except ValueError:
            raise UserError(f"--rate {text}: expected LAYER=RATE such as conv1=0.0001") from None
    for text in arguments.freeze:
        pairs += [(layer.strip(), 0.0) for layer in text.split(",") if layer.strip()]
    if arguments.color_noise is not None:
        try:
            value = 0.0 if arguments.color_noise == "off" else float(arguments.color_noise)
        except ValueError:
            raise UserError(
                f"--color-noise {arguments.color_noise}: expected off, or a number such as 0.1"
            ) from None
        pairs.append(("color_noise", value))
    twice = {target for target, _ in pairs if [t for t, _ in pairs].count(target) > 1}
    if twice:
        raise UserError(f"{', '.join(sorted(twice))}: expected one value each, got two")
    return dict(pairs)


def is_live(run_dir: Path) -> bool:
    """Whether a process holds the run's lock."""
    lock = run_dir / run_directory.LOCK_FILE
    if not lock.exists():
        return False
    try:
        with locked(lock, title=str(run_dir), when_held="is live"):
            return False
    except UserError:
        return True


def send(arguments: argparse.Namespace) -> str:
    """Leaves the request, waits until the run has read it, and returns what came of it."""
    run_dir: Path = arguments.run
    recipe = from_record(run_directory.read_run_record(run_dir)["recipe"])
    changes = changes_of(arguments)
    problems = [target_problem(recipe, target, value) for target, value in changes.items()]
    if any(problems):
        raise UserError("; ".join(problem for problem in problems if problem))
    actions = [action for action in ACTIONS if getattr(arguments, action)]
    if not changes and not actions:
        raise UserError(
            "expected something to change: --lr, --bias-lr, --rate, --freeze, --color-noise, "
            "--checkpoint or --stop"
        )
    if not is_live(run_dir):
        raise UserError(
            f"{run_dir}: no run is alive there: start it with `python -m replica.train --resume "
            f"--out {run_dir}`, or begin it with other values (--set)"
        )
    name = f"{time.time_ns()}-{os.getpid()}.json"
    path = run_dir / REQUESTS_DIR / name
    path.parent.mkdir(exist_ok=True)
    content = {"changes": changes, "actions": actions, "reason": arguments.reason}
    write_whole(path, json.dumps(content).encode())
    deadline = time.monotonic() + arguments.wait
    while True:
        line = next((line for line in read_log(run_dir) if line["name"] == name), None)
        if line is not None:
            what = [f"{target}={value:g}" for target, value in changes.items()] + actions
            return f"{', '.join(what)}: from step {line['step']}, epoch {line['epoch']}"
        if time.monotonic() > deadline or not is_live(run_dir):
            # Who removes the file decides: the run may be reading it now.
            try:
                path.unlink()
            except FileNotFoundError:
                deadline += 5.0
                if is_live(run_dir):
                    continue
            raise UserError(
                f"{run_dir}: the run has not read the request: nothing is changed: look whether "
                "it makes steps, or give it more time with --wait"
            )
        time.sleep(0.1)


def main(argv: list[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    try:
        print(send(parse_arguments(argv)))
    except UserError as error:
        print(f"replica.control: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("replica.control: interrupted; the request may still act", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
