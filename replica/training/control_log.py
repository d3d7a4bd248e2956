"""Changes by hand: requests to a live run, and the log of what was asked of it.

A request is a file in the run's directory `requests/`; the run reads it at its next step, logs it
in `control.jsonl` with the first step that it acts on, and sends it to all ranks. The log is what
a resumed run and `--replay` read.
"""

import json
import os
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from data_prep.errors import UserError, command_for
from data_prep.files import read_plain_file, write_whole
from data_prep.manifest_json import strict_json
from data_prep.progress import write_line
from replica.recipes import Recipe
from replica.recipes.recipe import layer_names, layer_of, target_problem
from replica.training.run_directory import LOG_FILE, is_live
from replica.training.run_record import MAX_RECORD_BYTES, read_fields, read_run_record
from replica.training.schedule import HandChange

REQUESTS_DIR = "requests"
MAX_REQUEST_BYTES = 1 << 20  # a reason may be long
# What was passed over and cannot be removed is named once, not at every step.
_STAYED: set[Path] = set()
ACTIONS = ("checkpoint", "stop")
# How often a waiting command looks into the log, and what it grants a run that is reading now.
LOOK_SECONDS = 0.1
READING_SECONDS = 5.0


@dataclass(frozen=True)
class Request:
    """What somebody wants of a run, and the line of the log that it becomes.

    Attributes:
        name: of the file, and of the line.
        changes: target -> value, as in `EpochChange`.
        actions: of `ACTIONS`.
        reason: for the log.
        step, epoch: the first step that it acts on, once it is logged, and its epoch, from 1.
        replayed_from: the run whose log it was copied from.
    """

    name: str
    changes: dict[str, float]
    actions: list[str]
    reason: str
    step: int = 0
    epoch: int | None = None
    replayed_from: str | None = None

    def __str__(self) -> str:
        changes = [f"{target}={value:g}" for target, value in self.changes.items()]
        return ", ".join([*changes, *self.actions])


def _request_of(text: bytes, **known: object) -> Request:
    """A request, or a line of the log, of its JSON and of what is known of it otherwise.

    Raises:
        ValueError: it is none.
    """
    content = strict_json(text)
    if isinstance(content, dict):
        content = {"actions": [], "reason": "", **content, **known}
    request = read_fields(Request, content)
    texts: list[Any] = [request.name, request.reason, request.replayed_from or ""]
    counts: list[Any] = [request.step, request.epoch or 0]
    if not isinstance(request.changes, dict) or not isinstance(request.actions, list):
        raise ValueError("expected an object of changes and a list of actions")
    if not all(isinstance(x, str) for x in (*texts, *request.actions)):
        raise ValueError("expected texts as name, reason and actions")
    if not all(type(x) is int and x >= 0 for x in counts):
        raise ValueError("expected integers as step and epoch")
    if not all(type(x) in (int, float) for x in request.changes.values()):
        raise ValueError("expected numbers as changes")
    return replace(request, changes={k: float(v) for k, v in request.changes.items()})


def _problems(changes: dict[str, float], recipe: Recipe) -> list[str]:
    """Why targets cannot be set to these values."""
    problems = [target_problem(recipe, target, value) for target, value in changes.items()]
    return [problem for problem in problems if problem]


# --- Whoever asks


def send_request(
    run_dir: Path,
    changes: dict[str, float],
    actions: list[str],
    *,
    reason: str,
    wait_seconds: float,
) -> Request:
    """Leaves a request and waits until the run has logged it.

    Raises:
        UserError: it asks for nothing or for what the recipe does not have, no run is alive there,
            or the run does not read it in time; then nothing is left behind.
    """
    record = read_run_record(run_dir)
    if problems := _problems(changes, record.recipe):
        raise UserError("; ".join(problems))
    layers = layer_names(record.recipe)
    if record.model_file is not None and {layer_of(x) for x in changes} & {*layers}:
        raise UserError(
            f"{run_dir}: has the network of a file, {record.model_file}: expected no layer of a "
            f"recipe, got {', '.join(changes)}"
        )
    if not changes and not actions:
        raise UserError(
            "expected something to change: --lr, --bias-lr, --rate, --freeze, --color-noise, "
            "--checkpoint or --stop"
        )
    if not is_live(run_dir):
        raise UserError(
            f"{run_dir}: no run is alive there: start it with `{command_for('replica.train')} "
            f"--resume --out {run_dir}`, or begin it with other values (--set)"
        )
    path = run_dir / REQUESTS_DIR / f"{time.time_ns()}-{os.getpid()}.json"
    path.parent.mkdir(exist_ok=True)
    content = {"changes": changes, "actions": actions, "reason": reason}
    write_whole(path, json.dumps(content).encode())
    deadline = time.monotonic() + wait_seconds
    while True:
        for line in read_log(run_dir):
            if line.name == path.name:
                return line
        if time.monotonic() > deadline or not is_live(run_dir):
            # Who removes the file decides: the run may be reading it now.
            try:
                path.unlink()
            except FileNotFoundError:
                deadline += READING_SECONDS
                if is_live(run_dir):
                    continue
            raise UserError(
                f"{run_dir}: the run has not read the request: nothing is changed: look whether "
                "it makes steps, or give it more time with --wait"
            )
        time.sleep(LOOK_SECONDS)


