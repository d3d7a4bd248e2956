"""The model card of an exported network: Markdown, from what the checkpoint and its run say."""

import math
from pathlib import Path

from data_prep.errors import UserError, command_for, printable
from replica import __version__
from replica.recipes import PAPER, Recipe
from replica.recipes.differences import differences
from replica.recipes.geometry import geometry
from replica.results.details import as_markdown
from replica.results.onnx_graph import INPUT, OUTPUT
from replica.training.checkpoint import Checkpoint
from replica.training.run_directory import METRICS_FILE, MetricsLine, read_metrics
from replica.training.run_record import RUN_FILE, RunRecord, read_run_record

UNKNOWN = "not measured"


def model_card(
    checkpoint: Checkpoint,
    path: Path,
    *,
    file_format: str,
    output: str,
    weights: str,
    system: str | None,
) -> str:
    """What a network is, how it was trained and tested, and how its file is used.

    Args:
        checkpoint: with the weights that are exported.
        path: of its file; what lies beside it says more of its run.
        file_format: of the export.
        output: name of the exported file.
        weights: which ones, of `WEIGHTS`.
        system: whose weights they are, in words; None for those of a run.
    """
    recipe = checkpoint.recipe
    towers = "two towers" if recipe.towers == 2 else "one tower"
    parameters = sum(x.parameters for x in geometry(recipe, num_classes=checkpoint.num_classes))
    parts = [
        f"# {printable(recipe.name)}, {checkpoint.num_classes} classes",
        f"A network of AlexNet's family (Krizhevsky, Sutskever and Hinton, 2012), written by "
        f"replica-alexnet {__version__}. Recipe `{printable(recipe.name)}`: "
        f"{printable(recipe.claim)}.",
        f"{towers.capitalize()}, {len(recipe.convs)} convolutional and "
        f"{len(recipe.fully_connected)} fully connected layers, {parameters:,} parameters.",
        "## Training",
        *_training(checkpoint, path, weights=weights, system=system),
        "## How to use it",
        _usage(recipe, file_format=file_format, output=output),
        "## Differences from the paper",
        _differences(recipe),
        "What the paper's text leaves open, and how it was read, is in REPRODUCE.md of the "
        "project, table Departures.",
    ]
    return "\n\n".join(parts) + "\n"


def _training(checkpoint: Checkpoint, path: Path, *, weights: str, system: str | None) -> list[str]:
    if system is not None:
        return [f"Weights of {printable(system)}, published by others; errors: {UNKNOWN} here."]
    lines = [
        f"- {checkpoint.step:,} steps, seed {checkpoint.seed}, {weights} weights",
        *_of_run(_record_beside(path)),
    ]
    found = _validation_at(path, checkpoint.step)
    has_averages = checkpoint.averages is not None
    if has_averages and weights == "last":  # validation is of the averaged ones
        lines.append(f"- errors on validation images: {UNKNOWN}")
    elif found is not None and not math.isnan(found.top1_error):
        lines.append(
            f"- errors on validation images, central crop: top-1 {found.top1_error:.2%}, "
            f"top-5 {found.top5_error:.2%}"
        )
    elif checkpoint.val_errors:
        lines.append(
            f"- top-1 error on validation images, central crop, after epoch "
            f"{len(checkpoint.val_errors)}: {checkpoint.val_errors[-1]:.2%}"
        )
    else:
        lines.append(f"- errors on validation images: {UNKNOWN}")
    return ["\n".join(lines)]


def _record_beside(path: Path) -> RunRecord | None:
    if not (path.parent / RUN_FILE).is_file():
        return None
    try:
        return read_run_record(path.parent)
    except UserError:  # a card says what is known
        return None


def _of_run(record: RunRecord | None) -> list[str]:
    if record is None:
        return ["- data: not on record"]
    data = record.data
    lines = [
        f"- data: {data.train_images:,} training images, {data.val_images:,} for validation, of "
        f"the manifest with SHA-256 {data.manifest_sha256}"
    ]
    if record.initialized_from is not None:
        new = ", ".join(record.initialized_from.new_layers) or "no layer"
        of = record.initialized_from.sha256
        lines.append(f"- first weights: from a file with SHA-256 {of}; drawn anew: {new}")
    return lines


def _validation_at(path: Path, step: int) -> MetricsLine | None:
    if not (path.parent / METRICS_FILE).is_file():
        return None
    try:
        lines = read_metrics(path.parent)
    except UserError:
        return None
    return next((x for x in reversed(lines) if x.kind == "val" and x.step == step), None)


def _usage(recipe: Recipe, *, file_format: str, output: str) -> str:
    name = printable(output)
    side = recipe.crop_size
    part = "the part of it at the crop's place"
    if recipe.mean == "center":
        part = f"its central {side} x {side}"
    if recipe.pixel_mean:
        part = "which has one color"
    what = (
        f"The input is float32 (N, 3, {side}, {side}): crops of the stored pictures, red first, "
        f"pixels of 0..255 less the mean image ({part}). The output is logits; for a picture, the "
        "softmax is averaged over ten crops."
    )
    if recipe.pixel_divisor or recipe.channels != "rgb":
        what += " What else this network makes of the pixels is a part of it."
    if file_format == "safetensors":
        return (
            "The file has weights, mean image, class names and recipe.\n\n"
            f'```python\nimport replica\n\nnetwork = replica.load("{name}")\n'
            'network.predict("cat.jpg", top=5)\n```\n\n'
            f"`{command_for('replica.train')} --init {name} --new-head` trains on from it. Without "
            f"this project, `safetensors` reads the tensors. {what}"
        )
    mean = (
        "The mean image is base64 of float32, little-endian, rows x columns x 3, in `mean_image`, "
        "its shape in `mean_image_shape`; `replica` is JSON with `class_names` and the recipe."
    )
    if file_format == "onnx":
        return (
            f"{what}\n\n```python\nimport onnxruntime\n\n"
            f'session = onnxruntime.InferenceSession("{name}")\n'
            f'(logits,) = session.run(["{OUTPUT}"], {{"{INPUT}": pixels}})\n'
            f"facts = session.get_modelmeta().custom_metadata_map\n```\n\n{mean}"
        )
    return (
        f"{what} Nothing but PyTorch is needed.\n\n```python\nimport torch\n\n"
        'facts = dict.fromkeys(("replica", "model_card", "mean_image", "mean_image_shape"), "")\n'
        f'program = torch.export.load("{name}", extra_files=facts)\n'
        f"logits = program.module()(pixels)\n```\n\n{mean}"
    )


def _differences(recipe: Recipe) -> str:
    rows = [
        {
            "field": f"`{x.field}`",
            "paper": x.values[0],
            "here": x.values[1],
            "where it stands": x.evidence[1],
        }
        for x in differences(PAPER, recipe)
    ]
    return as_markdown(rows) or "None in the recipe."
