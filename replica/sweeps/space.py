"""What a sweep varies: fields of a recipe with their values, or with a range."""

import itertools
import math
import re
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from data_prep.errors import UserError
from replica.recipes import ALIASES, Recipe, with_changes
from replica.recipes.changes import WITHOUT, settable_fields, settable_layer_fields
from replica.recipes.recipe import layer_names

SHORT = ("--epochs",)  # options of the sweep that are short for --set
EXAMPLE = "lr=0.001,0.01"
RANGE = re.compile(r"(.+?)\.\.(.+?)(:log)?")
# More trials than anybody runs are a mistake; of a range of whole numbers so many are tried.
MOST_TRIALS = 10_000
# Of an axis; preparing a run takes some milliseconds.
MOST_PREPARED = 100


@dataclass(frozen=True)
class Values:
    """Values of a field, each as `--set` takes it."""

    field: str
    texts: tuple[str, ...]

    def __str__(self) -> str:
        return (";" if any("," in text for text in self.texts) else ",").join(self.texts)

    @property
    def ends(self) -> tuple[str, ...]:
        """What is checked before anything runs: all of them."""
        return self.texts


@dataclass(frozen=True)
class Range:
    """A range of a field, both ends included; `is_log`: each factor is as likely as any other."""

    field: str
    low: float
    high: float
    is_whole: bool
    is_log: bool

    def __str__(self) -> str:
        return f"{self.low!r}..{self.high!r}{':log' if self.is_log else ''}"

    @property
    def ends(self) -> tuple[str, ...]:
        """What is checked before anything runs: both ends, and whole numbers between them."""
        if self.is_whole and self.high - self.low < MOST_TRIALS:
            return tuple(map(str, range(int(self.low), int(self.high) + 1)))
        return repr(self.low), repr(self.high)


Axis = Values | Range


def read_axis(word: str, recipe: Recipe) -> Axis:
    """Reads `FIELD=VALUE,VALUE...` or `FIELD=LOW..HIGH[:log]`.

    A field is one that `--set` takes, or an option of `replica.train` that is short for one, such
    as `lr`. The values of a field that is itself a list stand between semicolons.

    Raises:
        UserError: there is no such field, or it has no values.
    """
    name, equals, text = (part.strip() for part in word.partition("="))
    if not (name and equals):
        raise UserError(f"--grid {word}: expected FIELD=VALUES such as {EXAMPLE}")
    field = ALIASES.get(f"--{name.replace('_', '-')}", name)
    hint = _hint_of(word, field, recipe)
    if hint in (int, float) and (found := RANGE.fullmatch(text)):
        return _range(word, field, hint, *found.groups())
    is_list = field == WITHOUT or typing.get_origin(hint) is tuple
    mark, marks = (";", "semicolons") if is_list else (",", "commas")
    texts = tuple(value.strip() for value in text.split(mark))
    if not all(texts):
        raise UserError(
            f"--grid {word}: expected values with {marks} between them, such as {EXAMPLE}, or a "
            "range such as lr=1e-4..1e-2:log"
        )
    return Values(field, texts)


def _hint_of(word: str, field: str, recipe: Recipe) -> Any:
    """The type of a field's values; of `float | None` the first one."""
    layer, dot, of_layer = field.partition(".")
    is_of_layer = dot and layer in layer_names(recipe)
    hints = settable_layer_fields(type(recipe.layer(layer))) if is_of_layer else settable_fields()
    hint = hints.get(of_layer if is_of_layer else field)
    if hint is None and field != WITHOUT:  # says which there are
        change = f"{field}={word.partition('=')[2]}"
        _said_of(word, [change], partial(with_changes, recipe))
    return typing.get_args(hint)[0] if isinstance(hint, types.UnionType) else hint


def _range(word: str, field: str, kind: type, low: str, high: str, log: str | None) -> Range:
    what = "whole numbers" if kind is int else "numbers"
    rule = f"expected a range of {what} such as lr=1e-4..1e-2:log, the lower first"
    try:
        ends = (kind(low), kind(high))
        if not (all(map(math.isfinite, ends)) and ends[0] < ends[1]):
            raise ValueError(ends)
    except (ValueError, OverflowError):
        raise UserError(f"--grid {word}: {rule}") from None
    if log and ends[0] <= 0:
        raise UserError(f"--grid {word}: expected a lower end above 0 beside :log, got {low}")
    return Range(field, *ends, is_whole=kind is int, is_log=bool(log))


