"""Optuna's record of a sweep: which values each trial has, how far it is, and what it came to.

A storage file holds one sweep. Several processes may use it at once, each with the lock of the
sweep's directory while it asks for a trial.
"""

import json
import os
import sqlite3
import warnings
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.errors import UserError, print_line
from replica.sweeps.space import Axis, Range, Values

SAMPLERS = ("grid", "random", "tpe")
PRUNERS = ("none", "median")
SQLITE = (".db", ".sqlite", ".sqlite3")
STUDY = "sweep"
JOURNAL_BEGINS = b'{"op_code":'
VERSION = 1
# What the study and its trials keep beside Optuna's own.
SETTINGS, OUTCOME = "sweep", "outcome"
# What a trial may come to; `running` is also one that was interrupted.
RUNNING, FINISHED, PRUNED, DIVERGED = "running", "finished", "pruned", "diverged"


@dataclass(frozen=True)
class Asked:
    """A trial: its number from 0, its values as `--set` takes them, and its state."""

    number: int
    values: dict[str, str]
    state: str

    @property
    def name(self) -> str:
        """That of its directory."""
        return f"trial-{self.number:03d}"


def require_optuna() -> Any:
    """The module, silent.

    Raises:
        UserError: it is not installed.
    """
    try:
        import optuna
    except ImportError:
        raise UserError("a sweep needs optuna: `pip install 'replica-alexnet[sweep]'`") from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


