"""Networks as `.safetensors` files: tensors that any program reads, and all that leads back here.

Tensors are the network's parameters and running statistics by their names (`conv1.weight`), beside
`mean_image`, `eigenvalues` and `eigenvectors`. Of the header's metadata, `replica` holds as JSON
what else `replica.load` and `--init` need, `sha256` a digest of both, `model_card` Markdown.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from data_prep.errors import UserError, command_for
from data_prep.manifest_json import strict_json
from replica.network.alexnet import whole_shapes
from replica.recipes import from_record, to_record
from replica.recipes.rules import MOST
from replica.training.checkpoint import Checkpoint

SUFFIX = ".safetensors"
FORMAT_NAME, FORMAT_VERSION = "replica-network", 1
EXTRA = "`pip install 'replica-alexnet[export]'`"
# Tensors beside those of the network, and whether they have such a shape.
STATISTICS: dict[str, Callable[[tuple[int, ...]], bool]] = {
    "mean_image": lambda shape: len(shape) == 3 and shape[0] == shape[1] and shape[2] == 3,
    "eigenvalues": lambda shape: shape == (3,),
    "eigenvectors": lambda shape: shape == (3, 3),
}
_TYPES = ("F32", "F64")
# A message names so many tensors that do not fit.
_MOST_NAMED = 3


def facts_of(checkpoint: Checkpoint, *, system: str | None) -> str:
    """As JSON, what is to be known of a network beside its tensors.

    Args:
        checkpoint: of the network.
        system: whose weights they are, in words; None for those of a run.
    """
    names = ("num_classes", "seed", "step", "epoch", "val_errors", "wnids", "class_names")
    content = {
        "format": FORMAT_NAME,
        "version": FORMAT_VERSION,
        "system": system,
        "recipe": to_record(checkpoint.recipe),
        **{name: getattr(checkpoint, name) for name in names},
    }
    return json.dumps(content)


def to_safetensors(checkpoint: Checkpoint, *, system: str | None, card: str) -> bytes:
    """The network of a checkpoint as the bytes of a file; `facts_of` says what `system` is.

    Raises:
        UserError: safetensors is not installed.
    """
    library = _library("--format safetensors")
    tensors = {name: x.contiguous() for name, x in checkpoint.model.items()}
    tensors |= {name: getattr(checkpoint, name).contiguous() for name in STATISTICS}
    facts = facts_of(checkpoint, system=system)
    # `format` is what other programs look for.
    metadata = {"format": "pt", "replica": facts, "sha256": _digest(facts, tensors)}
    data: bytes = library.torch.save(tensors, metadata | {"model_card": card})
    return data


def is_safetensors(path: Path) -> bool:
    """Whether a file says by its name that it is one."""
    return path.suffix.lower() == SUFFIX


@dataclass(frozen=True)
class _Header:
    """What a tensor is, before it is read."""

    shape: tuple[int, ...]
    dtype: str


def read_safetensors(path: Path) -> tuple[Checkpoint, str | None]:
    """Reads what `to_safetensors` made: a checkpoint without velocities, and whose weights it has.

    Raises:
        UserError: it is cut, damaged or of another origin, it does not fit its own recipe, or
            safetensors is not installed.
    """
    library = _library(str(path))
    try:
        with library.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            headers = {
                name: _Header(tuple(x.get_shape()), x.get_dtype()) for name, x in slices.items()
            }
            facts = _facts(path, metadata)
            known = _known(path, facts, headers)
            tensors = {name: file.get_tensor(name) for name in headers}
    except UserError:
        raise
    except library.SafetensorError as error:
        raise UserError(
            f"{path}: damaged: expected a .safetensors file, got one that is cut, or another kind "
            f"({' '.join(str(error).split())[:80]}): export the network again"
        ) from None
    if metadata.get("sha256") != _digest(metadata["replica"], tensors):
        raise UserError(
            f"{path}: damaged: its tensors or its description are not those that were exported: "
            "export the network again"
        )
    statistics = {name: tensors.pop(name) for name in STATISTICS}
    return Checkpoint(**known, **statistics, model=tensors), facts["system"]


def _facts(path: Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    """What `facts_of` wrote."""
    if "replica" not in metadata:
        raise UserError(
            f"{path}: expected a network that `{command_for('replica.export')}` wrote, got tensors "
            "without a recipe"
        )
    try:
        facts = strict_json(metadata["replica"].encode())
        if not isinstance(facts, dict) or facts["format"] != FORMAT_NAME:
            raise ValueError(f"expected {FORMAT_NAME}")
    except (ValueError, LookupError) as error:
        raise _damaged(path, error) from None
    if facts.get("version") != FORMAT_VERSION:
        raise UserError(
            f"{path}: expected version {FORMAT_VERSION} of an exported network, got "
            f"{facts.get('version')}: use the version of the project that wrote it"
        )
    return facts


def _known(path: Path, facts: dict[str, Any], headers: dict[str, _Header]) -> dict[str, Any]:
    """The fields of a checkpoint but for its tensors, which fit them."""
    try:
        recipe = from_record(facts["recipe"])
        num_classes, names = facts["num_classes"], (facts["wnids"], facts["class_names"])
        numbers = [facts[name] for name in ("seed", "step", "epoch")]
        if not all(type(x) is int and x >= 0 for x in numbers):
            raise ValueError("expected whole numbers")
        if type(num_classes) is not int or not 2 <= num_classes <= MOST:
            raise ValueError(f"expected 2 to {MOST} classes")
        if not all(isinstance(x, list) and all(isinstance(y, str) for y in x) for x in names):
            raise ValueError("expected lists of names")
        if not all(isinstance(x, int | float) for x in facts["val_errors"]):
            raise ValueError("expected error rates")
        if not isinstance(facts["system"], str | None):
            raise ValueError("expected the name of a system")
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except (ValueError, LookupError, TypeError) as error:
        raise _damaged(path, error) from None
    own = {name: x for name, x in headers.items() if name not in STATISTICS}
    shapes = whole_shapes(recipe, num_classes=num_classes, statistics=True)
    problems = [f"it lacks {name}" for name in shapes if name not in own]
    problems += [f"it has an unknown {name}" for name in own if name not in shapes]
    problems += [
        f"it has {name} of shape {own[name].shape} instead of {tuple(shape)}"
        for name, shape in shapes.items()
        if name in own and own[name].shape != tuple(shape)
    ]
    problems += [f"it lacks {name}" for name in STATISTICS if name not in headers]
    problems += [
        f"it has {name} of shape {headers[name].shape}"
        for name, is_right in STATISTICS.items()
        if name in headers and not is_right(headers[name].shape)
    ]
    if not problems and headers["mean_image"].shape[0] < recipe.crop_size:
        problems.append(f"its mean_image is smaller than crops of {recipe.crop_size}")
    problems += [
        f"it has {name} of {x.dtype}" for name, x in headers.items() if x.dtype not in _TYPES
    ]
    if problems:
        more = len(problems) - _MOST_NAMED
        named = "; ".join(problems[:_MOST_NAMED]) + (f"; and {more} more" if more > 0 else "")
        raise UserError(f"{path}: does not fit its own recipe {recipe.name}: {named}")
    fields = ("num_classes", "seed", "step", "epoch", "val_errors", "wnids", "class_names")
    return {
        **{name: facts[name] for name in fields},
        "recipe": recipe,
        "velocities": {},
        "best_step": None,
    }


def _damaged(path: Path, why: object) -> UserError:
    return UserError(
        f"{path}: damaged: what it says of itself is no network of this project ({why}): export "
        "the network again"
    )


def _digest(facts: str, tensors: Mapping[str, torch.Tensor]) -> str:
    digest = hashlib.sha256(facts.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _library(what: str) -> Any:
    try:
        import safetensors
        import safetensors.torch
    except ImportError:
        raise UserError(f"{what}: needs safetensors: {EXTRA}") from None
    return safetensors
