"""Batches that threads make ahead of the step that needs them."""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Generic, TypeVar

BATCHES_AHEAD = 2
T = TypeVar("T")


class Ahead(Generic[T]):
    """What `make(step, noise)` gives, step by step, made ahead in threads.

    Iterated once. An error in a thread is raised where its batch is due.

    Args:
        make: of a step and its color noise; called in any thread.
        first_step, last_step: the first step, and the one after the last.
        noise_of: color noise of a step; asked again when its batch is due, since it may have been
            changed by hand after the batch was made.
        threads: how many make batches at a time; 0: the calling one, when a batch is due.
    """

    def __init__(
        self,
        make: Callable[[int, float], T],
        first_step: int,
        last_step: int,
        *,
        noise_of: Callable[[int], float],
        threads: int,
    ) -> None:
        self._make, self._noise_of, self._threads = make, noise_of, threads
        self._steps = iter(range(first_step, last_step))
        self._spent = 0.0  # by the calling thread, and by threads that have ended
        self._clocks: list[int] = []

    def cpu_seconds(self) -> float:
        """What making batches has cost until now, of this process's CPU seconds.

        What is under way counts, too, where the system has clocks of threads (Linux has).
        """
        return self._spent + sum(map(time.clock_gettime, self._clocks))

    def __iter__(self) -> Iterator[T]:
        """The batches in the order of their steps."""
        if not self._threads:
            for step in self._steps:
                yield self._make_now(step)
            return
        ahead: deque[tuple[int, float, Future[T]]] = deque()
        with ThreadPoolExecutor(
            self._threads, thread_name_prefix="feed", initializer=self._register
        ) as pool:

            def begin(step: int) -> None:
                noise = self._noise_of(step)
                ahead.append((step, noise, pool.submit(self._make, step, noise)))

            try:
                for step in islice(self._steps, max(BATCHES_AHEAD, self._threads)):
                    begin(step)
                while ahead:
                    step, noise, future = ahead.popleft()
                    batch = future.result()
                    if self._noise_of(step) != noise:
                        batch = self._make_now(step)
                    for following in islice(self._steps, 1):
                        begin(following)
                    yield batch
                    del batch, future  # its memory is free for the next one
            finally:
                # A thread's clock ends with it.
                self._spent, self._clocks = self.cpu_seconds(), []
                pool.shutdown(wait=True, cancel_futures=True)

    def _make_now(self, step: int) -> T:
        began = time.thread_time()
        batch = self._make(step, self._noise_of(step))
        self._spent += time.thread_time() - began
        return batch

    def _register(self) -> None:
        if hasattr(time, "pthread_getcpuclockid"):
            self._clocks.append(time.pthread_getcpuclockid(threading.get_ident()))
