"""Caffe's `.caffemodel` without Caffe: a network's layers in the wire format of protobuf.

Of Caffe's messages only the fields that hold weights are described here, by their numbers in
caffe.proto; all others are passed over. Numbers are described as bytes, which is how a packed list
of them is written, so that millions of them become one array and no objects.
"""

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.errors import UserError
from data_prep.files import read_plain_file

SUFFIX = ".caffemodel"
# The published ones have 244 MB; protobuf itself reads up to 2 GB.
MOST_BYTES = 1 << 30
_MOST_NAMED = 4
# Which of the two normalizes first, and which pools first.
_NAMES = {
    ("norm1", "pool1"): ("Caffe's bvlc_alexnet", "caffe-alexnet"),
    ("pool1", "norm1"): ("Caffe's bvlc_reference_caffenet", "caffenet"),
}
# Message -> field -> number, kind, and whether it is a list. Layers have other numbers since 2014.
_MESSAGES: dict[str, dict[str, tuple[int, str, bool]]] = {
    "Shape": {"dim": (1, "int64", True)},
    "Blob": {
        "num": (1, "int64", False),
        "channels": (2, "int64", False),
        "height": (3, "int64", False),
        "width": (4, "int64", False),
        "data": (5, "bytes", True),
        "shape": (7, "Shape", False),
        "double_data": (8, "bytes", True),
    },
    "OlderLayer": {"name": (4, "bytes", False), "blobs": (6, "Blob", True)},
    "Layer": {"name": (1, "bytes", False), "blobs": (7, "Blob", True)},
    "Net": {
        "name": (1, "bytes", False),
        "layers": (2, "OlderLayer", True),
        "layer": (100, "Layer", True),
    },
}


def is_caffemodel(path: Path) -> bool:
    """Whether a file says by its name that it is one: its bytes have no mark."""
    return path.suffix.lower() == SUFFIX


def read_caffemodel(path: Path) -> tuple[str, str, dict[str, np.ndarray]]:
    """Reads the weights of bvlc_alexnet or bvlc_reference_caffenet, or of a net made from one.

    Args:
        path: of the file.

    Returns:
        In words what it is, the name of its recipe, and parameter name -> array of float32 or
        float64, (kernels, channels, rows, columns), (units, inputs) or (units,). Channels of
        `conv1` are blue, green, red. Layers with names of their own are left out.

    Raises:
        UserError: there is no protobuf, the file is cut or damaged, or it is of another network.
    """
    net_class, decode_error = _protobuf(path)
    data = read_plain_file(path, at_most=MOST_BYTES)
    try:
        net = net_class.FromString(data)
    except decode_error:
        raise UserError(
            f"{path}: damaged: expected a .caffemodel, got a file that is cut, or none of Caffe's: "
            "get it again"
        ) from None
    layers = [(_text(layer.name), layer.blobs) for layer in (*net.layers, *net.layer)]
    names = [name for name, _ in layers]
    order = tuple(name for name in names if name in ("norm1", "pool1"))
    if order not in _NAMES:
        known = " or ".join(title for title, _ in _NAMES.values())
        some = ", ".join(names[:_MOST_NAMED]) or "no layers"
        raise UserError(
            f"{path}: expected {known}, got the network {_text(net.name)!r} with {some}"
            + (f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else "")
        )
    title, recipe = _NAMES[order]
    arrays: dict[str, np.ndarray] = {}
    for name, blobs in layers:
        if not _is_known(name) or not blobs:
            continue
        if f"{name}.weight" in arrays or len(blobs) > 2:
            raise UserError(f"{path}: expected {title}, got {name} with more than two arrays")
        for kind, blob in zip(("weight", "bias"), blobs, strict=False):
            rank = 1 if kind == "bias" else 4 if name.startswith("conv") else 2
            arrays[f"{name}.{kind}"] = _array(path, f"{name}.{kind}", blob, rank)
    return title, recipe, arrays


def _is_known(name: str) -> bool:
    return name in (*(f"conv{i}" for i in range(1, 6)), "fc6", "fc7", "fc8")


def _text(name: bytes) -> str:
    return name.decode(errors="replace")


def _array(path: Path, name: str, blob: Any, rank: int) -> np.ndarray:
    """The numbers of a blob; older ones have four sides, of which the first ones are 1."""
    data, dtype = b"".join(blob.data), "<f4"
    if blob.double_data:
        data, dtype = b"".join(blob.double_data), "<f8"
    sides = list(blob.shape.dim) or [blob.num, blob.channels, blob.height, blob.width]
    while len(sides) > rank and sides[0] == 1:
        sides.pop(0)
    count = 1
    for side in sides:
        count *= max(side, 0)
    if count * np.dtype(dtype).itemsize != len(data) or count == 0:
        shown = " x ".join(map(str, sides[:_MOST_NAMED]))
        raise UserError(
            f"{path}: damaged: {name}: expected {shown} numbers, got {len(data)} bytes: get "
            "it again"
        )
    return np.frombuffer(data, dtype).reshape(sides)


def _protobuf(path: Path) -> tuple[Any, type[Exception]]:
    """The message that a file holds, and what is raised where it is none."""
    try:
        from google.protobuf.message import DecodeError
    except ImportError:
        raise UserError(
            f"{path}: a .caffemodel needs protobuf: `pip install 'replica-alexnet[caffe]'`"
        ) from None
    return _net_class(), DecodeError


@cache
def _net_class() -> Any:
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    field = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="weights.proto", package="replica.caffe")
    plain = {"int64": field.TYPE_INT64, "bytes": field.TYPE_BYTES}
    for name, of in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for field_name, (number, kind, is_list) in of.items():
            label = field.LABEL_REPEATED if is_list else field.LABEL_OPTIONAL
            entry = message.field.add(name=field_name, number=number, label=label)
            entry.type = plain.get(kind, field.TYPE_MESSAGE)
            if kind not in plain:
                entry.type_name = f".replica.caffe.{kind}"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("replica.caffe.Net"))
