"""The 2012 AlexNet, rebuilt so that anybody can check it; `python -m replica` lists commands."""

import sys

from data_prep import require_environment

# `python -m` imports this package before the command, which then says for itself what it lacks.
if sys.argv[0] != "-m":
    require_environment(__name__, "torch")

__version__ = "0.1.0"
