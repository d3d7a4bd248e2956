"""run.json: what a run was given, on what data and machine, and by which processes.

A record is written when a session of a run begins; those of earlier sessions are kept in it. Keys
are format and stay. A field that an older version did not write has its old meaning.
"""

import json
import os
import platform
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import torch

import cuda_ext
from cuda_ext.convolution_ways import ALL_PRODUCTS, Products
from data_prep.errors import UserError
from data_prep.files import read_plain_file, write_whole
from data_prep.manifest_json import strict_json
from replica import __version__
from replica.distributed.devices import Devices
from replica.network.own_network import ModelFile
from replica.network.products import resolved_products
from replica.recipes import Recipe, from_record
from replica.training.checkpoint import NUM_KEPT
from replica.training.numerics import NumericsInForce
from replica.training.options import Say

RUN_FILE = "run.json"
# A session of a run with 8 ranks has about 5 kB.
MAX_RECORD_BYTES = 64 << 20
VERSION = 1  # also of records without one
_MACHINE = ("versions", "git_revision", "hardware", "operators")

_Record = TypeVar("_Record")


@dataclass(frozen=True, kw_only=True)
class Initialization:
    """The file that the weights of a run come from (`--init`), but for layers drawn anew."""

    checkpoint: str
    sha256: str
    new_layers: Sequence[str]


@dataclass(frozen=True, kw_only=True)
class DataRecord:
    """What a run was trained on."""

    directory: str
    manifest_sha256: str
    train_images: int
    val_images: int
    test_images: int = 0


@dataclass(frozen=True, kw_only=True)
class RankRecord:
    """One process of a run; `data_index` is its copy, `tower` None where it held both towers."""

    rank: int
    host: str = ""
    pid: int
    device: str
    data_index: int
    tower: int | None
    parameters: int
    threads: int
    memory: str = ""


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """What run.json says of the last session of a run.

    Attributes:
        earlier_sessions: their records, the oldest first.
        recipe_record: what `to_record` made of the recipe.
        resumed_from: name and SHA-256 of a checkpoint of its own.
        gradient_buckets: names of the tensors whose gradients the copies add up together, in the
            order in which they leave during backward; None: each by itself after backward.
        convolution_ways: what `numerics.convolution` came to, by layer, where the run began; None
            where it was not recorded.
        model_file: of a user's own network; None for that of the recipe.
        machine: of `describe_machine`.
    """

    earlier_sessions: Sequence[Mapping[str, Any]] = ()
    recipe_record: dict[str, Any]
    num_classes: int
    seed: int
    command: list[str]
    started_at_step: int
    resumed_from: Mapping[str, str | None] | None = None
    initialized_from: Initialization | None = None
    steps: int | None = None
    checkpoint_steps: int | None = None
    keep: int = NUM_KEPT
    loader_threads: int = 1
    data: DataRecord
    devices: Devices
    gradient_buckets: list[list[str]] | None = None
    convolution_ways: dict[str, Products] | None = None
    numerics: NumericsInForce
    model_file: ModelFile | None = None
    ranks: list[RankRecord]
    machine: Mapping[str, Any]

    @property
    def recipe(self) -> Recipe:
        """What was trained; a record of another version of the project may be refused.

        Raises:
            UserError: another version of the project wrote it.
        """
        return from_record(self.recipe_record)

    @property
    def model_words(self) -> list[str]:
        """`--model` as the command had it, of a user's own network; else none."""
        if self.model_file is None:
            return []
        given = [after for word, after in pairwise(self.command) if word == "--model"]
        given += [x.partition("=")[2] for x in self.command if x.startswith("--model=")]
        return ["--model", given[-1] if given else str(self.model_file)]


def read_fields(kind: type[_Record], content: Any) -> _Record:
    """A record of the fields that this version knows; those that are lacking have their default.

    Raises:
        ValueError: it is no JSON object, or lacks a field that has no default.
    """
    if not isinstance(content, dict):
        raise ValueError(f"expected an object, got {content!r:.60}")
    known = fields(kind)  # type: ignore[arg-type]
    if missing := [x.name for x in known if x.default is MISSING and x.name not in content]:
        raise ValueError(f"it lacks {', '.join(missing)}")
    return kind(**{x.name: content[x.name] for x in known if x.name in content})


def read_run_record(run_dir: Path) -> RunRecord:
    """Reads run.json.

    Raises:
        UserError: there is none, it is damaged, or a later version of the project wrote it.
    """
    content = read_run_json(run_dir)
    try:
        return _record_of(content)
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise _damaged(run_dir / RUN_FILE, error) from None


