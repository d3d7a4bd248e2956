"""Ctrl-C, SIGTERM and SIGHUP: what asks a command to stop."""

import contextlib
import signal
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextlib.contextmanager
def on_stop_signals(handler: Callable[[int, Any], None]) -> Iterator[None]:
    """Within the block the handler gets the stop signals.

    A signal that this process was started to ignore, such as SIGHUP by `nohup`, stays ignored.
    """
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    taken = {n: old for n, old in before.items() if old not in (None, signal.SIG_IGN)}
    for number in taken:
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number, old in taken.items():
            if signal.getsignal(number) is not signal.SIG_IGN:  # a handler may have settled it
                signal.signal(number, old)


def interrupt(number: int, _frame: Any = None) -> NoReturn:
    """A handler that raises KeyboardInterrupt wherever the program is, with the signal."""
    raise KeyboardInterrupt(number)


def exit_status(error: KeyboardInterrupt) -> int:
    """What a shell expects of a program that a signal ended: 130, 143 or 129."""
    return 128 + (error.args[0] if error.args else signal.SIGINT)
