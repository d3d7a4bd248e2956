"""Checkpoints: one file that `torch.load(FILE, weights_only=True)` opens, whole or not there.

The file is a dict: `format`, `version`, `model` and `velocities` (parameter name -> whole tensor,
however many devices the run had), `step`, `epoch`, `val_errors`, `best_step`, `recipe`,
`num_classes`, `seed`, `wnids`, `class_names`, `mean_image`, `eigenvalues`, `eigenvectors`. Its
SHA-256 stands beside it. The newest few stay, and the one with the lowest validation error, to
which `best.pt` points.
"""

import hashlib
import io
import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import torch

from data_prep.errors import UserError
from data_prep.files import sha256_of_file, write_whole
from replica.network.alexnet import whole_shapes
from replica.recipes import Recipe, from_record
from replica.recipes.record import differing_fields

FORMAT_NAME = "replica-checkpoint"
FORMAT_VERSION = 2
# The one before the last stays, in case that the disk damages the last.
NUM_KEPT = 2
BEST = "best.pt"
_NAME = re.compile(r"checkpoint-(\d{8})\.pt")


def checkpoint_path(run_dir: Path, step: int) -> Path:
    """Where the checkpoint after a number of steps stands."""
    return run_dir / f"checkpoint-{step:08d}.pt"


def checkpoints_of(run_dir: Path) -> list[Path]:
    """The checkpoints of a run, oldest first."""
    return sorted(path for path in run_dir.glob("checkpoint-*.pt") if _NAME.fullmatch(path.name))