def read_run_json(run_dir: Path) -> dict[str, Any]:
    """What run.json holds: `begun` (seconds since 1970), `earlier_sessions`, and the last session.

    Raises:
        UserError: there is none, it is damaged, or a later version of the project wrote it.
    """
    path = run_dir / RUN_FILE
    if not path.is_file():
        raise UserError(
            f"{run_dir}: expected the {RUN_FILE} of a run there, found none: a run that failed "
            "before it had one is begun by its own command, without --resume"
        )
    data = read_plain_file(path, at_most=MAX_RECORD_BYTES)
    try:
        content = strict_json(data)
        if not isinstance(content, dict):
            raise ValueError("expected an object")
    except ValueError as error:
        raise _damaged(path, error) from None
    if content.get("version", VERSION) != VERSION:
        raise UserError(
            f"{path}: expected version {VERSION} of a run's record, got {content['version']}: use "
            "the version of the project that wrote it"
        )
    # What every version of the project has written.
    begun, sessions = content.get("begun"), content.get("earlier_sessions")
    if not isinstance(begun, int | float) or not isinstance(sessions, list):
        raise _damaged(path, "it lacks begun or earlier_sessions")
    return content


def _damaged(path: Path, why: object) -> UserError:
    return UserError(
        f"{path}: damaged: expected the record of a run ({why}): restore the file, or begin a new "
        "run with --init and a checkpoint of this one"
    )


def _record_of(content: dict[str, Any]) -> RunRecord:
    """The record of the last session; what is damaged in it raises whatever it raises."""
    ranks = [read_fields(RankRecord, rank) for rank in content["ranks"]]
    initialized = content.get("initialised_from")
    # Before devices were recorded, the ranks say which.
    split = 1 if ranks[0].tower is None else 2
    devices = {"kind": ranks[0].device.split(":")[0], "num_processes": len(ranks), "split": split}
    records = {
        "recipe_record": content["recipe"],
        "initialized_from": initialized and read_fields(Initialization, initialized),
        "data": read_fields(DataRecord, content["data"]),
        "devices": read_fields(Devices, content.get("devices", devices)),
        # Before there was a choice, it was the library.
        "model_file": ModelFile.from_record(content.get("model_file")),
        "numerics": read_fields(NumericsInForce, {"convolution": "library", **content["numerics"]}),
        "ranks": ranks,
        "machine": {name: content[name] for name in _MACHINE},
    }
    return read_fields(RunRecord, content | records)


def write_run_record(run_dir: Path, record: RunRecord) -> None:
    """Writes run.json; what it held of earlier sessions is kept in `earlier_sessions`."""
    path = run_dir / RUN_FILE
    first, sessions = time.time(), []
    if path.exists():
        earlier = read_run_json(run_dir)
        first, sessions = earlier["begun"], earlier.pop("earlier_sessions")
        sessions = [*sessions, earlier]
    known = asdict(record)
    machine = known.pop("machine")
    known["earlier_sessions"] = sessions
    renamed = {"recipe_record": "recipe", "initialized_from": "initialised_from"}
    fields_of_run = {renamed.get(k, k): v for k, v in known.items()}
    content = {"version": VERSION, "begun": first, **fields_of_run, **machine}
    write_whole(path, (json.dumps(content, indent=1) + "\n").encode())


def ways_to_continue(
    record: RunRecord, recipe: Recipe, devices: Devices, *, place: Path, say: Say
) -> dict[str, Products] | None:
    """Who multiplied in each convolution of a run that goes on, on any machine with such devices.

    None where nobody wrote it down, or where the run goes on on devices of another kind: then what
    `numerics` has decides, and a line says so.

    Raises:
        UserError: what the record says is not for the convolutions of the recipe.
    """
    asked, began = record.numerics.convolution, record.convolution_ways
    if record.model_file is not None:
        return None
    if began is None or devices.kind != record.devices.kind:
        if asked == "measured":
            known = f"{RUN_FILE} has nothing of it for {devices.kind}"
            say(f"convolution: as measured on this machine ({known})")
        return None
    here = resolved_products(recipe, asked, kind=devices.kind, split=devices.split)
    if (
        not isinstance(began, dict)
        or [*began] != [*here]
        or not all(products in ALL_PRODUCTS for products in began.values())
    ):
        rule = f"one of {', '.join(ALL_PRODUCTS)} for each of {', '.join(here)}"
        raise _damaged(place / RUN_FILE, f"convolution_ways: {rule}, got {began}")
    for layer, products in began.items():
        if products != here[layer]:
            say(f"convolution: {layer} as the run began, {products} (measured here: {here[layer]})")
    return began


# --- The machine


def describe_machine(kind: str) -> dict[str, Any]:
    """Versions and hardware, for the record of a run."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    num_gpus = torch.cuda.device_count() if kind == "cuda" else 0
    return {
        "versions": {
            "replica": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
        },
        "git_revision": git_revision(),
        "hardware": {
            "cpu": names[0] if names else platform.processor() or platform.machine(),
            "cpu_capability": torch.backends.cpu.get_cpu_capability(),
            "cores": os.cpu_count(),
            "gpus": [torch.cuda.get_device_name(i) for i in range(num_gpus)],
        },
        "operators": cuda_ext.implementations(),
    }


def git_revision() -> str | None:
    """The commit of this checkout, with `+changes` where files differ from it; None outside git."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(Path(__file__).resolve().parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        revision = git("describe", "--always", "--abbrev=40", "--exclude=*")
        return revision + ("+changes" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return None
