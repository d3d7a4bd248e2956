"""Who hangs: every process of a run counts what it does, and all watch each other's counts.

A process that has ended is noticed by its parent or by `torchrun`. One that hangs (a stopped
process, a disk that does not answer) makes its peers wait for it in an exchange without an end.
Each process calls `beat` where it begins or ends something; a thread publishes the count in the
run's key-value store. Where a count has stood still for too long, and no other process is further
behind, the others name it and end.
"""

import json
import os
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta

from torch.distributed import DistStoreError, Store

from data_prep.errors import printable

# How often a process publishes its count and reads those of the others.
INTERVAL_SECONDS = 1.0


@dataclass
class _Pulse:
    """What is known of a process, and since when it has not changed (on our own clock)."""

    count: int = -1
    place: str = "starting"
    name: str = ""
    since: float = 0.0
    text: bytes = b""  # as the store has it


_own = _Pulse(count=0)


def _published(store: Store, rank: int) -> bytes:
    """What the store has of a process; nothing where it has published nothing yet."""
    key = f"pulse {rank}"
    try:
        text: bytes = store.get(key) if store.check([key]) else b""
    except DistStoreError:  # it was deleted in between
        return b""
    return text


def _pulse_of(text: bytes) -> _Pulse | None:
    """What a process says of itself, or None: the store has no password, so others may write it."""
    try:
        count, place, name = json.loads(text)
    except (ValueError, TypeError, RecursionError):
        return None
    if type(count) is not int or not isinstance(place, str) or not isinstance(name, str):
        return None
    return _Pulse(count, printable(place), printable(name))


def beat(place: str) -> None:
    """Counts one more thing done; `place` says in a few words what comes next."""
    _own.count += 1
    _own.place = place


def find_hung(seen: dict[int, _Pulse], *, now: float, timeout: float) -> int | None:
    """The process that all others wait for, or None.

    That is the one with the lowest count, once it has not changed for `timeout` seconds. The
    others stand still only because they wait for it, so their counts are higher by what they did
    before; between equal counts there is no difference, and the first is named.
    """
    rank = min(seen, key=lambda r: (seen[r].count, r))
    return rank if now - seen[rank].since > timeout else None


def watch(
    store: Store, rank: int, num_processes: int, *, timeout: float, on_hung: Callable[[str], None]
) -> None:
    """Starts the thread that publishes this process's count and looks at the others'.

    The store is reached by all processes, and nothing else of the run uses it. `on_hung` does not
    return; it is called with one line that names a process without a change for `timeout` seconds.
    What somebody else writes there is no count; as long as it changes, nobody is named.
    """
    store.set_timeout(timedelta(seconds=INTERVAL_SECONDS))
    name = f"rank {rank} (pid {os.getpid()} on {socket.gethostname()})"
    started = time.monotonic()
    seen = {r: _Pulse(since=started, name=f"rank {r}") for r in range(num_processes)}

    def publish_and_look() -> None:
        store.set(f"pulse {rank}", json.dumps([_own.count, _own.place, name]))
        now = time.monotonic()
        for other, known in seen.items():
            text = _published(store, other)
            if text != known.text:
                seen[other] = replace(_pulse_of(text) or known, since=now, text=text)

    def run() -> None:
        while True:
            try:
                publish_and_look()
            except RuntimeError:
                return  # The store has gone: the run ends, or whoever started it ends us.
            hung = find_hung(seen, now=time.monotonic(), timeout=timeout)
            if hung is not None and hung != rank:
                known = seen[hung]
                on_hung(
                    f"{known.name} has not moved for {timeout:g} s ({known.place}): "
                    "all processes are ended; continue with --resume, and give more time with "
                    "--timeout if it was only slow"
                )
            time.sleep(INTERVAL_SECONDS)

    threading.Thread(target=run, daemon=True, name="liveness").start()
