"""Trains a network: `python -m replica.train --help`."""

if __name__ == "__main__":  # before the imports that it is about
    from data_prep import require_environment

    require_environment(__name__, "torch")

import os
import sys
import threading
from contextlib import redirect_stdout
from pathlib import Path

from tqdm import tqdm

from data_prep.errors import UserError
from replica.distributed.launch import (
    EXIT_FAILURE,
    EXIT_USER_ERROR,
    Torchrun,
    run_as_told,
    run_processes,
    torchrun,
)
from replica.distributed.mesh import Rank
from replica.training import control_log, run_directory
from replica.training.dry_run import dry_run
from replica.training.loop import run_rank, train_step_
from replica.training.options import parse_arguments, prepare_run
from replica.training.state import Run

# A lock within one process is all that our bars need; tqdm's own is a semaphore of the system.
tqdm.set_lock(threading.RLock())


# --- The steps


# --- A run


# --- The command


def main(argv: list[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    arguments = parse_arguments(argv)
    told = torchrun()
    try:
        with Path(os.devnull).open("w") as nowhere:
            # Of many processes with the same arguments one says what it found.
            is_silent = told is not None and told.rank != 0
            with redirect_stdout(nowhere if is_silent else sys.stdout):
                run = prepare_run(arguments)
        if arguments.dry_run:
            if told is None or told.rank == 0:
                print(dry_run(run, train_step_))
            return 0
        sys.stdout.flush()
        if told is not None and told.num_processes > 1:
            return _run_under_torchrun(run, told, arguments.timeout, arguments.replay)
        with run_directory.locked_run(run.run_dir, resume=run.is_resumed or _is_restarted(told)):
            _prepare_log_of_changes(run, arguments.replay)
            return run_processes(run_rank, run, run.devices, timeout=arguments.timeout)
    except UserError as error:
        if told is None or told.rank == 0:
            print(f"replica.train: {error}", file=sys.stderr)
        return EXIT_USER_ERROR
    except OSError as error:
        print(
            f"replica.train: {error.filename}: {error.strerror}: make room or mend it, then "
            "continue with --resume",
            file=sys.stderr,
        )
        return EXIT_USER_ERROR
    except RuntimeError as error:
        print(f"replica.train: {error}", file=sys.stderr)
        return EXIT_FAILURE
    except KeyboardInterrupt:
        print("replica.train: stopped at once; the last checkpoint is kept", file=sys.stderr)
        return 130


def _run_under_torchrun(run: Run, told: Torchrun, timeout: float, replay: Path | None) -> int:
    rank = Rank(told.rank, run.devices, told.local_rank)
    if told.rank != 0:
        return run_as_told(run_rank, run, rank, timeout=timeout)
    with run_directory.locked_run(run.run_dir, resume=run.is_resumed or _is_restarted(told)):
        _prepare_log_of_changes(run, replay)
        return run_as_told(run_rank, run, rank, timeout=timeout)


def _is_restarted(told: Torchrun | None) -> bool:
    """Whether torchrun started this run before, perhaps not for long enough to leave a record."""
    return told is not None and told.restarts > 0


def _prepare_log_of_changes(run: Run, replay: Path | None) -> None:
    if replay is not None and not run.is_resumed:
        control_log.copy_log(replay, run.run_dir, run.recipe)


if __name__ == "__main__":
    sys.exit(main())
