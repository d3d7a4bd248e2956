"""The parent of a run on one machine: it starts one rank per device and watches over them.

Ctrl-C, SIGTERM and SIGHUP reach the parent, which sets an event; the ranks agree on it once per
step, save, and end. A rank ends when the parent has ended, however it ended; when one rank fails,
the parent ends the others. On several machines `torchrun` starts the ranks (torchrun.py).

PyTorch's own parents (`torch.multiprocessing.start_processes`, and `torch.distributed.elastic` on
top of it) name the rank that they look at first, which need not be the one that was killed.
"""

import multiprocessing
import os
import signal
import socket
import sys
import threading
from functools import partial
from multiprocessing.connection import wait
from typing import Any, NoReturn

import torch
import torch.distributed as dist

from data_prep.errors import EXIT_FAILURE, UserError
from data_prep.parent import end_with_parent
from data_prep.signals import STOP_SIGNALS
from data_prep.streams import lasting_output
from data_prep.workers import shared_memory
from replica.distributed.devices import Devices
from replica.distributed.mesh import Rank
from replica.distributed.worker import (
    AGAIN,
    StopRequest,
    Worker,
    end_process,
    in_group,
    status_of,
    stop_on_signals,
)

# How long the other ranks may take to end by themselves after one has failed.
GRACE_SECONDS = 2.0
LOOPBACK = "127.0.0.1"


def run_processes(
    worker: Worker, argument: Any, devices: Devices, *, timeout: float, unit: str = "step"
) -> int:
    """Runs `worker(rank, argument, stop)`, which can be pickled, in one process per device.

    A rank counts as hung after `timeout` seconds without a sign of life. What the first failing
    rank raised is raised. `unit` is that of `stop_on_signals`.

    Returns:
        0, or 130, 143 or 129 where Ctrl-C, SIGTERM or SIGHUP asked for a stop and every rank
        stopped.

    Raises:
        UserError, OSError, RuntimeError: what the first failing rank raised.
    """
    context = multiprocessing.get_context("spawn")
    stop: StopRequest = threading.Event()
    if devices.num_processes > 1:
        with shared_memory():
            stop = context.Event()
    with stop_on_signals(stop, unit=unit) as received:
        if devices.num_processes == 1:
            worker(Rank(0, devices), argument, stop)
        else:
            _run_supervised(context, worker, argument, devices, stop, timeout)
    return status_of(received)


def _run_supervised(
    context: Any, worker: Worker, argument: Any, devices: Devices, stop: StopRequest, timeout: float
) -> None:
    """Starts the ranks, and ends them whatever happens here."""
    with shared_memory():
        failures = context.SimpleQueue()
    store = local_store()  # the parent's, so that it outlives any rank
    processes = [
        context.Process(
            target=_run_rank,
            args=(worker, Rank(i, devices), argument, stop, store.port, timeout, failures),
            daemon=True,
        )
        for i in range(devices.num_processes)
    ]
    try:
        # A process inherits what its parent blocks: the terminal sends Ctrl-C to all of them, and
        # only the parent acts on it, once all have been started.
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
    """Waits until all ranks have ended; raises what the first failing one raised, or its end."""
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
            raise failures.get()
        process = (killed or failed)[0]
        raise RuntimeError(
            f"rank {processes.index(process)} (pid {process.pid}) ended with exit status "
            f"{process.exitcode}; the others were ended too: {AGAIN}"
        )


def _run_rank(
    worker: Worker,
    rank: Rank,
    argument: Any,
    stop: StopRequest,
    port: int,
    timeout: float,
    failures: Any,
) -> NoReturn:
    """What a started process runs; what it raises goes to the parent."""
    end_with_parent()
    # All processes are on this machine, so its loopback interface is all that gloo needs.
    if sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.set_num_threads(max(1, torch.get_num_threads() // rank.devices.num_processes))

    open_store = partial(dist.TCPStore, LOOPBACK, port, is_master=False, wait_for_workers=False)

    def fail(error: Exception) -> NoReturn:
        failures.put(error)
        end_process(EXIT_FAILURE)

    def on_hung(line: str) -> NoReturn:
        fail(RuntimeError(line))

    with lasting_output():
        try:
            with in_group(rank, open_store=open_store, timeout=timeout, on_hung=on_hung):
                worker(rank, argument, stop)
        except (UserError, OSError, RuntimeError) as error:
            fail(error)
        end_process(0)
