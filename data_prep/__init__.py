"""Pictures on disk -> shards. Imports neither torch nor replica nor cuda_ext."""

import importlib.util
import os
import sys
from pathlib import Path

PROJECT_DIR = Path(__file__).resolve().parent.parent
OUR_PROGRAMS = ("replica", "cuda_ext", "benchmarks")
# Set for the Python of .venv, so that one without our dependencies does not start itself for ever.
ALREADY_TRIED = "REPLICA_ENVIRONMENT_TRIED"


def require_environment(*modules: str) -> None:
    """Makes sure that this Python can run the project's commands.

    A command of ours that was started with a Python without our dependencies goes on with the one
    that `make setup` made, and says so; where there is none, the command ends with one line.

    Args:
        modules: the third-party modules that the caller is about to import.

    Raises:
        ImportError: another program than our commands imported us, and a module is missing.
    """
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if sys.version_info >= (3, 11) and not missing:
        return
    have = f"{sys.executable} (Python {sys.version_info.major}.{sys.version_info.minor})"
    lack = f"lacks {', '.join(missing)}" if missing else "is older than Python 3.11"
    environment_python = PROJECT_DIR / ".venv" / "bin" / "python"
    way_out = "run `make setup`, then `source .venv/bin/activate`"
    command = _our_command(sys.orig_argv[1:])
    if not command:
        raise ImportError(f"{have} {lack}: {way_out}")
    if environment_python.exists() and ALREADY_TRIED not in os.environ:
        print(f"{have} {lack}: continuing with {environment_python}", file=sys.stderr, flush=True)
        os.environ[ALREADY_TRIED] = "1"
        os.execv(environment_python, [str(environment_python), *command])
    sys.exit(f"{have} {lack}: {way_out}")


def _our_command(arguments: list[str]) -> list[str]:
    """The arguments from `-m replica...` or from a script of this folder on; empty for others."""
    for i, argument in enumerate(arguments):
        if argument == "-m" and arguments[i + 1].split(".")[0] in OUR_PROGRAMS:
            return arguments[i:]
        if argument.endswith(".py"):
            is_ours = Path(argument).resolve().parent == PROJECT_DIR / "data_prep"
            return arguments[i:] if is_ours else []
    return []
