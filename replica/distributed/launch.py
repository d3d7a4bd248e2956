"""Starts the processes of a run, watches over them, and passes a stop request on.

On one machine the parent starts one process a device. Ctrl-C and SIGTERM reach the parent, which
sets an event; the processes agree on it once a step, save, and end. A process ends when the parent
has ended, however it ended; when one process fails, the parent ends the others. On several machines
`torchrun` starts the processes, and restarts them where it is told to; the rest is the same.
"""

import multiprocessing
import os
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing import resource_tracker
from multiprocessing.connection import wait
from typing import Any, Protocol

import torch
import torch.distributed as dist

from data_prep.errors import UserError
from data_prep.parent import end_with_parent
from replica.distributed import heartbeat
from replica.distributed.devices import Devices
from replica.distributed.mesh import Rank

# How long the other processes may take to end by themselves after one has failed.
GRACE_SECONDS = 2.0
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
EXIT_FAILURE, EXIT_USER_ERROR = 1, 2
# `heartbeat` is to name who hangs before an exchange gives up without a name.
EXCHANGE_TIMEOUT_FACTOR = 10
LOOPBACK = "127.0.0.1"


class StopRequest(Protocol):
    """A flag that Ctrl-C or SIGTERM sets."""

    def is_set(self) -> bool:
        """Whether somebody asked the run to stop."""

    def set(self) -> None:
        """Asks the run to stop."""


Worker = Callable[[Rank, Any, StopRequest], None]


def run_processes(worker: Worker, argument: Any, devices: Devices, *, timeout: float) -> int:
    """Runs `worker(rank, argument, stop)` in one process a device of this machine.

    Args:
        worker, argument: what to run; importable, and picklable.
        devices: how many processes, and where.
        timeout: seconds without a sign of life after which a process counts as hung.

    Returns:
        0, or 130 or 143 where Ctrl-C or SIGTERM asked for a stop and every process obeyed.

    Raises:
        UserError, RuntimeError: what the first failing process raised.
    """
    context = multiprocessing.get_context("spawn")
    stop: StopRequest = context.Event() if devices.num_processes > 1 else threading.Event()
    received: list[int] = []
    with _signals_set(stop, received):
        if devices.num_processes == 1:
            worker(Rank(0, devices), argument, stop)
        else:
            _run_supervised(context, worker, argument, devices, stop, timeout)
    return 128 + received[0] if received else 0


