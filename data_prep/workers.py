"""Processes that share the work of a command, and end with it."""

import itertools
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from ctypes import c_bool
from dataclasses import dataclass
from multiprocessing import resource_tracker
from typing import Any, TypeVar

from data_prep.errors import UserError
from data_prep.parent import end_with_parent
from data_prep.signals import interrupt, on_stop_signals

Item = TypeVar("Item")
Result = TypeVar("Result")

NUM_COUNTERS = 4
POLL_SECONDS = 0.2


class StoppedError(Exception):
    """In a worker: the parent wants no result any more."""


@dataclass(frozen=True)
class Workers:
    """Processes to work with; a stop signal is obeyed between two results."""

    _pool: ProcessPoolExecutor
    _interrupts: list[int]
    _shared: "Shared"
    _num_workers: int

    def counters(self) -> list[int]:
        """What all workers have counted so far."""
        # Without its lock, which a worker that was killed may still hold.
        return list(self._shared.counters.get_obj())

    def each(
        self,
        work: Callable[[Item], Result],
        items: Iterable[Item],
        *,
        on_wait: Callable[[], None] = lambda: None,
    ) -> Iterator[Result]:
        """Gives the results as they come; calls `on_wait` several times a second meanwhile.

        Raises:
            KeyboardInterrupt: a stop signal came; the workers have been asked to stop.
        """
        waiting = iter(items)
        running: set[Future[Result]] = set()
        try:
            while True:
                # Two tasks per worker, so that none waits, and not all tasks are pickled at once.
                for item in itertools.islice(waiting, 2 * self._num_workers - len(running)):
                    running.add(self._pool.submit(work, item))
                if not running:
                    break
                done, running = wait(running, POLL_SECONDS, FIRST_COMPLETED)
                on_wait()
                for future in done:
                    yield future.result()
                if self._interrupts:
                    interrupt(self._interrupts[0])
        finally:
            self._shared.stop.value = True


@contextmanager
def worker_pool(num_workers: int) -> Iterator[Workers]:
    """Starts processes; they end with the block, and with this process however it ends.

    Within the block a stop signal is noted, and obeyed between two results or at the end; the
    second one is obeyed at once. Python would raise KeyboardInterrupt wherever it is, and lose it
    where that is the clearing away of an object.

    Raises:
        RuntimeError: a process ended by itself.
        KeyboardInterrupt: a stop signal came, which it holds.
    """
    interrupts: list[int] = []

    def note(number: int, _frame: Any) -> None:
        interrupts.append(number)
        if len(interrupts) > 1:
            interrupt(number)

    context = multiprocessing.get_context("spawn")
    with on_stop_signals(note):
        with shared_memory():
            counters = context.Array("q", NUM_COUNTERS)
            shared = Shared(context.RawValue(c_bool), context.RawValue(c_bool), counters)
        pool = ProcessPoolExecutor(num_workers, context, _start_worker, (shared,))
        try:
            _start(pool, num_workers, shared)
            yield Workers(pool, interrupts, shared, num_workers)
        except BrokenProcessPool:
            # A signal to all processes of the command ends the workers, too.
            if not interrupts:
                raise RuntimeError(
                    "a worker process ended unexpectedly (out of memory?): run the same command "
                    "again, it continues where it stopped; fewer --workers need less memory"
                ) from None
        finally:
            shared.stop.value = True
            pool.shutdown(wait=True, cancel_futures=True)
    if interrupts:
        interrupt(interrupts[0])


@contextmanager
def shared_memory() -> Iterator[None]:
    """Where what processes share is made: semaphores, and memory.

    Raises:
        UserError: /dev/shm has no room.
    """
    # A process of the standard library, which removes them in the end: it ignores Ctrl-C and
    # SIGTERM. What its parent blocks it inherits; its start lets the other two through again.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    try:
        resource_tracker.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    try:
        yield
    except OSError as error:
        raise UserError(
            f"/dev/shm: {error.strerror}: what several processes share has no place there: make "
            "room, or mount a larger one (docker run --shm-size=1g)"
        ) from None


def _start(pool: ProcessPoolExecutor, num_workers: int, shared: "Shared") -> None:
    """Starts all processes while Ctrl-C waits: a process inherits what its parent blocks."""
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        for _ in range(num_workers):
            pool.submit(_wait_for_all)  # starts one more, as none is idle
    finally:
        shared.all_started.value = True
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


@dataclass(frozen=True)
class Shared:
    """What parent and workers both see.

    The parent waits for none of it: an event or a lock would wait for a worker that was killed.
    """

    all_started: Any
    stop: Any
    counters: Any


# In a worker: what it shares with its parent. Elsewhere nobody counts and nobody gives up.
_shared: Shared | None = None


def _wait_for_all() -> None:
    assert _shared is not None
    while not _shared.all_started.value:
        time.sleep(0.01)


def count(counter: int, amount: int = 1) -> None:
    """In a worker: adds to a counter that the parent reads."""
    if _shared is not None:
        with _shared.counters.get_lock():
            _shared.counters[counter] += amount


def check_wanted() -> None:
    """In a worker: raises StoppedError once the parent has given up."""
    if _shared is not None and _shared.stop.value:
        raise StoppedError


def _start_worker(shared: Shared) -> None:
    """In a worker: leave Ctrl-C to the parent, and end when the parent has ended."""
    global _shared
    _shared = shared
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()


def num_cores() -> int:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
