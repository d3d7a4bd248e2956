"""What a trained network says about a picture: its class, and the activations of a layer.

V views, C channels, H rows, W columns, K classes.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from data_prep.errors import UserError, printable
from data_prep.pictures import BadPictureError, PictureFormat, decode_picture, fit_picture
from replica.feed.augment import center_crop, cut_views, less_central_mean, ten_crops
from replica.network.alexnet import AlexNet
from replica.network.initialization import initialize_
from replica.network.own_network import ModelFile
from replica.recipes import Recipe
from replica.recipes.recipe import layer_names, layer_of
from replica.training.checkpoint import BEST, last_whole_checkpoint, weights_in, with_weights
from replica.training.evaluation import mean_probabilities
from replica.training.weights import network_of, open_weights

Picture = str | Path | Image.Image | np.ndarray


@dataclass(frozen=True)
class TrainedNetwork:
    """A network with all that a picture meets on its way through it; made by `replica.load`.

    Attributes:
        module: the network, in evaluation mode: pixels 0..255 minus the mean image to logits.
        recipe: what was trained.
        class_names: readable names, in the order of the logits.
        wnids: the classes' identifiers, in the same order.
        mean_image: float32 (H, W, 3), of the training images; its side is that of every picture
            before it is cropped.
        lacking: layers of another system's file that has no weights of them, which were drawn, and
            single tensors, such as `conv1.bias`, which have the recipe's first values.
    """

    module: AlexNet
    recipe: Recipe
    class_names: list[str]
    wnids: list[str]
    mean_image: np.ndarray
    lacking: tuple[str, ...] = ()

    def predict(self, picture: Picture, *, top: int = 5) -> list[tuple[str, float]]:
        """The most probable classes: softmax averaged over ten crops (paper 4.1).

        Args:
            picture: the path of a JPEG or PNG file, a PIL image, or uint8 (H, W, 3) or (H, W); of
                any size. It is rescaled and its central square cut, as for training (paper 2).
            top: how many classes.

        Returns:
            (class name, probability), the most probable first.

        Raises:
            UserError: there is no such file, it is no readable picture, or the array is not uint8.
        """
        probabilities = self.probabilities(picture)
        order = np.argsort(-probabilities, kind="stable")[:top]
        return [(self.class_names[label], float(probabilities[label])) for label in order]

    def probabilities(self, picture: Picture) -> np.ndarray:
        """Of all classes, averaged over ten crops: float32 (K,); `predict` says of what."""
        self._check_is_trained(self.recipe.layers[-1].name)
        views = self._prepared(picture, ten_crops)
        return self._averaged(views)

    def probabilities_of_views(self, picture: Picture, *, views: str) -> np.ndarray:
        """The same, averaged over `center`, `ten` or `grid:K`, as `replica.test --views`."""
        self._check_is_trained(self.recipe.layers[-1].name)
        return self._averaged(self._prepared(picture, partial(cut_views, views=views)))

    def _averaged(self, views: np.ndarray) -> np.ndarray:
        crops = torch.from_numpy(views).permute(0, 3, 1, 2)
        result: np.ndarray = mean_probabilities(crops, self._logits, num_images=1)[0].numpy()
        return result

    def features(self, picture: Picture, *, layer: str = "fc7") -> np.ndarray:
        """The activations of a layer for the central crop, in evaluation mode.

        Args:
            picture: as for `predict`.
            layer: `conv1` to `fc8` gives what leaves the layer's activation function, before
                normalization, pooling and the multiplication by 0.5 that stands for dropout; any
                other child of the network, such as `conv5_pooling`, what leaves that.

        Returns:
            float32: (units,) of a fully connected layer, (C, H, W) of a convolution.

        Raises:
            UserError: the network has no such layer, or as for `predict`.
        """
        views = torch.from_numpy(self._prepared(picture, center_crop)).permute(0, 3, 1, 2)
        result: np.ndarray = self.layer_outputs(views, layer=layer)[0].contiguous().numpy()
        return result

    def layer_outputs(self, crops: torch.Tensor, *, layer: str) -> torch.Tensor:
        """The activations of a layer for prepared crops; `features` says which, and of what.

        Args:
            crops: float32 (N, 3, crop_size, crop_size), pixels 0..255 minus the mean image.
            layer: as for `features`.

        Returns:
            float32 on the CPU: (N, units) or (N, C, H, W).

        Raises:
            UserError: the network has no such layer.
        """
        children = dict(self.module.named_children())
        child = children.get(f"{layer}_activation", children.get(layer))
        if child is None:
            raise UserError(f"layer {layer}: expected one of {', '.join(children)}")
        self._check_is_trained(layer_of(layer))
        outputs: list[torch.Tensor] = []
        handle = child.register_forward_hook(lambda _, __, output: outputs.append(output))
        try:
            with torch.inference_mode():
                self._logits(crops)
        finally:
            handle.remove()
        return outputs[0].float().cpu()

    def _check_is_trained(self, layer: str) -> None:
        """Refuses what comes out of layers that were drawn."""
        names = layer_names(self.recipe)
        up_to = names[: names.index(layer) + 1] if layer in names else []
        if drawn := [name for name in self.lacking if name in up_to]:
            trained = ", ".join(name for name in names if name not in self.lacking)
            raise UserError(
                f"{layer}: the file has no weights of {', '.join(drawn)}, which were drawn: "
                f"expected features of {trained}, or weights trained from them with --init"
            )

    def _logits(self, crops: torch.Tensor) -> torch.Tensor:
        weight = next(self.module.parameters())
        logits: torch.Tensor = self.module(crops.to(weight.device, weight.dtype))
        return logits

    def _prepared(self, picture: Picture, cut: Callable[..., np.ndarray]) -> np.ndarray:
        """Views of a picture minus the mean image: float32 (V, H, W, 3)."""
        image = _square(picture, len(self.mean_image))
        if self.recipe.mean == "center":
            return less_central_mean(cut(image, crop_size=self.recipe.crop_size), self.mean_image)
        return cut(image - self.mean_image, crop_size=self.recipe.crop_size)


def _square(picture: Picture, side: int) -> np.ndarray:
    """A picture of any kind as uint8 (side, side, 3)."""
    picture_format = PictureFormat(image_size=side)
    if isinstance(picture, np.ndarray):
        is_rgb = picture.ndim == 2 or (picture.ndim == 3 and picture.shape[2] == 3)
        if picture.dtype != np.uint8 or not is_rgb or not picture.size:
            raise UserError(
                "expected a picture as uint8 (height, width, 3) or (height, width), got "
                f"{picture.dtype} {picture.shape}"
            )
        picture = Image.fromarray(picture)
    try:
        if isinstance(picture, Image.Image):
            return fit_picture(picture, picture_format)
        return decode_picture(Path(picture).read_bytes(), picture_format).image
    except BadPictureError as error:
        raise UserError(f"{picture}: {error}") from None
    except OSError as error:
        raise UserError(f"{picture}: expected a JPEG or PNG file: {error.strerror}") from None


def checkpoint_file(path: Path) -> Path:
    """The file that a path means: of a run's directory the best one, before it the newest.

    Raises:
        UserError: the directory has none.
    """
    if not path.is_dir():
        return path
    best = path / BEST
    return best if best.exists() else last_whole_checkpoint(path)[0]


def load(
    path: str | Path,
    *,
    device: str | torch.device | None = None,
    weights: str | None = None,
    model: str | None = None,
) -> TrainedNetwork:
    """Opens a checkpoint for predictions: weights, recipe, class names and mean image are in it.

    Args:
        path: a checkpoint of `replica.train`, such as `runs/first/best.pt`, or the directory of a
            run, whose best (or, before the first validation, newest) one is meant; or what
            `replica.export` wrote as `.safetensors`; or weights of other systems: torchvision's
            `alexnet` (a state dict), Caffe's `bvlc_alexnet` and `bvlc_reference_caffenet`
            (`.caffemodel`), or arrays of the latter (`.npz`). Those of others neither name their
            classes nor hold a mean image: classes are `class 0` and so on, and the mean is the
            system's color.
        device: of PyTorch; by default the first GPU where there is one, else the CPU.
        weights: `averaged` (of a run with `--ema`) or `last`; by default the averaged ones where
            the checkpoint has them.
        model: `FILE:FUNCTION` of a user's own network, the one that it was trained with; the file
            is run.

    Raises:
        UserError: there is no checkpoint, it is damaged, or it has no such weights; or the file is
            another one.
    """
    given = None if model is None else ModelFile.read(model)
    path = checkpoint_file(Path(path))
    opened = open_weights(path, mapped=True)
    checkpoint = opened.checkpoint
    checkpoint = with_weights(checkpoint, weights_in(checkpoint, weights, path=path))
    module = network_of(path, checkpoint, given)
    lacking: list[str] = []
    if checkpoint.model_file is None:
        lacking = opened.lacking(checkpoint.recipe, num_classes=checkpoint.num_classes)
    if lacking and not opened.is_partial:
        raise UserError(f"{path}: expected all of {opened.title}, lacks {', '.join(lacking)}")
    if lacking:
        initialize_(module, seed=checkpoint.seed)
        print(f"{printable(str(path))}: drawn, as not in it: {', '.join(lacking)}", file=sys.stderr)
    module.load_state_dict(checkpoint.model, strict=not lacking)
    chosen = device or ("cuda" if torch.cuda.is_available() else "cpu")
    return TrainedNetwork(
        module=module.eval().to(chosen),
        recipe=checkpoint.recipe,
        class_names=checkpoint.class_names,
        wnids=checkpoint.wnids,
        mean_image=checkpoint.mean_image.clone().numpy(),  # of the file nothing stays mapped
        lacking=tuple(lacking),
    )
