"""How things are measured here: candidates in turn, medians, and what they were measured on."""

import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import cuda_ext
from replica.training.run_record import describe_machine


@dataclass(frozen=True)
class Row:
    """One line of a result.

    Attributes:
        name: what was measured.
        value: the median, or None where it was not measured.
        unit: of the value.
        baseline: name of the row that it is compared with, or None.
        ratio: value divided by the baseline's value, or None.
        note: why it was not measured, or what to know.
    """

    name: str
    value: float | None
    unit: str
    baseline: str | None = None
    ratio: float | None = None
    note: str = ""


def interleaved(
    candidates: dict[str, Callable[[], Any]],
    *,
    rounds: int,
    seconds: float,
    wait: Callable[[], Any] = lambda: None,
) -> dict[str, float]:
    """Median seconds of each candidate, called in turn so that all meet the same disturbances.

    Args:
        candidates: functions to time, by name; each is called once beforehand.
        rounds: how often each is called.
        seconds: a candidate that has used up so much is called no more, after three times.
        wait: called before each reading of the clock (for devices that run ahead).
    """
    for call in candidates.values():
        call()
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(rounds):
        for name, call in candidates.items():
            if len(times[name]) >= 3 and sum(times[name]) > seconds:
                continue
            wait()
            start = time.perf_counter()
            call()
            wait()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def rows_of(medians: dict[str, float], *, baselines: dict[str, str], unit: str = "ms") -> list[Row]:
    """Rows in milliseconds, each compared with the candidate that `baselines` names for it."""
    scale = {"ms": 1e3, "s": 1.0}[unit]
    return [
        Row(
            name,
            value * scale,
            unit,
            baselines.get(name),
            value / medians[baselines[name]] if name in baselines else None,
        )
        for name, value in medians.items()
    ]


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    described = describe_machine("cuda" if torch.cuda.is_available() else "cpu")
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    flags = next((line.split() for line in lines if line.startswith("flags")), [])
    return {
        **described["hardware"],
        **described["versions"],
        "instruction_sets": [x for x in flags if x.startswith(("avx", "amx"))],
        "threads": torch.get_num_threads(),
        "system": platform.system(),
        "revision": described["git_revision"],
        "date": time.strftime("%Y-%m-%d"),
        "operators": cuda_ext.implementations(),
    }


def say(line: str) -> None:
    """Progress, which is not part of the result."""
    print(line, file=sys.stderr, flush=True)


def text_of(rows: list[Row]) -> str:
    """The rows as a table."""
    width = max(len(row.name) for row in rows)
    lines = []
    for row in rows:
        value = "not measured" if row.value is None else f"{row.value:.4g} {row.unit}"
        ratio = "" if row.ratio is None else f"  {row.ratio:6.2f} x {row.baseline}"
        note = f"  ({row.note})" if row.note else ""
        lines.append(f"{row.name:<{width}}  {value:>14}{ratio}{note}")
    return "\n".join(lines)
