"""Starts the processes of a run, watches over them, and passes a stop request on.

The parent starts one process a device. Ctrl-C and SIGTERM reach the parent, which sets an event;
the processes agree on it once a step, save, and end. A process ends when the parent has ended,
however it ended; when one process fails, the parent ends the others.
"""

import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist

from data_prep.shards import UserError
from replica.devices import Devices
from replica.towers import OneDevice, Placement, TwoDevices

# How long the other processes may take to end by themselves after one has failed.
GRACE_SECONDS = 2.0
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
EXIT_FAILURE, EXIT_USER_ERROR = 1, 2


class StopRequest(Protocol):
    """A flag that Ctrl-C or SIGTERM sets."""

    def is_set(self) -> bool:
        """Whether somebody asked the run to stop."""

    def set(self) -> None:
        """Asks the run to stop."""


@dataclass(frozen=True)
class Rank:
    """One process of a run: rank = data_index * split + tower.

    Attributes:
        index: 0 to devices.num_processes - 1; rank 0 writes the files and prints.
        devices: how the whole run is placed.
    """

    index: int
    devices: Devices

    @property
    def data_index(self) -> int:
        """Which share of each batch this process has."""
        return self.index // self.devices.split

    @property
    def tower(self) -> int:
        """Which tower it computes, 0 also where it computes all of them."""
        return self.index % self.devices.split

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        kind = self.devices.kind
        return torch.device("cuda", self.index) if kind == "cuda" else torch.device(kind)

    def placement(self, towers: int) -> Placement:
        """What the model needs to know."""
        if self.devices.split == 1:
            return OneDevice(towers)
        return TwoDevices(tower=self.tower, peer=self.index + 1 - 2 * self.tower)


class Mesh:
    """The groups of processes that this rank belongs to: axes `data` and `tower`."""

    def __init__(self, rank: Rank) -> None:
        self.is_distributed = rank.devices.num_processes > 1
        self.data_group: dist.ProcessGroup | None = None
        if self.is_distributed:
            shape = (rank.devices.num_data_shares, rank.devices.split)
            mesh = dist.init_device_mesh(rank.devices.kind, shape, mesh_dim_names=("data", "tower"))
            self.data_group = mesh.get_group("data")
        self.num_data_shares = rank.devices.num_data_shares

    def sum_over_data_(self, tensors: list[torch.Tensor]) -> None:
        """Adds up gradients over the shares of the batch, in place."""
        if self.num_data_shares > 1:
            for tensor in tensors:
                dist.all_reduce(tensor, group=self.data_group)

    def sum_over_all_(self, tensor: torch.Tensor) -> torch.Tensor:
        """Adds up over all processes, in place, and returns the tensor."""
        if self.is_distributed:
            dist.all_reduce(tensor)
        return tensor

    def gather_objects(self, value: Any) -> list[Any]:
        """One value of every process, in the order of ranks."""
        if not self.is_distributed:
            return [value]
        values: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(values, value)
        return values


Worker = Callable[[Rank, Any, StopRequest], None]


def run_processes(worker: Worker, argument: Any, devices: Devices) -> int:
    """Runs `worker(rank, argument, stop)` in one process a device.

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
            _run_supervised(context, worker, argument, devices, stop, received)
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
    received: list[int],
) -> None:
    failures = context.SimpleQueue()
    with tempfile.TemporaryDirectory(prefix="replica-") as meeting_dir:
        meeting_file = Path(meeting_dir) / "rendezvous"
        processes = [
            context.Process(
                target=_run_rank,
                args=(Rank(i, devices), worker, argument, stop, str(meeting_file), failures),
                daemon=True,
            )
            for i in range(devices.num_processes)
        ]
        try:
            # A process inherits what its parent ignores: the terminal sends Ctrl-C to all of them,
            # and only the parent acts on it.
            before = {n: signal.signal(n, signal.SIG_IGN) for n in STOP_SIGNALS}
            for process in processes:
                process.start()
            for number, handler in before.items():
                signal.signal(number, handler)
            _watch(processes, failures)
        finally:
            for process in processes:
                if process.pid is not None:
                    process.kill()
                    process.join()


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
    rank: Rank, worker: Worker, argument: Any, stop: StopRequest, meeting_file: str, failures: Any
) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    # All processes are on this machine, so its loopback interface is all that gloo needs.
    if sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.set_num_threads(max(1, torch.get_num_threads() // rank.devices.num_processes))
    status = 0
    try:
        if rank.devices.kind == "cuda":
            torch.cuda.set_device(rank.device)
        dist.init_process_group(
            "nccl" if rank.devices.kind == "cuda" else "gloo",
            init_method=f"file://{meeting_file}",
            rank=rank.index,
            world_size=rank.devices.num_processes,
        )
        worker(rank, argument, stop)
        dist.barrier()
        dist.destroy_process_group()
    except UserError as error:
        failures.put((True, str(error)))
        status = EXIT_USER_ERROR
    except OSError as error:
        failures.put(
            (
                True,
                f"{error.filename}: {error.strerror}: make room or mend it, then continue "
                "with --resume",
            )
        )
        status = EXIT_USER_ERROR
    except RuntimeError as error:
        failures.put((False, f"rank {rank.index}: {error}"))
        status = EXIT_FAILURE
    except Exception:
        failures.put((False, f"rank {rank.index} failed:\n{traceback.format_exc()}"))
        status = EXIT_FAILURE
    sys.stdout.flush()
    sys.stderr.flush()
    # Without the interpreter's shutdown: after a failure, gloo's threads may wait for the peer.
    os._exit(status)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(EXIT_FAILURE)
