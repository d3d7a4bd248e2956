"""Random kills, stops, full disks and flipped bits over builds and runs, for as long as one likes.

    python tests/soak.py --seconds 3600

Builds and runs are disturbed at the same time, each at random moments, and begun again until they
end. Then every byte that was built, every weight and every line of the history must be those of the
same build or run that nobody disturbed. A flipped bit must be noticed. What differs is kept, and
named with its seed. Each call adds a line to `benchmarks/results/soak.json`.
"""

import argparse
import contextlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch
from runs import assert_same_state, lines_of, train_command
from test_build_faults import assert_same, in_session

from benchmarks.measure import machine
from data_prep.files import write_whole
from data_prep.sources import toy
from replica.training.checkpoint import checkpoints_of

PROJECT_DIR = Path(__file__).resolve().parent.parent
RECORD = PROJECT_DIR / "benchmarks" / "results" / "soak.json"
SIGNALS = {"kill": (signal.SIGKILL,), "stop": (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
MACHINE = ("cpu", "cores", "python", "torch", "revision", "date")
FAULTS_EACH = 6
STEPS = 40
LONGEST = 300
TIMES = {"images_per_second", "feed_share"}


class DifferenceError(Exception):
    """Something is not as if nothing had happened."""


class Soak:
    """The faults that one thread makes, and what came of them.

    Attributes:
        faults: kind -> number.
        recoveries: builds and runs that went on to their end after faults.
        differences: what was wrong, one line each.
    """

    def __init__(self, directory: Path, seed: int, deadline: float) -> None:
        self.directory, self.rng, self.deadline = directory, random.Random(seed), deadline
        self.faults: Counter[str] = Counter()
        self.recoveries = 0
        self.differences: list[str] = []
        self.seconds: dict[str, float] = {}

    def disturb(self, command: list[str], kind: str, length: str, limit: int) -> int:
        """Starts a command, does a fault of this kind to it, and waits for its end.

        Args:
            command: arguments of Python.
            kind: a key of SIGNALS, or "full disk".
            length: what of `seconds` says how long the command takes; adapted to how busy the
                machine is, so that a fault seldom comes after its end.
            limit: the largest size that a file may reach on a full disk, in bytes.

        Returns:
            Its exit status.
        """

        def small_disk() -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

        process = subprocess.Popen(
            [sys.executable, *command],
            cwd=PROJECT_DIR,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,
            preexec_fn=small_disk if kind == "full disk" else None,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONFAULTHANDLER": "1"},
        )
        if kind in SIGNALS:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(self.rng.uniform(0.02, 1) * self.seconds[length])
            self.seconds[length] *= 1.1 if process.poll() is None else 0.8
            pids = [pid for pid in in_session(process.pid) if not is_resource_tracker(pid)]
            if pids and process.poll() is None:
                victim = self.rng.choice(pids) if kind == "kill" else process.pid
                with contextlib.suppress(ProcessLookupError):
                    os.kill(victim, self.rng.choice(SIGNALS[kind]))
                    self.faults[kind] += 1
        try:
            _, stderr = process.communicate(timeout=LONGEST)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGABRT)  # it says where its threads are
            time.sleep(2)
            os.killpg(process.pid, signal.SIGKILL)
            where = process.communicate()[1]
            raise DifferenceError(f"hangs after {kind}: {' '.join(command)}: {where}") from None
        self.faults[kind] += kind == "full disk" and process.returncode != 0
        # Python's own, of a worker whose parent was killed before it had said what to do.
        orphans = stderr.count("EOFError: Ran out of input") if kind == "kill" else 0
        if stderr.count("Traceback") > min(orphans, stderr.count(" in spawn_main")):
            raise DifferenceError(f"a traceback after {kind}: {stderr[-2000:]}")
        left = time.monotonic() + 20
        while in_session(process.pid):
            if time.monotonic() > left:
                raise DifferenceError(f"processes outlived {' '.join(command)} after {kind}")
            time.sleep(0.05)
        return process.returncode

    def finish(self, command: list[str]) -> None:
        """Runs a command to its end; it must succeed."""
        result = subprocess.run(
            [sys.executable, *command],
            cwd=PROJECT_DIR,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=LONGEST,
            check=False,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        if result.returncode:
            raise DifferenceError(f"{' '.join(command)}: {result.stderr[-2000:]}")

    def flip(self, path: Path) -> None:
        """Flips one bit of a file."""
        content = bytearray(path.read_bytes())
        content[self.rng.randrange(len(content))] ^= 1 << self.rng.randrange(8)
        path.write_bytes(content)
        self.faults["bit flip"] += 1

    def until_the_deadline(self, attempt: Callable[[Path], None]) -> None:
        """Attempts until the time is over; what differs is kept."""
        number = 0
        while time.monotonic() < self.deadline:
            number += 1
            out = self.directory / str(number)
            try:
                attempt(out)
                self.recoveries += 1
                shutil.rmtree(out)
            except (DifferenceError, AssertionError, OSError) as error:
                self.differences.append(f"{out}: {error}")
                print(f"DIFFERENCE {out}: {error}", flush=True)


def is_resource_tracker(pid: int) -> bool:
    """Whether a process is Python's own, which complains in its own words when it was killed."""
    try:
        return b"resource_tracker" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def kinds(rng: random.Random) -> list[str]:
    """The faults of one build or run, by name."""
    return rng.choices(("kill", "stop", "full disk"), (4, 2, 1), k=rng.randint(1, FAULTS_EACH))


class Builds(Soak):
    """Builds of 440 pictures, raw and JPEG."""

    def prepare(self, source: Path) -> None:
        """Builds undisturbed what the others are compared with."""
        self.source = source
        for storage in ("raw", "jpeg"):
            began = time.monotonic()
            self.finish(self.command(storage, self.directory / storage))
            self.seconds[storage] = time.monotonic() - began

    def command(self, storage: str, out: Path) -> list[str]:
        """A build."""
        options = ["--input", str(self.source), "--output", str(out), "--images-per-shard", "10"]
        return ["data_prep/build_shards.py", *options, "--storage", storage, "--workers", "2"]

    def attempt(self, out: Path) -> None:
        """One build with its faults."""
        storage = self.rng.choice(("raw", "jpeg"))
        whole = self.directory / storage
        largest = max(path.stat().st_size for path in whole.glob("*.h5"))
        for kind in kinds(self.rng):
            limit = self.rng.randrange(1000, largest)
            self.disturb(self.command(storage, out), kind, storage, limit)
        self.finish(self.command(storage, out))
        assert_same(out, whole)
        victim = self.rng.choice([path for path in out.iterdir() if path.stat().st_size])
        self.flip(victim)
        self.expect_refusal(["data_prep/verify_shards.py", str(out)], f"a bit of {victim.name}")

    def expect_refusal(self, command: list[str], what: str) -> None:
        """Runs a command that must fail."""
        result = subprocess.run(
            [sys.executable, *command], cwd=PROJECT_DIR, capture_output=True, text=True, check=False
        )
        if result.returncode == 0 or "Traceback" in result.stderr:
            raise DifferenceError(f"{' '.join(command)} with {what}: {result.stderr[-2000:]}")


class Runs(Soak):
    """Runs of `mini`, narrowed, in one process and in two."""

    def prepare(self, shards: Path) -> None:
        """Trains undisturbed what the others are compared with."""
        self.shards = shards
        for gpus in ("1", "2"):
            began = time.monotonic()
            self.finish(self.command(gpus, self.directory / f"whole-{gpus}"))
            self.seconds[gpus] = time.monotonic() - began

    def command(self, gpus: str, out: Path, *more: str) -> list[str]:
        """A run of ten epochs of four steps."""
        options = ["--gpus", gpus, "--epochs", "10", "--steps", str(STEPS)]
        return train_command(self.shards, out, *options, *more)

    def attempt(self, out: Path) -> None:
        """One run with its faults."""
        gpus = self.rng.choice("12")
        whole = self.directory / f"whole-{gpus}"
        keep = self.rng.randint(1, 3)
        options = ["--keep", str(keep), "--checkpoint-steps", str(self.rng.randint(2, 9))]
        largest = checkpoints_of(whole)[-1].stat().st_size
        before = 0  # whole ones
        for kind in kinds(self.rng):
            limit = self.rng.randrange(100, 2 * largest)
            self.disturb(self.command(gpus, out, *options, *resumed(out)), kind, gpus, limit)
            found = checkpoints_of(out) if out.exists() else []
            if len(found) < min(before, keep):
                raise DifferenceError(f"{before} checkpoints before {kind}, {len(found)} after it")
            # The only one, damaged, is refused: a run does not silently begin again.
            is_flipped = len(found) > 1 and self.rng.random() < 0.5
            if is_flipped:
                self.flip(found[-1])
            before = len(found) - is_flipped
        self.finish(self.command(gpus, out, *options, *resumed(out)))
        states = [torch.load(checkpoints_of(d)[-1], weights_only=True) for d in (out, whole)]
        assert_same_state(*states)
        for kind in ("step", "val"):
            lines = [
                [{k: v for k, v in line.items() if k not in TIMES} for line in found]
                for found in (lines_of(out, kind), lines_of(whole, kind))
            ]
            assert lines[0] == lines[1], f"lines of {kind}"


def resumed(out: Path) -> list[str]:
    """How a run goes on: what failed before it had a record is begun by the same command."""
    return ["--resume"] if (out / "run.json").exists() else []


def main() -> int:
    """Disturbs; exit status 1 where something differed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**32))
    parser.add_argument("--record", type=Path, default=RECORD)
    arguments = parser.parse_args()
    directory = Path(tempfile.mkdtemp(prefix="soak-"))
    print(f"seed {arguments.seed}, in {directory}", flush=True)
    toy.draw(directory / "toy", size=toy.ToySize(3, 40, 4), num_workers=2)
    toy.draw(directory / "small", size=toy.ToySize(7, 6, 3), num_workers=1)
    began = time.monotonic()
    deadline = began + arguments.seconds
    lanes: list[Soak] = []
    for number, kind in enumerate((Builds, Runs)):
        (directory / kind.__name__).mkdir()
        lanes.append(kind(directory / kind.__name__, arguments.seed + number, deadline))
    builds, runs = lanes
    options = ["--output", str(directory / "shards"), "--images-per-shard", "40", "--workers", "1"]
    builds.finish(["data_prep/build_shards.py", "--input", str(directory / "small"), *options])
    builds.prepare(directory / "toy")
    runs.prepare(directory / "shards")
    threads = [
        threading.Thread(target=lane.until_the_deadline, args=(lane.attempt,)) for lane in lanes
    ]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        threads[0].join(30)
        threads[1].join(30)
        faults = sum((lane.faults for lane in lanes), Counter())
        print(
            f"{dict(faults)}, {sum(lane.recoveries for lane in lanes)} recoveries, "
            f"{sum(len(lane.differences) for lane in lanes)} differences, "
            f"{max(0, deadline - time.monotonic()) / 60:.0f} min left",
            flush=True,
        )
    faults = sum((lane.faults for lane in lanes), Counter())
    differences = [line for lane in lanes for line in lane.differences]
    entry = {
        "command": ["python", "tests/soak.py", "--seconds", f"{arguments.seconds:g}"],
        "seed": arguments.seed,
        "seconds": round(time.monotonic() - began),
        "faults": dict(sorted(faults.items())),
        "recoveries": sum(lane.recoveries for lane in lanes),
        "differences": differences,
        "machine": {
            k: machine()[k] for k in ("cpu", "cores", "python", "torch", "revision", "date")
        },
    }
    entries = json.loads(arguments.record.read_text()) if arguments.record.exists() else []
    write_whole(arguments.record, f"{json.dumps([*entries, entry], indent=1)}\n".encode())
    if not differences:
        shutil.rmtree(directory)
    return 1 if differences else 0


if __name__ == "__main__":
    sys.exit(main())
