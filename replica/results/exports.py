"""A trained network in a format of other programs, with all that is to be known of it."""

import base64
import io
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch

from data_prep.errors import UserError
from replica.network.alexnet import AlexNet
from replica.network.layers import plain_operators
from replica.recipes.geometry import IMAGE_CHANNELS
from replica.results.model_card import model_card
from replica.results.onnx_graph import to_onnx
from replica.training.checkpoint import Checkpoint, weights_in, with_weights
from replica.training.safetensors_file import facts_of, to_safetensors
from replica.training.weights import Weights, open_weights

# By the format, what files of it end in.
FORMATS = {"safetensors": ".safetensors", "onnx": ".onnx", "pt2": ".pt2"}


@dataclass(frozen=True)
class Export:
    """What is to be written.

    Attributes:
        data: the bytes of the file.
        card: the model card that is in it, Markdown.
        what: it is, in words.
    """

    data: bytes
    card: str
    what: str


def export(path: Path, file_format: str, *, output: str, weights: str | None) -> Export:
    """Makes the file of a network.

    Args:
        path: a checkpoint, or another file that `replica.load` reads.
        file_format: of `FORMATS`.
        output: the name of the file, for the model card.
        weights: of `WEIGHTS`; None for the averaged ones where the checkpoint has them.

    Raises:
        UserError: there is no such network, it is not whole, or a library is not installed.
    """
    opened = open_weights(path)
    _check_is_whole(path, opened)
    which = weights_in(opened.checkpoint, weights, path=path)
    checkpoint = with_weights(opened.checkpoint, which)
    card = model_card(
        checkpoint,
        path,
        file_format=file_format,
        output=output,
        weights=which,
        system=opened.title,
    )
    of_run = f"step {checkpoint.step}, {which} weights"
    what = f"recipe {checkpoint.recipe.name}, {opened.title or of_run}"
    if file_format == "safetensors":
        data = to_safetensors(checkpoint, system=opened.title, card=card)
        return Export(data, card, what)
    facts = {
        "replica": facts_of(checkpoint, system=opened.title),
        "model_card": card,
        "mean_image": _as_text(checkpoint.mean_image),
        "mean_image_shape": " x ".join(map(str, checkpoint.mean_image.shape)),
    }
    if file_format == "onnx":
        recipe, num_classes = checkpoint.recipe, checkpoint.num_classes
        data = to_onnx(recipe, checkpoint.model, num_classes=num_classes, facts=facts)
    else:
        data = to_program(checkpoint, facts=facts)
    return Export(data, card, what)


def _check_is_whole(path: Path, opened: Weights) -> None:
    checkpoint = opened.checkpoint
    if checkpoint.model_file is not None:
        raise UserError(
            f"{path}: expected the network of a recipe, got that of a file, "
            f"{checkpoint.model_file}: torch.load gives its weights"
        )
    lacking = opened.lacking(checkpoint.recipe, num_classes=checkpoint.num_classes)
    if lacking:
        raise UserError(
            f"{path}: expected all layers of {opened.title}, lacks {', '.join(lacking)}: train "
            "them with --init, and export the run's checkpoint"
        )


def _as_text(mean_image_HWC: torch.Tensor) -> str:
    """Base64 of float32, little-endian, row by row."""
    return base64.b64encode(mean_image_HWC.float().numpy().astype("<f4").tobytes()).decode()


def to_program(checkpoint: Checkpoint, *, facts: dict[str, str]) -> bytes:
    """The network as `torch.export.save` writes it: PyTorch's operators, any batch size.

    Args:
        checkpoint: whose `model` is exported.
        facts: what stands beside the program, name of the file -> text.
    """
    recipe = checkpoint.recipe
    module = AlexNet(recipe, num_classes=checkpoint.num_classes).eval()
    module.load_state_dict(checkpoint.model)
    crops = torch.zeros(2, IMAGE_CHANNELS, recipe.crop_size, recipe.crop_size)
    batch = torch.export.Dim("batch", min=1)
    with plain_operators(), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of PyTorch's own code
        program = torch.export.export(module, (crops,), dynamic_shapes={"x": {0: batch}})
    for node in program.graph.nodes:  # they have paths of this machine
        node.meta.pop("stack_trace", None)
    buffer = io.BytesIO()
    torch.export.save(program, buffer, extra_files=facts)
    return buffer.getvalue()