class Study:
    """The trials of a sweep in a storage file.

    Args:
        path: of the file; SQLite where its name ends in one of `SQLITE`, else Optuna's journal.
        out: where the trials' directories are.
        settings: what makes the sweep; another process, or a later one, must have the same.
        space: what is varied.
        sampler, pruner: of `SAMPLERS` and `PRUNERS`.
        seed: of the sampler.
        num_trials: how many there are to be.

    Raises:
        UserError: Optuna is not installed, the file holds something else or is damaged before its
            last line, or the sweep would be new and the directory has trials.
    """

    def __init__(
        self,
        path: Path,
        out: Path,
        settings: Mapping[str, Any],
        space: Sequence[Axis],
        *,
        sampler: str,
        pruner: str,
        seed: int,
        num_trials: int,
    ) -> None:
        self._optuna, self._space, self._seed = require_optuna(), space, seed
        self._sampler, self._num_trials = sampler, num_trials
        # Where the trials' directories are, seen from the storage: both may move together.
        place = os.path.relpath(out.resolve(), path.resolve().parent)
        settings = {**settings, "version": VERSION, "trials are in": place}
        is_known = path.exists() and self._is_known(path, settings)
        if not is_known and (trials := sorted(out.glob("trial-*"))):
            raise UserError(
                f"--out {out}: has {trials[0].name} of another sweep, whose storage is not {path}: "
                "choose another --out, or give that --storage"
            )
        if not is_known:
            self._storage = self._opened(path)
        pruners = self._optuna.pruners
        self._study = self._optuna.create_study(
            storage=self._storage,
            study_name=STUDY,
            pruner=pruners.MedianPruner() if pruner == "median" else pruners.NopPruner(),
            load_if_exists=True,
        )
        self._id = self._storage.get_study_id_from_name(STUDY)
        if not is_known:
            self._study.set_user_attr(SETTINGS, settings)

    def _opened(self, path: Path) -> Any:
        storages = self._optuna.storages
        if path.suffix in SQLITE:
            return storages.get_storage(storages.RDBStorage(f"sqlite:///{path.resolve()}"))
        return storages.JournalStorage(storages.journal.JournalFileBackend(str(path)))

    def _is_known(self, path: Path, settings: Mapping[str, Any]) -> bool:
        """Whether a file holds this sweep, or nothing yet; what it holds else is refused.

        Nothing is written to it, but that a journal loses the half line that a full disk or a power
        cut left at its end.
        """
        wrong = UserError(
            f"--storage {path}: expected the storage of a sweep, found something else: choose "
            "another one"
        )
        if not path.is_file():
            raise wrong
        if path.suffix not in SQLITE:
            self._mend_journal(path)
        try:
            if not path.stat().st_size or (path.suffix in SQLITE and not _tables_of(path)):
                return False
            self._storage = self._opened(path)
            studies = {x.study_name: x.user_attrs for x in self._storage.get_all_studies()}
        except OSError as error:
            raise UserError(f"--storage {path}: cannot be read: {error.strerror}") from None
        except Exception:  # whatever Optuna makes of bytes that are not its own
            raise wrong from None
        is_begun = path.suffix in SQLITE and not studies
        if not is_begun and list(studies) != [STUDY]:
            raise wrong
        if is_begun or SETTINGS not in studies[STUDY]:  # the process that began it has ended
            return False
        theirs = studies[STUDY][SETTINGS]
        if not isinstance(theirs, dict) or theirs.get("version") != VERSION:
            raise wrong
        if differs := [name for name in settings if theirs.get(name) != settings[name]]:
            shown = "; ".join(f"{x}: {theirs.get(x)}, here {settings[x]}" for x in differs)
            raise UserError(
                f"--storage {path}: holds another sweep ({shown}): choose another --out, or "
                "another --storage"
            )
        return True

    def _mend_journal(self, path: Path) -> None:
        """Puts a damaged last line aside; Optuna would append to it, and read no line behind it."""
        if _first_damage(path) is None:
            return
        lock = self._optuna.storages.journal.JournalFileSymlinkLock(str(path))
        lock.acquire()  # else another process may be in the middle of the line
        try:
            if (found := _first_damage(path)) is None:
                return
            line, begin, end = found
            if end < path.stat().st_size:
                raise UserError(
                    f"--storage {path}: damaged: line {line} is no JSON: keep a copy and only the "
                    f"{line - 1} lines before it, then the trials behind them are taken up again, "
                    "or choose another --out"
                )
            aside = path.with_name(f"{path.name}.damaged")
            with path.open("r+b") as file, aside.open("ab") as damaged:
                file.seek(begin)
                damaged.write(file.read())
                damaged.flush()
                os.fsync(damaged.fileno())
                file.truncate(begin)
        finally:
            lock.release()
        print_line(f"{path}: damaged in its last line, which is put aside in {aside}")

    def trials(self) -> list[Asked]:
        """All that were asked for, by number."""
        return [
            Asked(trial.number, self._texts(trial.params), _state_of(trial))
            for trial in self._study.get_trials(deepcopy=False)
        ]

    def ask(self) -> Asked | None:
        """A new trial, or None where there are as many as there are to be."""
        number = len(self._study.get_trials(deepcopy=False))
        if number >= self._num_trials:
            return None
        self._study.sampler = self._sampler_of(number)
        self._study.ask()
        return self.values_of(number)

    def values_of(self, number: int) -> Asked:
        """A trial with its values; those are drawn that an interruption left open."""
        self._study.sampler = self._sampler_of(number)
        trial, values = self._trial(number), {}
        for axis in self._space:
            if isinstance(axis, Values):
                values[axis.field] = trial.suggest_categorical(axis.field, list(axis.texts))
            else:
                suggest = trial.suggest_int if axis.is_whole else trial.suggest_float
                values[axis.field] = suggest(axis.field, axis.low, axis.high, log=axis.is_log)
        return Asked(number, self._texts(values), RUNNING)

    def _texts(self, values: Mapping[str, Any]) -> dict[str, str]:
        """In the order of the space."""
        fields = [axis.field for axis in self._space if axis.field in values]
        return {x: v if isinstance(v := values[x], str) else repr(v) for x in fields}

    def _sampler_of(self, number: int) -> Any:
        """What draws a trial's values, a function of the seed and the trial's number alone.

        So processes that share the work draw different values, and a sweep that was interrupted
        the same ones. Of a grid, Optuna takes the cells in an order of the seed.
        """
        samplers = self._optuna.samplers
        if self._sampler == "grid":
            texts = {x.field: list(x.texts) for x in self._space if not isinstance(x, Range)}
            return samplers.GridSampler(texts, seed=self._seed)
        seed = int(np.random.SeedSequence([self._seed, number]).generate_state(1)[0])
        if self._sampler == "random":
            return samplers.RandomSampler(seed=seed)
        with warnings.catch_warnings():  # of an experimental argument
            warnings.simplefilter("ignore")
            return samplers.TPESampler(seed=seed, constant_liar=True)

    def _trial(self, number: int) -> Any:
        trial_id = self._storage.get_trial_id_from_study_id_trial_number(self._id, number)
        return self._optuna.trial.Trial(self._study, trial_id)

    def report(self, number: int, errors: Sequence[float]) -> bool:
        """Takes the validation errors of a trial's epochs; whether the pruner would end it."""
        trial = self._trial(number)
        known = self._study.get_trials(deepcopy=False)[number].intermediate_values
        for epoch, error in enumerate(errors, start=1):
            if epoch not in known:
                trial.report(error, epoch)
        return bool(errors) and bool(trial.should_prune())

    def finish(self, number: int, outcome: str, error: float | None) -> None:
        """Records what a trial came to; `error` is that of its best epoch, None for no epoch."""
        states = self._optuna.trial.TrialState
        trial_id = self._storage.get_trial_id_from_study_id_trial_number(self._id, number)
        self._storage.set_trial_user_attr(trial_id, OUTCOME, outcome)
        state = states.COMPLETE if outcome == FINISHED else states.PRUNED
        values = None if error is None else [error]
        self._storage.set_trial_state_values(trial_id, state, values)


def _state_of(trial: Any) -> str:
    return str(trial.user_attrs.get(OUTCOME, FINISHED)) if trial.state.is_finished() else RUNNING


def _first_damage(path: Path) -> tuple[int, int, int] | None:
    """Of a journal's first line that is cut or no JSON: number, first byte, and the byte behind it.

    None for a whole journal, and for a file that is none.
    """
    end = 0
    if not os.access(path, os.R_OK):  # who opens it says so
        return None
    with path.open("rb") as file:
        if file.read(len(JOURNAL_BEGINS)) != JOURNAL_BEGINS:
            return None
        file.seek(0)
        for number, line in enumerate(file, start=1):
            begin, end = end, end + len(line)
            try:
                json.loads(line)
            except ValueError:
                return number, begin, end
            if not line.endswith(b"\n"):
                return number, begin, end
    return None


def _tables_of(path: Path) -> list[str]:
    """The tables of an SQLite file; a ValueError or an sqlite3.Error where they are no study's."""
    with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as connection:
        names = [row[0] for row in connection.execute("select name from sqlite_master")]
    if names and "studies" not in names:
        raise ValueError(f"expected the tables of a study, got {names}")
    return names
