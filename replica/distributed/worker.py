"""One rank's life, whoever started it: it joins the others, works, and leaves them."""

import multiprocessing.synchronize
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, NoReturn

import torch
import torch.distributed as dist

from data_prep.errors import UserError
from data_prep.signals import interrupt, on_stop_signals
from replica.distributed import heartbeat
from replica.distributed.mesh import Rank

# `heartbeat` is to name who hangs before an exchange gives up without a name.
EXCHANGE_TIMEOUT_FACTOR = 10
# What a user can do where the file system refuses.
AGAIN = "run the same command again, with --resume if the run has a run.json"
WAY_OUT = f"make room or mend it, then {AGAIN}"
# A flag that a stop signal sets.
StopRequest = threading.Event | multiprocessing.synchronize.Event
Worker = Callable[[Rank, Any, StopRequest], None]


@contextmanager
def stop_on_signals(stop: StopRequest, *, unit: str = "step") -> Iterator[list[int]]:
    """The first stop signal asks for a stop and is in the list; the second ends at once.

    `unit` is what is done to its end before that, in a word for the user.
    """
    received: list[int] = []

    def handle(number: int, frame: Any) -> None:
        if received:
            interrupt(received[0])
        # A terminal that is closed may send it twice, itself and by its shell, the second time also
        # to a run that is saving or about to end.
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        received.append(number)
        line = f"\nstopping after this {unit}; once more to stop at once"
        print(line, file=sys.stderr, flush=True)
        stop.set()

    with on_stop_signals(handle):
        yield received


def status_of(received: list[int]) -> int:
    """0, or what a shell expects of a program that a signal ended: 130, 143 or 129."""
    return 128 + received[0] if received else 0


@contextmanager
def in_group(
    rank: Rank,
    *,
    open_store: Callable[[], dist.Store],
    timeout: float,
    on_hung: Callable[[str], NoReturn],
) -> Iterator[None]:
    """Joins the group of ranks, lets this one work, and leaves the group.

    `open_store` makes a new connection to the key-value store that all ranks reach; `on_hung` is
    called with a line that names the rank that has given no sign of life for `timeout` seconds.

    Raises:
        UserError, OSError: as the work raised them.
        RuntimeError: anything else, with the rank's number.
    """
    try:
        num_processes = rank.devices.num_processes
        if rank.devices.kind == "cuda":
            torch.cuda.set_device(rank.device)
        # A connection of its own: the group's waits in its calls.
        store = dist.PrefixStore("liveness", open_store())
        heartbeat.watch(store, rank.index, num_processes, timeout=timeout, on_hung=on_hung)
        dist.init_process_group(
            "nccl" if rank.devices.kind == "cuda" else "gloo",
            store=dist.PrefixStore("group", open_store()),
            rank=rank.index,
            world_size=num_processes,
            timeout=timedelta(seconds=EXCHANGE_TIMEOUT_FACTOR * timeout),
        )
        yield
        heartbeat.beat("waiting for the others to end")
        dist.barrier()
        dist.destroy_process_group()
    except (UserError, OSError):
        raise
    except RuntimeError as error:
        raise RuntimeError(f"rank {rank.index}: {error}") from None
    except Exception:
        raise RuntimeError(f"rank {rank.index} failed:\n{traceback.format_exc()}") from None


def end_process(status: int) -> NoReturn:
    """Ends this process at once: in the interpreter's shutdown, gloo may wait for a failed peer."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