def _digest_path(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")


def sha256_beside(path: Path) -> str | None:
    """The SHA-256 that stands beside a checkpoint, or None."""
    digest = _digest_path(path.resolve())
    return digest.read_text().split()[0] if digest.is_file() else None


def save_checkpoint(run_dir: Path, content: dict[str, Any], *, keep: int = NUM_KEPT) -> Path:
    """Writes a checkpoint, then removes all but the last `keep` and the best.

    The digest is there before the file has its name, so a crash at any moment leaves whole pairs.

    Raises:
        UserError: the disk refuses; the earlier checkpoints stay.
    """
    path = checkpoint_path(run_dir, content["step"])
    buffer = io.BytesIO()
    torch.save({"format": FORMAT_NAME, "version": FORMAT_VERSION, **content}, buffer)
    data = buffer.getvalue()
    digest = hashlib.sha256(data).hexdigest()
    if path.exists():
        path.unlink()  # A step that was reached again after its digest or file was damaged.
    write_whole(_digest_path(path), f"{digest}  {path.name}\n".encode())
    write_whole(path, data)
    best = content["best_step"] and checkpoint_path(run_dir, content["best_step"])
    if best and best.exists():
        _point_to(run_dir / BEST, best.name)
    for old in checkpoints_of(run_dir)[:-keep]:
        if old != best:
            old.unlink()
            _digest_path(old).unlink(missing_ok=True)
    return path


def _point_to(link: Path, name: str) -> None:
    """Makes a link to a file beside it, or makes it point there at once."""
    if link.is_symlink() and link.readlink() == Path(name):
        return
    temporary = link.with_name(link.name + ".part")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(name)
    temporary.replace(link)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Opens a checkpoint and checks that it is whole, ours, and consistent with its own recipe.

    Raises:
        UserError: it is not; every mismatch is named.
    """
    if not path.is_file():
        raise UserError(f"{path}: expected a checkpoint, found no file")
    digest = _digest_path(path.resolve())  # that of a link stands beside the file
    if digest.is_file():
        expected = digest.read_text().split()[:1]
        if expected != [sha256_of_file(path)]:
            raise UserError(
                f"{path}: damaged: its SHA-256 is not the one in {digest.name}: use "
                "another checkpoint of the run, or train again"
            )
    foreign = UserError(
        f"{path}: expected a checkpoint that `python -m replica.train` wrote, got a file that "
        "PyTorch cannot open as tensors"
    )
    # Older formats of torch.save are bare pickles: nothing of ours, and not looked into.
    if not zipfile.is_zipfile(path):
        raise foreign
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError):
        raise foreign from None
    if not isinstance(content, dict) or content.get("format") != FORMAT_NAME:
        raise UserError(f"{path}: expected a checkpoint of this project, got another kind of file")
    if content.get("version") != FORMAT_VERSION:
        raise UserError(
            f"{path}: expected checkpoint version {FORMAT_VERSION}, got {content.get('version')}: "
            "use the version of the project that wrote it"
        )
    recipe = from_record(content["recipe"])
    shapes = whole_shapes(recipe, num_classes=content["num_classes"])
    problems = []
    for kind in ("model", "velocities"):
        tensors = content[kind]
        problems += [f"{kind} lacks {name}" for name in shapes if name not in tensors]
        problems += [f"{kind} has an unknown {name}" for name in tensors if name not in shapes]
        problems += [
            f"{kind} has {name} of shape {tuple(tensors[name].shape)} instead of {tuple(shape)}"
            for name, shape in shapes.items()
            if name in tensors and tensors[name].shape != shape
        ]
    if problems:
        raise UserError(f"{path}: does not fit its own recipe: {'; '.join(problems)}")
    return content


def last_whole_checkpoint(run_dir: Path) -> tuple[Path, dict[str, Any], list[str]]:
    """The newest checkpoint of a run that is whole.

    Returns:
        Its path, its content, and one line for each damaged one that was passed over.

    Raises:
        UserError: there is none.
    """
    passed_over: list[str] = []
    for path in reversed(checkpoints_of(run_dir)):
        try:
            return path, load_checkpoint(path), passed_over
        except UserError as error:
            passed_over.append(str(error))
    raise UserError(
        f"{run_dir}: expected a whole checkpoint there, found "
        + (f"none: {'; '.join(passed_over)}" if passed_over else "none: train first")
    )


def check_fits_recipe(path: Path, content: dict[str, Any], recipe: Recipe) -> None:
    """Refuses a checkpoint of another recipe; only the number of epochs may differ.

    Raises:
        UserError: the differing fields, all of them.
    """
    differing = [
        difference
        for difference in differing_fields(from_record(content["recipe"]), recipe)
        if not difference.startswith("epochs:")
    ]
    if differing:
        raise UserError(
            f"{path}: is of another recipe (there against here: {'; '.join(differing)}): give "
            "the same --recipe and --set, or none of them, to continue it"
        )


def check_fits_classes(path: Path, content: dict[str, Any], wnids: list[str], place: Path) -> None:
    """Refuses data whose classes are not those that the checkpoint was trained on.

    Raises:
        UserError: the number, or the first class that differs.
    """
    ours = content["wnids"]
    if len(ours) != len(wnids):
        raise UserError(
            f"{path}: has {len(ours)} classes, {place} has {len(wnids)}: give the data that it was "
            "trained on with --data"
        )
    for label, (one, other) in enumerate(zip(ours, wnids, strict=True)):
        if one != other:
            raise UserError(
                f"{path}: class {label} is {one}, in {place} it is {other}: give the data that it "
                "was trained on with --data"
            )


def check_fits_network(
    path: Path, content: dict[str, Any], recipe: Recipe, *, num_classes: int, new: tuple[str, ...]
) -> list[str]:
    """Refuses a checkpoint whose weights a network cannot take over (`--init`).

    Args:
        path, content: of the checkpoint.
        recipe, num_classes: of the network.
        new: layers that are drawn anew, and so need not fit.

    Returns:
        The layers of the checkpoint that the network does not have.

    Raises:
        UserError: every tensor that is lacking or has another shape.
    """
    shapes = whole_shapes(recipe, num_classes=num_classes)
    layers = {name.split(".")[0] for name in shapes}
    unknown = [layer for layer in new if layer not in layers]
    if unknown:
        raise UserError(
            f"--new-layers {','.join(unknown)}: expected layers of recipe {recipe.name}: "
            f"{', '.join(sorted(layers))}"
        )
    stored = content["model"]
    problems = []
    for name, shape in shapes.items():
        if name.split(".")[0] in new:
            continue
        if name not in stored:
            problems.append(f"{name} is not in it")
        elif stored[name].shape != shape:
            problems.append(f"{name} is {tuple(stored[name].shape)}, expected {tuple(shape)}")
    if problems:
        raise UserError(
            f"--init {path}: does not fit recipe {recipe.name}: {'; '.join(problems)}: draw those "
            "layers anew with --new-head (the last one) or --new-layers"
        )
    return sorted({name.split(".")[0] for name in stored} - layers)
