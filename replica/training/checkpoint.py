"""Checkpoints: one file that `torch.load(FILE, weights_only=True)` opens, whole or not there.

The file is a dict of `format`, `version` and the fields of `Checkpoint`. It is a zip file, and its
comment is the SHA-256 of all that stands before the comment, so a copy under any name is checked
when it is opened. The SHA-256 of the whole file stands beside it, for `sha256sum --check`.
The newest few stay, and the one with the lowest validation error, to which `best.pt` points.
"""

import hashlib
import io
import os
import re
import zipfile
from dataclasses import MISSING, dataclass, fields, replace
from pathlib import Path

import torch

from data_prep.errors import UserError, command_for
from data_prep.files import read_plain_file, sha256_of_file, write_whole
from replica.network.alexnet import whole_shapes
from replica.network.own_network import ModelFile
from replica.recipes import Recipe, from_record, to_record
from replica.recipes.recipe import layer_of
from replica.recipes.record import differing_fields
from replica.training.loss_scale import problems_of
from replica.training.torch_optimizers import has_second_moments

FORMAT_NAME = "replica-checkpoint"
FORMAT_VERSION = 2
# The one before the last stays, in case that the disk damages the last.
NUM_KEPT = 2
BEST = "best.pt"
# The sets of weights that a checkpoint may have: of `--ema`, and those of the last update.
WEIGHTS = ("averaged", "last")
_NAME = re.compile(r"checkpoint-(\d{8})\.pt")
# The last record of a zip file begins so and has so many bytes before its comment; the last two of
# them say how long the comment is.
_START_OF_ZIP, _END_OF_ZIP, _END_BYTES, _LENGTH_BYTES = b"PK", b"PK\5\6", 22, 2
_DIGEST_BYTES = 2 * hashlib.sha256().digest_size  # in hexadecimal
_COMMENT_LENGTH = _DIGEST_BYTES.to_bytes(_LENGTH_BYTES, "little")
MAX_DIGEST_FILE_BYTES = 1 << 12


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A run after some steps.

    Attributes:
        model, velocities: parameter name -> whole tensor, however many devices the run had.
        step: how many steps were done.
        epoch: that of the next step, counted from 1.
        val_errors: top-1 error after each epoch.
        best_step: after how many steps it was lowest, that of a session's end in mid-epoch
            counted; None before the first validation.
        recipe, num_classes, seed: of the run; the recipe's record in the file.
        wnids, class_names: of the data, in the order of the labels.
        mean_image: float32 (H, W, 3), of the training images; what the recipe subtracts.
        eigenvalues, eigenvectors: of their RGB covariance, (3,) and (3, 3) in columns.
        averages: parameter name -> average of a recipe with `ema`; None, and not in the file,
            without it. Running statistics have none: they are those of the model.
        second_moments: parameter name -> Adam's; None, and not in the file, without it.
        loss_scale: the fields of `LossScale`; None, and not in the file, but for fp16.
        model_file: of a user's own network; None, and not in the file, for that of the recipe.
    """

    model: dict[str, torch.Tensor]
    velocities: dict[str, torch.Tensor]
    step: int
    epoch: int
    val_errors: list[float]
    best_step: int | None
    recipe: Recipe
    num_classes: int
    seed: int
    wnids: list[str]
    class_names: list[str]
    mean_image: torch.Tensor
    eigenvalues: torch.Tensor
    eigenvectors: torch.Tensor
    averages: dict[str, torch.Tensor] | None = None
    second_moments: dict[str, torch.Tensor] | None = None
    loss_scale: dict[str, torch.Tensor] | None = None
    model_file: ModelFile | None = None


def weights_in(checkpoint: Checkpoint, asked: str | None, *, path: Path) -> str:
    """Which of `WEIGHTS` to use: those that were asked for, else the averaged ones where they are.

    Raises:
        UserError: averaged ones were asked for, and there are none.
    """
    if asked not in (None, *WEIGHTS):
        raise UserError(f"weights {asked}: expected {' or '.join(WEIGHTS)}")
    if asked == "averaged" and checkpoint.averages is None:
        raise UserError(
            f"weights averaged: expected a checkpoint of a run with --ema, {path} has none: "
            "take the last"
        )
    return asked or ("last" if checkpoint.averages is None else "averaged")


def with_weights(checkpoint: Checkpoint, asked: str | None) -> Checkpoint:
    """The checkpoint with the averaged weights as its model, unless the last were asked for."""
    if asked == "last" or checkpoint.averages is None:
        return checkpoint
    return replace(checkpoint, model={**checkpoint.model, **checkpoint.averages})


def checkpoint_path(run_dir: Path, step: int) -> Path:
    """Where the checkpoint after a number of steps stands."""
    return run_dir / f"checkpoint-{step:08d}.pt"


def checkpoints_of(run_dir: Path) -> list[Path]:
    """The checkpoints of a run, oldest first."""
    return sorted(path for path in run_dir.glob("checkpoint-*.pt") if _NAME.fullmatch(path.name))


def _digest_path(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")


def save_checkpoint(run_dir: Path, checkpoint: Checkpoint, *, keep: int = NUM_KEPT) -> Path:
    """Writes a checkpoint, then removes all but the last `keep` whole ones and the best.

    Nothing is removed before the new file is whole on the disk, also where it replaces one of the
    same step: a crash at any moment leaves as many whole checkpoints as there were. Those that stay
    are read for it; a damaged one is removed, as is one of a later step: the run went on from an
    earlier one because it was damaged.

    Raises:
        UserError: the disk refuses; the earlier checkpoints stay.
    """
    path = checkpoint_path(run_dir, checkpoint.step)
    content = {name: x for name, x in vars(checkpoint).items() if name not in _absent(checkpoint)}
    content["recipe"] = to_record(checkpoint.recipe)
    if checkpoint.model_file is not None:
        content["model_file"] = checkpoint.model_file.record()
    buffer = io.BytesIO()
    torch.save({"format": FORMAT_NAME, "version": FORMAT_VERSION, **content}, buffer)
    buffer.seek(-_LENGTH_BYTES, os.SEEK_END)
    buffer.write(_COMMENT_LENGTH)
    buffer.write(hashlib.sha256(buffer.getbuffer()).hexdigest().encode())
    # That of an earlier file of this step is not to stand beside this one.
    _digest_path(path).unlink(missing_ok=True)
    digest = write_whole(path, buffer.getbuffer())
    write_whole(_digest_path(path), f"{digest}  {path.name}\n".encode())
    best = checkpoint_path(run_dir, checkpoint.best_step) if checkpoint.best_step else None
    if best and best.exists():
        _point_to(run_dir / BEST, best.name)
    pointed_to = (run_dir / BEST).resolve()  # also where a resumed run knows no best step yet
    left = keep - 1
    for other in reversed(checkpoints_of(run_dir)):
        if other == path:
            continue
        if left and other < path and not _is_damaged(other):
            left -= 1
        elif other.resolve() != pointed_to:
            _digest_path(other).unlink(missing_ok=True)  # first: it is never there alone
            other.unlink()
    for unfinished in run_dir.glob("checkpoint-*.part"):  # of a session that was killed
        unfinished.unlink()
    return path


def _absent(checkpoint: Checkpoint) -> set[str]:
    """The fields that a file without `--ema` or fp16 does not have, as in older versions."""
    optional = {field.name for field in fields(Checkpoint) if field.default is not MISSING}
    return {name for name in optional if getattr(checkpoint, name) is None}


def _point_to(link: Path, name: str) -> None:
    """Makes a link to a file beside it, or makes it point there at once."""
    temporary = link.with_name(link.name + ".part")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(name)
    temporary.replace(link)


def _damage(path: Path) -> str | None:
    """Why a file is surely not what was written, or None; older ones may have no SHA-256."""
    with path.open("rb") as file:
        is_zip = file.read(len(_START_OF_ZIP)) == _START_OF_ZIP
        file.seek(max(0, file.seek(0, os.SEEK_END) - _END_BYTES - _DIGEST_BYTES))
        tail = file.read()
    beside = _digest_path(path.resolve())  # that of a link stands beside the file
    end, own_digest = tail[:_END_BYTES], tail[_END_BYTES:]
    if end.startswith(_END_OF_ZIP) and end.endswith(_COMMENT_LENGTH):
        if sha256_of_file(path, but_last=_DIGEST_BYTES).encode() != own_digest:
            return "its SHA-256 is not the one that it ends with"
    elif beside.is_file():
        digest = read_plain_file(beside, at_most=MAX_DIGEST_FILE_BYTES)
        if digest.split()[:1] != [sha256_of_file(path).encode()]:
            return f"its SHA-256 is not the one in {beside.name}"
    elif is_zip:
        # Before checkpoints held their digest, their zip file had no comment.
        end = tail[-_END_BYTES:]
        try:
            is_whole = end.startswith(_END_OF_ZIP) and end.endswith(b"\0" * _LENGTH_BYTES)
            with zipfile.ZipFile(path) as members:
                is_whole = is_whole and members.testzip() is None
        except Exception:  # whatever zipfile makes of a damaged file
            is_whole = False
        if not is_whole:
            return "it is cut off, or some of its bytes are others"
    return None


def _is_damaged(path: Path) -> bool:
    """Whether it surely is; one that cannot be read now may be whole."""
    try:
        return _damage(path) is not None
    except OSError:
        return False


def load_checkpoint(path: Path, *, mapped: bool = False) -> Checkpoint:
    """Opens a whole checkpoint of this project that fits its recipe, or names every mismatch.

    Args:
        path: of the file.
        mapped: whether tensors stay in the file, as for a caller that copies a few of them at once:
            a prediction needs no velocities.

    Raises:
        UserError: it is not; every mismatch is named.
    """
    if path.is_dir():
        raise UserError(
            f"{path}: expected a checkpoint, got a directory: give a file such as {path / BEST}"
        )
    if not path.is_file():
        raise UserError(f"{path}: expected a checkpoint, found no file")
    way_out = "use another checkpoint of the run, or train again"
    try:
        damage = _damage(path)
    except OSError as error:
        damage = f"it cannot be read ({error.strerror})"
    if damage:
        raise UserError(f"{path}: damaged: {damage}: {way_out}")
    foreign = UserError(
        f"{path}: expected a checkpoint that `{command_for('replica.train')}` wrote, got a "
        "file that PyTorch cannot open as tensors"
    )
    # Older formats of torch.save are bare pickles: not of this project, and not opened.
    if not zipfile.is_zipfile(path):
        raise foreign
    try:
        content = torch.load(path, mmap=mapped, map_location="cpu", weights_only=True)
    except Exception:  # whatever PyTorch makes of another file
        raise foreign from None
    if not isinstance(content, dict) or content.get("format") != FORMAT_NAME:
        raise UserError(f"{path}: expected a checkpoint of this project, got another kind of file")
    if content.get("version") != FORMAT_VERSION:
        raise UserError(
            f"{path}: expected checkpoint version {FORMAT_VERSION}, got {content.get('version')}: "
            "use the version of the project that wrote it"
        )
    try:
        known = {
            field.name: content[field.name]
            for field in fields(Checkpoint)
            if field.default is MISSING or field.name in content
        }
        known["model_file"] = ModelFile.from_record(known.get("model_file"))
        checkpoint = Checkpoint(**{**known, "recipe": from_record(content["recipe"])})
        problems = _mismatches(checkpoint)
    except UserError:
        raise
    except Exception as error:  # fields that are lacking, or of another type
        raise UserError(
            f"{path}: damaged: what it holds is no checkpoint ({error!r}): {way_out}"
        ) from None
    if problems:
        raise UserError(f"{path}: does not fit its own recipe: {'; '.join(problems)}")
    return checkpoint


def _mismatches(checkpoint: Checkpoint) -> list[str]:
    """Where the tensors of a checkpoint are not those of its recipe."""
    problems = []
    sets = {"model": checkpoint.model, "velocities": checkpoint.velocities}
    if checkpoint.recipe.ema is not None or checkpoint.averages is not None:
        sets["averages"] = checkpoint.averages or {}
    if has_second_moments(checkpoint.recipe) or checkpoint.second_moments is not None:
        sets["second_moments"] = checkpoint.second_moments or {}
    for kind, tensors in sets.items():
        if checkpoint.model_file is None:
            shapes = whole_shapes(
                checkpoint.recipe, num_classes=checkpoint.num_classes, statistics=kind == "model"
            )
        else:  # what the file's network has is known where it is built
            shapes = {name: checkpoint.model[name].shape for name in tensors}
        problems += [f"{kind} lacks {name}" for name in shapes if name not in tensors]
        problems += [f"{kind} has an unknown {name}" for name in tensors if name not in shapes]
        problems += [
            f"{kind} has {name} of shape {tuple(tensors[name].shape)} instead of {tuple(shape)}"
            for name, shape in shapes.items()
            if name in tensors and tensors[name].shape != shape
        ]
    return problems + ([] if checkpoint.loss_scale is None else problems_of(checkpoint.loss_scale))


def last_whole_checkpoint(run_dir: Path) -> tuple[Path, Checkpoint, list[str]]:
    """The newest whole checkpoint of a run: its path, itself, and a line for each passed over.

    Raises:
        UserError: there is none.
    """
    passed_over: list[str] = []
    for path in reversed(checkpoints_of(run_dir)):
        try:
            return path, load_checkpoint(path), passed_over
        except UserError as error:
            passed_over.append(str(error))
    found = "; ".join(passed_over) or "train first"
    raise UserError(f"{run_dir}: expected a whole checkpoint there, found none: {found}")


def check_fits_recipe(path: Path, began_with: Recipe, recipe: Recipe) -> None:
    """Raises a UserError with all fields that differ, except the number of epochs."""
    differing = [x for x in differing_fields(began_with, recipe) if not x.startswith("epochs:")]
    if differing:
        raise UserError(
            f"{path}: is of another recipe (there against here: {'; '.join(differing)}): give "
            "the same --recipe and --set, or none of them, to continue it"
        )


def check_fits_classes(path: Path, trained_on: list[str], wnids: list[str], place: Path) -> None:
    """Raises a UserError where classes of the data are not those that it was trained on."""
    way_out = "give the data that it was trained on with --data"
    if len(trained_on) != len(wnids):
        have = f"has {len(trained_on)} classes, {place} has {len(wnids)}"
        raise UserError(f"{path}: {have}: {way_out}")
    for label, (one, other) in enumerate(zip(trained_on, wnids, strict=True)):
        if one != other:
            have = f"class {label} is {one}, in {place} it is {other}"
            raise UserError(f"{path}: {have}: {way_out}")


def check_fits_network(
    path: Path,
    model: dict[str, torch.Tensor],
    recipe: Recipe,
    *,
    num_classes: int,
    new: tuple[str, ...],
) -> list[str]:
    """Refuses a checkpoint whose weights a network cannot take over, but for its `new` layers.

    Returns the layers of the checkpoint that the network does not have.

    Raises:
        UserError: every tensor that is lacking or has another shape.
    """
    shapes = whole_shapes(recipe, num_classes=num_classes, statistics=True)
    layers = {layer_of(name) for name in shapes}
    unknown = [layer for layer in new if layer not in layers and layer not in shapes]
    if unknown:
        raise UserError(
            f"--new-layers {','.join(unknown)}: expected layers of recipe {recipe.name}: "
            f"{', '.join(sorted(layers))}"
        )
    problems = []
    for name, shape in shapes.items():
        if layer_of(name) in new or name in new:
            continue
        if name not in model:
            problems.append(f"{name} is not in it")
        elif model[name].shape != shape:
            problems.append(f"{name} is {tuple(model[name].shape)}, expected {tuple(shape)}")
    if problems:
        raise UserError(
            f"--init {path}: does not fit recipe {recipe.name}: {'; '.join(problems)}: draw those "
            "layers anew with --new-head (the last one) or --new-layers"
        )
    return sorted({layer_of(name) for name in model} - layers)