@contextmanager
def _signals_set(stop: StopRequest, received: list[int]) -> Iterator[None]:
    """The first Ctrl-C or SIGTERM asks for a stop; the second one ends at once."""

    def handle(number: int, frame: Any) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(number)
        print("\nstopping after this step; once more to stop at once", file=sys.stderr, flush=True)
        stop.set()

    before = {number: signal.signal(number, handle) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _run_supervised(
    context: Any,
    worker: Worker,
    argument: Any,
    devices: Devices,
    stop: StopRequest,
    timeout: float,
) -> None:
    failures = context.SimpleQueue()
    store = local_store()  # the parent's, so that it outlives any rank
    processes = [
        context.Process(
            target=_run_rank,
            args=(Rank(i, devices), worker, argument, stop, store.port, timeout, failures),
            daemon=True,
        )
        for i in range(devices.num_processes)
    ]
    try:
        # A process inherits what its parent blocks: the terminal sends Ctrl-C to all of them, and
        # only the parent acts on it, once all have been started. The tracker is a process of the
        # standard library, whose start would let signals through again.
        resource_tracker.ensure_running()
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        try:
            for process in processes:
                process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        _watch(processes, failures)
    finally:
        for process in processes:
            if process.pid is not None:
                process.kill()
                process.join()


def local_store() -> dist.TCPStore:
    """A key-value store that the processes of this machine reach, and no other machine."""
    server = socket.create_server((LOOPBACK, 0))
    # PyTorch's own socket would listen on every interface.
    port, descriptor = server.getsockname()[1], server.detach()
    return dist.TCPStore(
        LOOPBACK, port, is_master=True, wait_for_workers=False, master_listen_fd=descriptor
    )


def _watch(processes: list[Any], failures: Any) -> None:
    running = list(processes)
    while running:
        wait([process.sentinel for process in running])
        # Asked once: a process that ends between two questions would be in neither list.
        codes = {process: process.exitcode for process in running}
        running = [process for process, code in codes.items() if code is None]
        failed = [process for process, code in codes.items() if code not in (None, 0)]
        if not failed:
            continue
        # A killed process makes its peers fail too, perhaps before it is seen to have ended: it
        # is the one to name.
        if running:
            wait([process.sentinel for process in running], timeout=GRACE_SECONDS)
        killed = [p for p in processes if p.exitcode is not None and p.exitcode < 0]
        if not killed and not failures.empty():
            is_user_error, message = failures.get()
            raise UserError(message) if is_user_error else RuntimeError(message)
        process = (killed or failed)[0]
        raise RuntimeError(
            f"rank {processes.index(process)} (pid {process.pid}) ended with exit status "
            f"{process.exitcode}; the others were ended too; continue with --resume"
        )


def _run_rank(
    rank: Rank,
    worker: Worker,
    argument: Any,
    stop: StopRequest,
    port: int,
    timeout: float,
    failures: Any,
) -> None:
    end_with_parent()
    # All processes are on this machine, so its loopback interface is all that gloo needs.
    if sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.set_num_threads(max(1, torch.get_num_threads() // rank.devices.num_processes))

    def store() -> dist.Store:
        return dist.TCPStore(LOOPBACK, port, is_master=False, wait_for_workers=False)

    def fail(is_user_error: bool, message: str) -> None:
        failures.put((is_user_error, message))

    _end(_work(rank, worker, argument, stop, store, timeout, fail))


def _work(
    rank: Rank,
    worker: Worker,
    argument: Any,
    stop: StopRequest,
    open_store: Callable[[], dist.Store],
    timeout: float,
    fail: Callable[[bool, str], None],
) -> int:
    """Joins the group of processes, works, and leaves it; returns the exit status."""

    def on_hung(line: str) -> None:
        fail(False, line)
        _end(EXIT_FAILURE)

    try:
        num_processes = rank.devices.num_processes
        if rank.devices.kind == "cuda":
            torch.cuda.set_device(rank.device)
        heartbeat.watch(
            # A connection of its own: the group's waits in its calls.
            dist.PrefixStore("liveness", open_store()),
            rank=rank.index,
            num_processes=num_processes,
            timeout=timeout,
            on_hung=on_hung,
        )
        dist.init_process_group(
            "nccl" if rank.devices.kind == "cuda" else "gloo",
            store=dist.PrefixStore("group", open_store()),
            rank=rank.index,
            world_size=num_processes,
            timeout=timedelta(seconds=EXCHANGE_TIMEOUT_FACTOR * timeout),
        )
        worker(rank, argument, stop)
        heartbeat.beat("waiting for the others to end")
        dist.barrier()
        dist.destroy_process_group()
    except UserError as error:
        fail(True, str(error))
        return EXIT_USER_ERROR
    except OSError as error:
        fail(
            True,
            f"{error.filename}: {error.strerror}: make room or mend it, then continue "
            "with --resume",
        )
        return EXIT_USER_ERROR
    except RuntimeError as error:
        fail(False, f"rank {rank.index}: {error}")
        return EXIT_FAILURE
    except Exception:
        fail(False, f"rank {rank.index} failed:\n{traceback.format_exc()}")
        return EXIT_FAILURE
    return 0


def _end(status: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    # Without the interpreter's shutdown: after a failure, gloo's threads may wait for the peer.
    os._exit(status)


# --- Started by torchrun


@dataclass(frozen=True)
class Torchrun:
    """What `torchrun` tells a process.

    Attributes:
        rank, num_processes: of the whole run, over all machines.
        local_rank, local_processes: of this machine.
        restarts: how often the run was started anew after a failure.
        max_restarts: how often it may be.
    """

    rank: int
    num_processes: int
    local_rank: int
    local_processes: int
    restarts: int
    max_restarts: int


def torchrun() -> Torchrun | None:
    """What `torchrun` says, or None where it did not start this process."""
    environment = os.environ
    if "TORCHELASTIC_RUN_ID" not in environment:
        return None
    names = (
        *("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"),
        *("TORCHELASTIC_RESTART_COUNT", "TORCHELASTIC_MAX_RESTARTS"),
    )
    return Torchrun(*(int(environment[name]) for name in names))


def run_as_told(worker: Worker, argument: Any, rank: Rank, *, timeout: float) -> int:
    """Runs this process's part of a run that `torchrun` started, and ends the process.

    Returns:
        Never: a process of a group ends here, with 0, 130 or 143 as `run_processes` returns, 1
        after a failure, and 2 after a user's mistake.
    """
    end_with_parent()
    stop = threading.Event()
    received: list[int] = []
    opened: list[str] = []

    def open_store() -> dist.Store:
        host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        attempt = os.environ["TORCHELASTIC_RESTART_COUNT"]
        # Where torchrun's own process does not keep the store, that of rank 0 does.
        is_master = (
            rank.index == 0
            and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
            and not opened
        )
        opened.append(host)
        store = dist.TCPStore(host, port, is_master=is_master, wait_for_workers=False)
        return dist.PrefixStore(f"replica {attempt}", store)

    def fail(is_user_error: bool, message: str) -> None:
        # Every process meets a user's mistake; one line is enough.
        if rank.index == 0 or not is_user_error:
            print(f"replica.train: {message}", file=sys.stderr)

    with _signals_set(stop, received):
        try:
            status = _work(rank, worker, argument, stop, open_store, timeout, fail)
        except KeyboardInterrupt:
            status = 128 + received[0]
    _end(status or (128 + received[0] if received else 0))
    raise AssertionError("the process has ended")
