"""Processes that share the work of a command, and end with it."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager


@contextmanager
def worker_pool(num_workers: int) -> Iterator[ProcessPoolExecutor]:
    """Starts processes; they end with the block, and with this process however it ends.

    Raises:
        RuntimeError: a process ended by itself.
    """
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(num_workers, context, initializer=_start_worker)
    # A process inherits what its parent ignores, so Ctrl-C cannot hit a worker that is starting.
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    for _ in range(num_workers):
        pool.submit(os.getpid)  # starts one more, as long as none is idle
    signal.signal(signal.SIGINT, before)
    try:
        yield pool
    except BrokenProcessPool:
        raise RuntimeError(
            "a worker process ended unexpectedly (out of memory?): run the same command again, it "
            "continues where it stopped; fewer --workers need less memory"
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _start_worker() -> None:
    """In a worker: leave Ctrl-C to the parent, and end when the parent has ended."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end_with_parent() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()