def read_space(words: Sequence[str], recipe: Recipe, fixed: Sequence[str]) -> tuple[Axis, ...]:
    """Reads the words of `--grid`.

    Args:
        words: one for each field.
        recipe: as it is without them.
        fixed: changes of the recipe that hold for all trials, as `--set` takes them.

    Raises:
        UserError: a word is wrong, or two say something of the same field.
    """
    space = tuple(read_axis(word, recipe) for word in words)
    named = [axis.field for axis in space]
    for axis, word in zip(space, words, strict=True):
        if named.count(axis.field) > 1:
            raise UserError(f"--grid {word}: expected {axis.field} once, got it twice")
        if axis.field in [change.partition("=")[0] for change in fixed]:
            options = [x for x in SHORT if ALIASES[x] == axis.field]
            given = " and no ".join([f"--set of {axis.field}", *options])
            raise UserError(f"--grid {word}: expected no {given} beside it: leave one of them out")
    return space


def grid_size(space: Sequence[Axis]) -> int:
    """How many trials all combinations are.

    Raises:
        UserError: there are too many, or an axis is a range.
    """
    for axis in space:
        if isinstance(axis, Range):
            raise UserError(
                f"--grid {axis.field}={axis}: expected values for --sampler grid: list them, or "
                "give --sampler random or tpe with --trials"
            )
    number = math.prod(len(axis.ends) for axis in space)
    if number > MOST_TRIALS:
        raise UserError(
            f"--grid: expected at most {MOST_TRIALS:,} trials, got {number:,}: list fewer values, "
            "or give --sampler random or tpe with --trials"
        )
    return number


def changes_of(values: Mapping[str, str]) -> list[str]:
    """Values of a trial as `--set` takes them."""
    return [f"{field}={text}" for field, text in values.items()]


def check_space(
    space: Sequence[Axis], recipe: Recipe, *, prepare: Callable[[list[str]], object]
) -> None:
    """Refuses values that the recipe's rules or the data refuse, before anything runs.

    Args:
        space: what is varied.
        recipe: with the changes that hold for all trials.
        prepare: all that is checked of a run with such changes; raises a UserError.

    Raises:
        UserError: of a value, or of a combination of them.
    """
    first = {axis.field: axis.ends[0] for axis in space}
    for axis in space:
        seen: list[Recipe] = []
        for number, text in enumerate(axis.ends, start=1):
            changes, said = changes_of({**first, axis.field: text}), f"{axis.field}={text}"
            changed = _said_of(said, changes, partial(with_changes, recipe))
            if isinstance(axis, Values) and changed in seen:
                raise UserError(f"--grid {axis.field}={axis}: expected each value once, got {text}")
            seen.append(changed)
            if number <= MOST_PREPARED or number == len(axis.ends):
                _said_of(said, changes, prepare)
    for changes in _combinations(space):
        _said_of(" ".join(changes), changes, partial(with_changes, recipe))


def _combinations(space: Sequence[Axis]) -> Iterator[list[str]]:
    """Of all values, or where these are too many, of the first and the last ones."""
    texts = [axis.ends for axis in space]
    if math.prod(map(len, texts)) > MOST_TRIALS:
        texts = [(ends[0], ends[-1]) for ends in texts]
    fields = [axis.field for axis in space]
    for values in itertools.islice(itertools.product(*texts), MOST_TRIALS):
        yield changes_of(dict(zip(fields, values, strict=True)))


_Result = typing.TypeVar("_Result")


def _said_of(said: str, changes: list[str], check: Callable[[list[str]], _Result]) -> _Result:
    """Calls a check; what it refuses is said of these words of the grid."""
    try:
        return check(changes)
    except UserError as error:
        text = str(error)
        for change in changes:
            text = text.removeprefix(f"--set {change}: ")
        raise UserError(f"--grid {said}: {text}") from None
