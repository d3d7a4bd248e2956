"""Operators of the 2012 network: tensors in, tensors out. Knows no paper, no file.

Each operator has a plain PyTorch version in `reference.py` and a compiled one in `csrc`; the
compiled one is used where it was built. `REPLICA_EXT=off` in the environment forces the plain one.
"""

import importlib.util
import os
import signal
import sys

# `python -m cuda_ext` imports this package before it can say for itself what it lacks.
if sys.argv[:1] == ["-m"]:
    if importlib.util.find_spec("torch") is None:
        sys.exit(f"cuda_ext: expected PyTorch in the environment of {sys.executable}: install it")
    # Importing it takes seconds, in which Ctrl-C ends it without a traceback.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, lambda number, _frame: os._exit(128 + number))

from cuda_ext.augment_batch import augment_batch
from cuda_ext.library import (
    compiled_cuda_state,
    compiled_state,
    implementations,
    set_instruction_set,
)
from cuda_ext.local_response_norm import local_response_norm, local_response_norm_out
from cuda_ext.max_pool2d import max_pool2d
from cuda_ext.momentum_sgd import momentum_sgd_
from cuda_ext.philox_dropout import philox_dropout
from cuda_ext.relu_lrn_pool import relu_lrn_pool
from cuda_ext.same_map_norm import same_map_norm
from cuda_ext.split_conv2d import split_conv2d, split_conv2d_add_, split_conv2d_backward

__all__ = [
    "augment_batch",
    "compiled_cuda_state",
    "compiled_state",
    "implementations",
    "local_response_norm",
    "local_response_norm_out",
    "max_pool2d",
    "momentum_sgd_",
    "philox_dropout",
    "relu_lrn_pool",
    "same_map_norm",
    "set_instruction_set",
    "split_conv2d",
    "split_conv2d_add_",
    "split_conv2d_backward",
]
