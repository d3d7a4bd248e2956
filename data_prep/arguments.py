"""What options of commands take: each value is checked while the command line is read.

So a wrong one is refused before anything is done, with the option, the value and the rule.
"""

import math
import re
from argparse import ArgumentTypeError
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import TypeVar

Number = TypeVar("Number", int, float)

# More of anything that a person counts by hand (workers, processes) is a mistake.
MOST_PROCESSES = 1024
# Of what is counted in images, steps or epochs.
MOST_COUNTED = 1_000_000_000
MOST_SEED = 2**32 - 1
# Of an option's value in a message.
LETTERS_SHOWN = 40


def whole_number(least: int, most: int) -> Callable[[str], int]:
    """Reads a whole number in a range, both ends included."""
    return lambda text: _in_range(text, int, "a whole number", least, most, "")


def number(least: float, most: float, unit: str = "") -> Callable[[str], float]:
    """Reads a finite number in a range, both ends included; the unit is for messages."""
    return lambda text: _in_range(text, float, "a number", least, most, unit and f" {unit}")


def _in_range(
    text: str, read: Callable[[str], Number], what: str, least: Number, most: Number, unit: str
) -> Number:
    shown = text if len(text) <= LETTERS_SHOWN else f"{text[:LETTERS_SHOWN]}..."
    try:
        value = read(text)
    except ValueError:
        raise ArgumentTypeError(f"expected {what}{unit}, got {shown!r}") from None
    if math.isnan(value) or value < least:
        raise ArgumentTypeError(f"expected at least {least}{unit}, got {shown}")
    if value > most:
        raise ArgumentTypeError(f"expected at most {most}{unit}, got {shown}")
    return value


def nonempty_path(text: str) -> Path:
    """Reads a path: anything but nothing, which would be the directory that one is in."""
    if not text.strip():
        raise ArgumentTypeError(f"expected a path, got {text!r}: `.` is this directory")
    return Path(text)


def nonempty_name(text: str) -> str:
    """Reads a name, or several: anything but nothing."""
    if not text.strip():
        raise ArgumentTypeError(f"expected a name, got {text!r}")
    return text


def one_or_three_counts(text: str) -> int | tuple[int, int, int]:
    """Reads one count, or three between commas; the first is at least 1."""
    match = re.fullmatch(r"([0-9]{1,9})(?:,([0-9]{1,9}),([0-9]{1,9}))?", text)
    if match is None or int(match[1]) < 1:
        raise ArgumentTypeError(
            f"expected VAL such as 50, or TRAIN,VAL,TEST such as 400,50,50, got {text}"
        )
    return int(match[1]) if match[2] is None else (int(match[1]), int(match[2]), int(match[3]))


def fraction(text: str) -> Fraction:
    """Reads a part of a whole, exactly as it is written."""
    number(0.0001, 0.9999)(text)
    return Fraction(text)


def one_of_many(text: str) -> tuple[int, int]:
    """Reads i/n, one of n shares."""
    match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise ArgumentTypeError(f"expected i/n with 1 <= i <= n, such as 3/16, got {text}")
    return int(match[1]), int(match[2])
