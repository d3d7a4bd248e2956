"""The network of a recipe as an ONNX model, built node by node from the recipe.

Nothing of PyTorch's exporters is in between, so a node is what the recipe says, under the name that
the layer has here: `conv1`, `conv1_activation`, `conv1_lrn`, `conv1_pooling`, ..., `fc8`. The
input is as for `AlexNet.forward`. N images, C channels, H rows, W columns, K classes.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from data_prep.errors import UserError
from replica.network.layers import BATCH_EPSILON
from replica.recipes import Conv, FullyConnected, Recipe
from replica.recipes.geometry import IMAGE_CHANNELS, LayerGeometry, geometry
from replica.training.safetensors_file import EXTRA

INPUT, OUTPUT = "pixels", "logits"
# Of 2020, with all operators that are needed; whoever reads a later one reads it, too.
OPSET, IR_VERSION = 13, 7
# Of protobuf, less what describes the network.
MOST_BYTES = (1 << 31) - (1 << 20)


def to_onnx(
    recipe: Recipe, model: Mapping[str, torch.Tensor], *, num_classes: int, facts: dict[str, str]
) -> bytes:
    """The bytes of an ONNX model, with any number of images in a batch.

    Args:
        recipe: of the network.
        model: its parameters and running statistics by name, float32.
        num_classes: how many logits there are.
        facts: what the model's metadata say, name -> text.

    Raises:
        UserError: onnx is not installed, or the weights are more than a file can hold.
    """
    num_bytes = 4 * sum(tensor.numel() for tensor in model.values())
    if num_bytes > MOST_BYTES:
        raise UserError(
            f"--format onnx: expected weights of at most {MOST_BYTES / 1e9:.1f} GB, which is what "
            f"such a file holds, got {num_bytes / 1e9:.1f} GB: use --format safetensors"
        )
    graph = _Graph(recipe, model, num_classes=num_classes)
    data: bytes = graph.whole(facts).SerializeToString()
    return data


class _Graph:
    """The nodes so far; `self.last` is the name of what the last one gives."""

    def __init__(
        self, recipe: Recipe, model: Mapping[str, torch.Tensor], *, num_classes: int
    ) -> None:
        try:
            import onnx
        except ImportError:
            raise UserError(f"--format onnx: needs onnx: {EXTRA}") from None
        self.onnx: Any = onnx
        self.recipe, self.model, self.num_classes = recipe, model, num_classes
        self.nodes: list[Any] = []
        self.constants: dict[str, Any] = {}
        self.last = INPUT

    def whole(self, facts: dict[str, str]) -> Any:
        """The checked model of all layers."""
        recipe, helper = self.recipe, self.onnx.helper
        self._input()
        rows = {x.name: x for x in geometry(recipe, num_classes=self.num_classes)}
        for conv in recipe.convs:
            self._conv(conv, rows[conv.name])
        self.add("Flatten", "flatten", axis=1)
        for layer in recipe.fully_connected:
            self._fully_connected(layer, rows[layer.name])
        self.nodes[-1].output[0] = OUTPUT
        number, side = self.onnx.TensorProto.FLOAT, recipe.crop_size
        what = f"crops, red first, pixels of 0..255 less the mean image's: N x 3 x {side} x {side}"
        shape = ["batch", IMAGE_CHANNELS, side, side]
        graph = helper.make_graph(
            self.nodes,
            recipe.name,
            [helper.make_tensor_value_info(INPUT, number, shape, what)],
            [helper.make_tensor_value_info(OUTPUT, number, ["batch", self.num_classes])],
            list(self.constants.values()),
        )
        model = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=IR_VERSION,
            producer_name="replica",
        )
        helper.set_model_props(model, facts)
        self.onnx.checker.check_model(model)
        return model

    def add(self, operator: str, name: str, *constants: str, **attributes: Any) -> None:
        """A node that reads the last one and these constants."""
        inputs = [self.last, *constants]
        self.nodes.append(self.onnx.helper.make_node(operator, inputs, [name], name, **attributes))
        self.last = name

    def constant(self, name: str, value: Any) -> str:
        """A float32 or int64 array by name; returns the name."""
        array = np.ascontiguousarray(value)
        self.constants[name] = self.onnx.numpy_helper.from_array(array, name)
        return name

    def number(self, name: str, value: float) -> str:
        """A float32 constant of no dimension."""
        return self.constant(name, np.float32(value).reshape(()))

    def parameter(self, name: str) -> str:
        """One of the network's tensors."""
        return self.constant(name, self.model[name].detach().float().numpy())

    def reshape(self, name: str, *shape: int) -> None:
        """0 stands for the side that is there, -1 for what is left."""
        self.add("Reshape", name, self.constant(f"{name}.shape", np.array(shape, np.int64)))

    def _input(self) -> None:
        if divisor := self.recipe.pixel_divisor:
            values = np.array(divisor, np.float32).reshape(1, -1, 1, 1)
            self.add("Div", "input_division", self.constant("input.divisor", values))
        if self.recipe.channels == "bgr":
            order = self.constant("input.order", np.array([2, 1, 0], np.int64))
            self.add("Gather", "input_order", order, axis=1)

    def _conv(self, conv: Conv, row: LayerGeometry) -> None:
        groups = self.recipe.towers if row.reads == "own tower" else 1
        before, after = row.padding
        pads = {"pads": [before, before, after, after]}
        strides = {"strides": [row.stride] * 2}
        if conv.is_local:
            self._local(row, groups, **pads, **strides)
        else:
            tensors = [self.parameter(f"{conv.name}.{kind}") for kind in ("weight", "bias")]
            self.add("Conv", conv.name, *tensors, group=groups, **pads, **strides)
        shape = row.output_shape
        for following in self.recipe.order_of(conv):
            if following == "activation":
                self._activation(conv)
            elif following == "normalization":
                for kind in conv.normalization:
                    self._normalization(conv.name, kind, shape)
            elif conv.pooling != "none":
                self._pooling(conv, row)
                shape = row.handed_on
        self._dropout(conv)

    def _local(self, row: LayerGeometry, groups: int, **where: Any) -> None:
        """Kernels of each place: the patches of a place, times the weights of the place."""
        channels, (num_kernels, _, side, _, rows, columns) = row.input_shape[0], row.weight_shape
        # A kernel for each place of a patch that picks the value there, of each channel by itself.
        picks = np.eye(side * side, dtype=np.float32).reshape(-1, 1, side, side)
        name = self.constant(f"{row.name}.picks", np.tile(picks, (channels, 1, 1, 1)))
        self.add("Conv", f"{row.name}_patches", name, group=channels, **where)
        self.reshape(f"{row.name}_by_place", 0, groups, -1, rows * columns)
        self.add("Transpose", f"{row.name}_places_first", perm=[3, 1, 0, 2])
        # (places, groups, C read * side * side, kernels of a group)
        weight = self.model[f"{row.name}.weight"].detach().float()
        weight = weight.reshape(groups, num_kernels // groups, -1, rows * columns)
        name = self.constant(f"{row.name}.weight", weight.permute(3, 0, 2, 1).numpy())
        self.add("MatMul", f"{row.name}_products", name)
        self.add("Transpose", f"{row.name}_places_last", perm=[2, 1, 3, 0])
        self.reshape(f"{row.name}_maps", 0, num_kernels, rows, columns)
        self.add("Add", row.name, self.parameter(f"{row.name}.bias"))

    def _pooling(self, conv: Conv, row: LayerGeometry) -> None:
        window, stride = self.recipe.pooling_of(conv)
        # How far the last window, which the border cuts off, reaches beyond the map; what lies
        # there is not looked at, and an average is that of what lies on the map.
        beyond = (row.handed_on[-1] - 1) * stride + window - row.output_shape[-1]
        self.add(
            "MaxPool" if conv.pooling == "max" else "AveragePool",
            f"{conv.name}_pooling",
            kernel_shape=[window] * 2,
            strides=[stride] * 2,
            pads=[0, 0, *[max(0, beyond)] * 2],
        )

    def _fully_connected(self, layer: FullyConnected, row: LayerGeometry) -> None:
        groups = self.recipe.towers if row.reads == "own tower" else 1
        if groups == 1:
            tensors = [self.parameter(f"{layer.name}.{kind}") for kind in ("weight", "bias")]
            self.add("Gemm", layer.name, *tensors, transB=1)
        else:  # channels stand tower by tower
            weight = self.model[f"{layer.name}.weight"].detach().float()
            weight = weight.reshape(groups, -1, weight.shape[1]).transpose(1, 2)
            self.reshape(f"{layer.name}_by_tower", 0, groups, -1)
            self.add("Transpose", f"{layer.name}_towers_first", perm=[1, 0, 2])
            name = self.constant(f"{layer.name}.weight", weight.numpy())
            self.add("MatMul", f"{layer.name}_products", name)
            self.add("Transpose", f"{layer.name}_towers_last", perm=[1, 0, 2])
            self.reshape(f"{layer.name}_joined", 0, layer.num_units)
            self.add("Add", layer.name, self.parameter(f"{layer.name}.bias"))
        for kind in layer.normalization:
            self._normalization(layer.name, kind, row.output_shape)
        self._activation(layer)
        self._dropout(layer)

    def _activation(self, layer: Conv | FullyConnected) -> None:
        operator = {"relu": "Relu", "tanh": "Tanh"}.get(self.recipe.activation_of(layer))
        if operator is not None:
            self.add(operator, f"{layer.name}_activation")

    def _dropout(self, layer: Conv | FullyConnected) -> None:
        """The paper's multiplication at test (4.2)."""
        recipe = self.recipe
        if layer.dropout and recipe.dropout_scale == "test" and recipe.dropout_keep != 1:
            keep = self.number(f"{layer.name}.keep", recipe.dropout_keep)
            self.add("Mul", f"{layer.name}_dropout", keep)

    def _normalization(self, layer: str, kind: str, shape: tuple[int, ...]) -> None:
        recipe, name = self.recipe, f"{layer}_{kind.replace('-', '_')}"
        if kind == "batch":
            tensors = ("weight", "bias", "running_mean", "running_var")
            names = [self.parameter(f"{name}.{x}") for x in tensors]
            self.add("BatchNormalization", name, *names, epsilon=BATCH_EPSILON)
        elif kind == "same-map":
            self._same_map(name)
        else:
            # ONNX divides alpha by the size; windows that end at the border of a tower are those
            # of a map of one tower.
            towers = recipe.towers if recipe.lrn_scope == "tower" else 1
            letters = {"alpha": recipe.lrn_alpha * recipe.lrn_n, "beta": recipe.lrn_beta}
            letters |= {"bias": recipe.lrn_k, "size": recipe.lrn_n}
            channels, *maps = shape
            if towers > 1:
                self.reshape(f"{name}_by_tower", -1, channels // towers, *maps)
            self.add("LRN", name if towers == 1 else f"{name}_towers", **letters)
            if towers > 1:
                self.reshape(name, -1, channels, *maps)

    def _same_map(self, name: str) -> None:
        """Squares over n x n under x, of plain operators: ONNX has none for it."""
        recipe, x = self.recipe, self.last
        n, reach = recipe.same_map_n, recipe.same_map_n // 2
        self.add("Mul", f"{name}_squares", x)
        self.add(
            "AveragePool",
            f"{name}_means",  # over n * n places, with zeros beyond the border
            kernel_shape=[n] * 2,
            pads=[reach] * 4,
            count_include_pad=1,
        )
        factor = self.number(f"{name}.alpha", recipe.same_map_alpha * n * n)
        self.add("Mul", f"{name}_sums", factor)
        self.add("Add", f"{name}_base", self.number(f"{name}.k", recipe.same_map_k))
        self.add("Pow", f"{name}_power", self.number(f"{name}.beta", -recipe.same_map_beta))
        self.add("Mul", name, x)
