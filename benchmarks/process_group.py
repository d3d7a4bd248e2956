"""A program under a time limit: what it prints is passed on, and it ends with all it started."""

import codecs
import contextlib
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

GRACE_SECONDS = 10.0  # after SIGTERM, for a checkpoint; then SIGKILL
EXIT_TERMINATED = 128 + signal.SIGTERM


def run_limited(
    command: Sequence[str],
    *,
    seconds: float,
    directory: Path,
    environment: Mapping[str, str],
    echo: Callable[[str], None],
) -> int:
    """Runs a program in a process group of its own, of which nothing is left afterwards.

    Args:
        command: the program and its arguments.
        seconds: after which the group is ended.
        directory: where it runs.
        environment: all of its variables.
        echo: called from a thread with what the program prints, on either stream, as it comes.

    Returns:
        Its exit status; negative where a signal ended it, as `subprocess` has it.

    Raises:
        TimeoutError: it ran into the limit.
    """
    process = subprocess.Popen(
        command,
        cwd=directory,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        process_group=0,
    )
    assert process.stdout is not None
    reader = threading.Thread(target=_pass_on, args=(process.stdout, echo), daemon=True)
    reader.start()
    try:
        return process.wait(max(seconds, 0))
    except subprocess.TimeoutExpired:
        raise TimeoutError(f"ran into the limit of {seconds:g} s") from None
    finally:
        _end(process)
        # Who left the group may still hold the pipe.
        reader.join(GRACE_SECONDS)


def _pass_on(stream: BinaryIO, echo: Callable[[str], None]) -> None:
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    with stream:
        while chunk := os.read(stream.fileno(), 65536):
            echo(decoder.decode(chunk))


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ends the group: its first process has a while to end well, the others go with it."""
    with contextlib.suppress(ProcessLookupError):
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(GRACE_SECONDS)
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@contextlib.contextmanager
def ending_on_sigterm() -> Iterator[None]:
    """SIGTERM leaves the block as Ctrl-C would, so that the group ends with it; status 143."""

    def leave(*_: object) -> None:
        raise SystemExit(EXIT_TERMINATED)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
