"""The 2012 AlexNet, rebuilt so that anybody can check it; `python -m replica` lists commands."""

from data_prep import require_environment

require_environment("torch", "numpy", "h5py", "tqdm", "scipy")

__version__ = "0.1.0"
