"""Processes that share the work of a command, and end with it."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import resource_tracker
from multiprocessing.synchronize import Event
from typing import Any, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class Workers:
    """Processes to work with; Ctrl-C is obeyed between two results."""

    def __init__(self, pool: ProcessPoolExecutor, interrupts: list[int]):
        self._pool = pool
        self._interrupts = interrupts

    def map(
        self, work: Callable[[Item], Result], items: Iterable[Item], *, chunksize: int
    ) -> Iterator[Result]:
        """Hands out all items at once, and gives the results in their order.

        Raises:
            KeyboardInterrupt: Ctrl-C came; raised by the iterator.
        """
        return self._obeying(self._pool.map(work, items, chunksize=chunksize))

    def _obeying(self, results: Iterator[Result]) -> Iterator[Result]:
        for result in results:
            if self._interrupts:
                raise KeyboardInterrupt
            yield result


@contextmanager
def worker_pool(num_workers: int) -> Iterator[Workers]:
    """Starts processes; they end with the block, and with this process however it ends.

    Within the block Ctrl-C is noted, and obeyed between two results or at the end; the second one
    is obeyed at once. Python would raise KeyboardInterrupt wherever it is, and lose it where that
    is the clearing away of an object.

    Raises:
        RuntimeError: a process ended by itself.
        KeyboardInterrupt: Ctrl-C came.
    """
    interrupts: list[int] = []

    def note(number: int, _frame: Any) -> None:
        interrupts.append(number)
        if len(interrupts) > 1:
            raise KeyboardInterrupt

    context = multiprocessing.get_context("spawn")
    all_started = context.Event()
    pool = ProcessPoolExecutor(num_workers, context, _start_worker, (all_started,))
    handler = signal.signal(signal.SIGINT, note)
    try:
        _start(pool, num_workers, all_started)
        yield Workers(pool, interrupts)
    except BrokenProcessPool:
        raise RuntimeError(
            "a worker process ended unexpectedly (out of memory?): run the same command again, it "
            "continues where it stopped; fewer --workers need less memory"
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        signal.signal(signal.SIGINT, handler)
    if interrupts:
        raise KeyboardInterrupt


def _start(pool: ProcessPoolExecutor, num_workers: int, all_started: Event) -> None:
    """Starts all processes while Ctrl-C waits: a process inherits what its parent blocks."""
    # A process of the standard library, whose start would let Ctrl-C through again.
    resource_tracker.ensure_running()
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        for _ in range(num_workers):
            pool.submit(_wait_for_all)  # starts one more, as none is idle
    finally:
        all_started.set()
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


# In a worker: set once the parent has started all of them.
_all_started: Event


def _wait_for_all() -> None:
    _all_started.wait()


def _start_worker(all_started: Event) -> None:
    """In a worker: leave Ctrl-C to the parent, and end when the parent has ended."""
    global _all_started
    _all_started = all_started
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end_with_parent() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()
