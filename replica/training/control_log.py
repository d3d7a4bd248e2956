"""Changes by hand, as the run sees them: it reads requests, logs them, and tells its processes.

A request is a file in the run's directory `requests/`; the run reads it at its next step, logs it
in `control.jsonl` with the first step that it acts on, and tells all of its processes. The log is
what a resumed run and `--replay` read.
"""

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep.errors import UserError
from data_prep.files import write_whole
from replica.recipes import Recipe
from replica.recipes.recipe import target_problem
from replica.training.schedule import HandChange

REQUESTS_DIR = "requests"
LOG_FILE = "control.jsonl"
ACTIONS = ("checkpoint", "stop")


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
