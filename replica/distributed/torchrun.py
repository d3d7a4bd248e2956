"""Ranks that `torchrun` starts, on one machine or several, and restarts with --max-restarts."""

import os
import sys
import threading
from dataclasses import dataclass
from typing import Any, NoReturn

import torch.distributed as dist

from data_prep.errors import EXIT_FAILURE, EXIT_USER_ERROR, UserError, run_command
from data_prep.parent import end_with_parent
from replica.distributed.mesh import Rank
from replica.distributed.worker import (
    WAY_OUT,
    Worker,
    end_process,
    in_group,
    status_of,
    stop_on_signals,
)


@dataclass(frozen=True)
class Torchrun:
    """What `torchrun` passes a process: of the run over all machines, its machine, and restarts."""

    rank: int
    num_processes: int
    local_rank: int
    local_processes: int
    restarts: int


def torchrun_here() -> Torchrun | None:
    """What `torchrun` says, or None where it did not start this process."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return None
    local = ("LOCAL_RANK", "LOCAL_WORLD_SIZE", "TORCHELASTIC_RESTART_COUNT")
    return Torchrun(*(int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", *local)))


def run_under_torchrun(
    program: str, worker: Worker, rank: Rank, argument: Any, *, timeout: float
) -> NoReturn:
    """Runs this process's part of a run that `torchrun` started, and ends with its exit status.

    That is 0, 130, 143 or 129 as of `run_processes`, 1 after a failure, 2 after a user's mistake.
    """
    end_with_parent()
    stop = threading.Event()
    opened: list[dist.Store] = []

    def open_store() -> dist.Store:
        host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        # Where torchrun's own process does not keep the store, that of rank 0 does.
        is_here = rank.index == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
        is_master = is_here and not opened
        opened.append(dist.TCPStore(host, port, is_master=is_master, wait_for_workers=False))
        attempt = os.environ["TORCHELASTIC_RESTART_COUNT"]
        return dist.PrefixStore(f"replica {attempt}", opened[-1])

    def on_hung(line: str) -> NoReturn:
        print(f"{program}: {line}", file=sys.stderr)
        end_process(EXIT_FAILURE)

    def command() -> int:
        try:
            with in_group(rank, open_store=open_store, timeout=timeout, on_hung=on_hung):
                worker(rank, argument, stop)
        except (UserError, OSError):
            # Every process meets a user's mistake; one line is enough.
            if rank.index == 0:
                raise
            return EXIT_USER_ERROR
        except KeyboardInterrupt:
            pass  # the second signal: the first one says with which status
        return status_of(received)

    with stop_on_signals(stop) as received:
        end_process(run_command(program, command, way_out=WAY_OUT))
