"""Changes a live run by hand, as in 2012: `python -m replica.control --help`.

A request is a file in the run's directory `requests/`; the run reads it at its next step, logs it
in `control.jsonl` with the first step that it acts on, and tells all of its processes. The log is
what a resumed run and `--replay` read.
"""

import argparse
import fcntl
import json
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep.shards import UserError, write_whole
from replica import runlog
from replica.command_line import OneLineParser
from replica.recipes import Recipe, from_record
from replica.recipes.recipe import target_problem
from replica.schedule import HandChange

REQUESTS_DIR = "requests"
LOG_FILE = "control.jsonl"
ACTIONS = ("checkpoint", "stop")
DEFAULT_WAIT_SECONDS = 120.0


@dataclass(frozen=True)
class Request:
    """What somebody wants of a run.

    Attributes:
        name: of the file, and of the line in the log.
        changes: target -> value, as in `EpochChange`.
        actions: of `ACTIONS`.
        reason: for the log.
    """

    name: str
    changes: dict[str, float]
    actions: list[str]
    reason: str


# --- In the run


def pending_requests(run_dir: Path, recipe: Recipe) -> list[Request]:
    """The requests that are there, oldest first; one that cannot be read is named and removed."""
    directory = run_dir / REQUESTS_DIR
    try:
        names = sorted(name for name in os.listdir(directory) if name.endswith(".json"))
    except FileNotFoundError:
        return []
    requests = []
    for name in names:
        path = directory / name
        try:
            content = json.loads(path.read_bytes())
            request = Request(
                name,
                {str(target): float(value) for target, value in content["changes"].items()},
                [action for action in content["actions"] if action in ACTIONS],
                str(content["reason"]),
            )
            problems = [target_problem(recipe, *change) for change in request.changes.items()]
            problem = next((p for p in problems if p), None)
        except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
            problem = f"expected a request of replica.control ({type(error).__name__})"
        if problem:
            print(f"passed over {path}: {problem}", file=sys.stderr)
            path.unlink(missing_ok=True)
        else:
            requests.append(request)
    return requests


def log_requests(run_dir: Path, requests: list[Request], *, step: int, epoch: int) -> None:
    """Writes requests into the log, to the disk, and then removes their files.

    A run that is killed in between finds them again when it is resumed, and knows them by name.

    Args:
        run_dir: of the run.
        requests: what was read.
        step, epoch: the first step that they act on, and its epoch, counted from 1.
    """
    lines = read_log(run_dir)
    known = {line["name"] for line in lines}
    lines += [
        {
            "name": request.name,
            "step": step,
            "epoch": epoch,
            "changes": request.changes,
            "actions": request.actions,
            "reason": request.reason,
        }
        for request in requests
        if request.name not in known
    ]
    _write_log(run_dir, lines)
    for request in requests:
        (run_dir / REQUESTS_DIR / request.name).unlink(missing_ok=True)


# --- The log


def _write_log(run_dir: Path, lines: list[dict[str, Any]]) -> None:
    text = "".join(json.dumps(line) + "\n" for line in lines)
    write_whole(run_dir / LOG_FILE, text.encode())


def read_log(run_dir: Path) -> list[dict[str, Any]]:
    """The lines of a run's log; an empty list where nothing was changed by hand.

    Raises:
        UserError: a line is none of ours.
    """
    path = run_dir / LOG_FILE
    if not path.exists():
        return []
    lines = []
    for number, text in enumerate(path.read_text().splitlines(), 1):
        try:
            line = json.loads(text)
            HandChange(int(line["step"]), "", 0.0)
            lines.append({**line, "changes": dict(line["changes"]), "name": str(line["name"])})
        except (ValueError, KeyError, TypeError):
            raise UserError(
                f"{path}: line {number}: expected a change with name, step and changes, got "
                f"{text[:60]!r}: mend or remove the line"
            ) from None
    return lines


def hand_changes(run_dir: Path, recipe: Recipe) -> list[HandChange]:
    """What was set by hand in a run.

    Raises:
        UserError: the log is damaged, or names what the recipe does not have.
    """
    changes = []
    for line in read_log(run_dir):
        for target, value in line["changes"].items():
            problem = target_problem(recipe, target, value)
            if problem:
                raise UserError(f"{run_dir / LOG_FILE}: step {line['step']}: {problem}")
            changes.append(HandChange(int(line["step"]), target, float(value)))
    return changes


def copy_log(source: Path, run_dir: Path, recipe: Recipe) -> int:
    """Makes the changes of another run those of a new one (`--replay`); returns their number.

    Actions are not repeated: they change no result.
    """
    hand_changes(source, recipe)
    lines = [
        {**line, "actions": [], "replayed_from": str(source)}
        for line in read_log(source)
        if line["changes"]
    ]
    _write_log(run_dir, lines)
    return sum(len(line["changes"]) for line in lines)


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
    try:
        with (run_dir / runlog.LOCK_FILE).open("r") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


def send(arguments: argparse.Namespace) -> str:
    """Leaves the request, waits until the run has read it, and returns what came of it."""
    run_dir: Path = arguments.run
    recipe = from_record(runlog.read_run_record(run_dir)["recipe"])
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