# --- The run


def pending_requests(run_dir: Path, recipe: Recipe) -> list[Request]:
    """The requests that are there, oldest first; what is none is named and, if it can be, removed.

    Whatever has a request's name, a directory or a pipe, neither ends the run nor holds it up.
    """
    requests = []
    for path in sorted((run_dir / REQUESTS_DIR).glob("*.json")):
        try:
            text = read_plain_file(path, at_most=MAX_REQUEST_BYTES)
            request = _request_of(text, name=path.name, step=0, epoch=None, replayed_from=None)
            problems = _problems(request.changes, recipe)
        except (ValueError, OverflowError) as error:
            problems = [f"expected a request of replica.control ({error})"]
        if problems:
            _pass_over(path, problems[0])
        else:
            actions = [action for action in request.actions if action in ACTIONS]
            requests.append(replace(request, actions=actions))
    return requests


def _pass_over(path: Path, problem: str) -> None:
    if path not in _STAYED:
        write_line(f"passed over {path}: {problem}")
        try:
            path.unlink(missing_ok=True)
        except OSError:
            _STAYED.add(path)


def log_requests(run_dir: Path, requests: list[Request], *, step: int, epoch: int) -> None:
    """Writes requests into the log, to the disk, and then removes their files.

    A run that is killed in between finds them again when it is resumed, and knows them by name.
    """
    lines = read_log(run_dir)
    known = {line.name for line in lines}
    new = [request for request in requests if request.name not in known]
    _write_log(run_dir, lines + [replace(request, step=step, epoch=epoch) for request in new])
    for request in requests:
        (run_dir / REQUESTS_DIR / request.name).unlink(missing_ok=True)


# --- The log


def _write_log(run_dir: Path, lines: list[Request]) -> None:
    contents = ({k: v for k, v in vars(line).items() if v is not None} for line in lines)
    text = "".join(json.dumps(content) + "\n" for content in contents)
    write_whole(run_dir / LOG_FILE, text.encode())


def read_log(run_dir: Path) -> list[Request]:
    """The lines of a run's log; an empty list where nothing was changed by hand.

    Raises:
        UserError: a line is no request.
    """
    path = run_dir / LOG_FILE
    if not path.exists():
        return []
    lines = []
    for number, text in enumerate(read_plain_file(path, at_most=MAX_RECORD_BYTES).splitlines(), 1):
        try:
            line = _request_of(text)
            if line.step < 1:
                raise ValueError("it lacks a step from 1 on")
            lines.append(line)
        except (ValueError, OverflowError) as error:
            raise UserError(
                f"{path}: line {number}: expected a change with name, step and changes, got "
                f"{text[:60]!r} ({error}): mend or remove the line"
            ) from None
    return lines


def hand_changes(run_dir: Path, recipe: Recipe) -> list[HandChange]:
    """What was set by hand in a run; refuses what the recipe does not have.

    Raises:
        UserError: the log is damaged, or names what the recipe does not have.
    """
    lines = read_log(run_dir)
    for line in lines:
        for problem in _problems(line.changes, recipe):
            raise UserError(f"{run_dir / LOG_FILE}: step {line.step}: {problem}")
    return [HandChange(line.step, *change) for line in lines for change in line.changes.items()]


def copy_log(source: Path, run_dir: Path, recipe: Recipe) -> None:
    """Makes the changes of another run those of a new one (`--replay`).

    Actions are not repeated: they change no result.
    """
    hand_changes(source, recipe)
    lines = [line for line in read_log(source) if line.changes]
    _write_log(run_dir, [replace(x, actions=[], replayed_from=str(source)) for x in lines])
