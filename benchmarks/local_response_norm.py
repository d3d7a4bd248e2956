"""The operator on the CPU: multiples of a copy, and of what other libraries take for the same.

Into a given output: against copying x once between tensors that are there. As called in a training
step: with tensors allocated on the way, by the same allocator for all candidates. A library that is
not installed is named and left out.
"""

import argparse
import atexit
import ctypes
import importlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks.measure import Row, interleaved, rows_of, say
from cuda_ext import local_response_norm, toolchain
from data_prep.errors import UserError
from replica import paper
from replica.training.allocator import keep_large_blocks
from replica.training.numerics import compiler_problem

SHAPES = ("16,96,55,55", "128,96,55,55", "128,256,27,27")
LAYOUTS = {"NCHW": torch.contiguous_format, "channels last": torch.channels_last}
N, K, ALPHA, BETA = paper.LRN_N, paper.LRN_K, paper.LRN_ALPHA, paper.LRN_BETA
NUMBERS = (N, K, ALPHA, BETA, 1)  # as the registered operators take them, one tower
Candidates = dict[str, Callable[[], Any]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this benchmark."""
    parser.add_argument(
        "--shape",
        action="append",
        metavar="N,C,H,W",
        help=f"one or more; default: {' and '.join(SHAPES)}",
    )
    parser.add_argument("--rounds", type=int, default=21, help="default: %(default)s")
    parser.add_argument("--threads", type=int, help="default: one per core")
    parser.add_argument("--no-peers", action="store_true", help="leave the other libraries out")


def parse_shape(text: str) -> tuple[int, ...]:
    """N,C,H,W.

    Raises:
        UserError: it is something else.
    """
    parts = text.split(",")
    if len(parts) != 4 or not all(part.isdigit() and int(part) > 0 for part in parts):
        raise UserError(f"--shape {text}: expected four positive numbers such as {SHAPES[0]}")
    return tuple(map(int, parts))


def measure(arguments: argparse.Namespace) -> list[Row]:
    """All rows."""
    shapes = [parse_shape(text) for text in arguments.shape or SHAPES]
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    say(f"memory: {keep_large_blocks()}")
    rows = []
    for shape in shapes:
        for layout, memory_format in LAYOUTS.items():
            say(f"{shape} {layout}")
            x = (torch.randn(shape) * 30).contiguous(memory_format=memory_format)
            prefix = f"{'x'.join(map(str, shape))} {layout}: "
            rows += _prefixed(prefix, _into_given_output(x, arguments.rounds))
            rows += _prefixed(prefix, _as_in_training(x, layout, arguments))
    return rows


def _prefixed(prefix: str, rows: list[Row]) -> list[Row]:
    return [
        Row(
            prefix + row.name,
            row.value,
            row.unit,
            row.baseline and prefix + row.baseline,
            row.ratio,
            row.note,
        )
        for row in rows
    ]


def _into_given_output(x: torch.Tensor, rounds: int) -> list[Row]:
    operators = torch.ops.replica
    candidates: Candidates = {}
    for dtype, name in ((torch.float32, "float32"), (torch.bfloat16, "bfloat16")):
        values, gradient = x.to(dtype), torch.randn_like(x).to(dtype)
        out = torch.empty_like(values)

        def forward(values: torch.Tensor = values, out: torch.Tensor = out) -> None:
            operators.local_response_norm_out(values, *NUMBERS, out=out)

        def both(
            values: torch.Tensor = values,
            gradient: torch.Tensor = gradient,
            out: torch.Tensor = out,
        ) -> None:
            operators.local_response_norm_out(values, *NUMBERS, out=out)
            operators.local_response_norm_backward_out(gradient, values, *NUMBERS, out=out)

        def copy(values: torch.Tensor = values, out: torch.Tensor = out) -> None:
            out.copy_(values)

        candidates[f"copy {name}"] = copy
        candidates[f"forward {name}"] = forward
        candidates[f"forward + backward {name}"] = both
    medians = interleaved(candidates, rounds=rounds, seconds=4.0)
    baselines = {
        "forward float32": "copy float32",
        "forward + backward float32": "copy float32",
        "forward bfloat16": "forward float32",
        "forward + backward bfloat16": "forward + backward float32",
    }
    return rows_of(medians, baselines=baselines)


def _replicas(x: torch.Tensor) -> torch.Tensor:
    return local_response_norm(x, n=N, k=K, alpha=ALPHA, beta=BETA)


def _torchs(x: torch.Tensor) -> torch.Tensor:
    # torch divides alpha by n.
    return F.local_response_norm(x, N, alpha=ALPHA * N, beta=BETA, k=K)


def _as_in_training(x: torch.Tensor, layout: str, arguments: argparse.Namespace) -> list[Row]:
    leaf, gradient = x.detach().requires_grad_(), torch.randn_like(x)
    functions = {"replica": _replicas}
    skipped: list[Row] = []
    peers: Candidates = {}
    if not arguments.no_peers:
        functions["PyTorch"] = _torchs
        problem = compiler_problem(torch.__file__)
        if problem:
            skipped.append(Row("torch.compile", None, "ms", note=f"skipped: {problem}"))
        else:
            functions["torch.compile"] = torch.compile(_torchs, dynamic=False)
        for name, find in PEERS.items():
            try:
                peers.update(find(x, gradient, layout))
            except ImportError as error:
                skipped.append(Row(name, None, "ms", note=f"skipped: {error}"))
    candidates: Candidates = {}
    for name, function in functions.items():

        def forward(function: Callable[[torch.Tensor], torch.Tensor] = function) -> None:
            with torch.no_grad():
                function(x)

        def both(function: Callable[[torch.Tensor], torch.Tensor] = function) -> None:
            torch.autograd.grad(function(leaf), leaf, gradient)

        candidates[f"{name} forward"] = forward
        candidates[f"{name} forward + backward"] = both
    candidates |= peers
    medians = interleaved(candidates, rounds=arguments.rounds, seconds=4.0)
    baselines = {
        name: f"replica forward{' + backward' if name.endswith('backward') else ''}"
        for name in medians
        if not name.startswith("replica ")
    }
    torch.compiler.reset()
    return rows_of(medians, baselines=baselines) + skipped


def _tensorflow(x: torch.Tensor, gradient: torch.Tensor, layout: str) -> Candidates:
    if layout != "channels last":
        raise ImportError("TensorFlow normalizes channels last only")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    try:
        tf = importlib.import_module("tensorflow")
    except ImportError:
        raise ImportError("TensorFlow is not installed") from None
    tf.config.threading.set_intra_op_parallelism_threads(torch.get_num_threads())
    images, incoming = (tf.constant(t.permute(0, 2, 3, 1).numpy()) for t in (x, gradient))

    def normalize(values: Any) -> Any:
        return tf.nn.local_response_normalization(
            values,
            depth_radius=N // 2,
            bias=K,
            alpha=ALPHA,
            beta=BETA,
        )

    def both() -> Any:
        with tf.GradientTape() as tape:
            tape.watch(images)
            result = normalize(images)
        return tape.gradient(result, images, output_gradients=incoming).numpy()

    _check_same("TensorFlow", torch.from_numpy(normalize(images).numpy()).permute(0, 3, 1, 2), x)
    return {
        "TensorFlow forward": lambda: normalize(images).numpy(),
        "TensorFlow forward + backward": both,
    }


def _onnx_runtime(x: torch.Tensor, gradient: torch.Tensor, layout: str) -> Candidates:
    if layout != "NCHW":
        raise ImportError("ONNX Runtime normalizes NCHW only")
    try:
        onnx = importlib.import_module("onnx")
        runtime = importlib.import_module("onnxruntime")
    except ImportError:
        raise ImportError("ONNX Runtime, or onnx, is not installed") from None
    values = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, x.shape)
    result = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, x.shape)
    node = onnx.helper.make_node(
        "LRN",
        ["x"],
        ["y"],
        size=N,
        alpha=ALPHA * N,  # ONNX divides alpha by n
        beta=BETA,
        bias=K,
    )
    graph = onnx.helper.make_graph([node], "normalize", [values], [result])
    opset = onnx.helper.make_opsetid("", 13)
    model = onnx.helper.make_model(graph, opset_imports=[opset], ir_version=8)
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = runtime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    feed = {"x": x.numpy()}
    _check_same("ONNX Runtime", torch.from_numpy(session.run(None, feed)[0]), x)
    return {"ONNX Runtime forward": lambda: session.run(None, feed)}


@cache
def _onednn_library() -> Path:
    """Compiles the few lines that call oneDNN.

    Raises:
        ImportError: it, or a compiler, is not here.
    """
    compiler = toolchain.find_compiler()
    if compiler is None:
        raise ImportError("oneDNN needs a C++ compiler")
    library = Path(tempfile.mkdtemp(prefix="onednn-")) / "onednn.so"
    atexit.register(shutil.rmtree, library.parent, ignore_errors=True)
    source = Path(__file__).with_name("onednn.cpp")
    command = [compiler, "-std=c++17", "-O2", "-shared", "-fPIC", str(source), "-ldnnl"]
    if subprocess.run([*command, "-o", str(library)], capture_output=True, check=False).returncode:
        raise ImportError("oneDNN's version 2 is not installed for this compiler")
    return library


def _onednn(x: torch.Tensor, gradient: torch.Tensor, layout: str) -> Candidates:
    library = ctypes.CDLL(str(_onednn_library()))
    pointer, count, number = ctypes.c_void_p, ctypes.c_long, ctypes.c_float
    library.onednn_prepare.argtypes = [pointer] * 4 + [count] * 4 + [ctypes.c_bool, count]
    library.onednn_prepare.argtypes += [number] * 3
    library.onednn_prepare.restype = pointer
    library.onednn_forward.argtypes = library.onednn_forward_and_backward.argtypes = [pointer]
    y, result = torch.empty_like(x), torch.empty_like(x)
    problem = library.onednn_prepare(
        *(t.data_ptr() for t in (x, gradient, y, result)),
        *x.shape,
        layout == "channels last",
        N,
        ALPHA * N,  # oneDNN divides alpha by n
        BETA,
        K,
    )
    library.onednn_forward(problem)
    _check_same("oneDNN", y, x)

    # Both hold on to the tensors that the library knows by their addresses.
    def forward() -> tuple[torch.Tensor, ...]:
        library.onednn_forward(problem)
        return x, y

    def both() -> tuple[torch.Tensor, ...]:
        library.onednn_forward_and_backward(problem)
        return x, y, gradient, result

    return {
        "oneDNN (given output) forward": forward,
        "oneDNN (given output) forward + backward": both,
    }


def _check_same(name: str, result: torch.Tensor, x: torch.Tensor) -> None:
    """A library that computes something else would make a comparison of nothing."""
    if not torch.allclose(result, _replicas(x), rtol=1e-4, atol=1e-5):
        raise RuntimeError(f"{name} computes something else: expected the same formula")


PEERS: dict[str, Callable[[torch.Tensor, torch.Tensor, str], Candidates]] = {
    "TensorFlow": _tensorflow,
    "ONNX Runtime": _onnx_runtime,
    "oneDNN": _onednn,
}
