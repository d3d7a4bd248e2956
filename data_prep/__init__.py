"""Pictures on disk -> shards. Imports neither torch nor replica nor cuda_ext."""

import importlib.util
import os
import sys
from pathlib import Path

PROJECT_DIR = Path(__file__).resolve().parent.parent
OUR_PROGRAMS = ("replica", "cuda_ext", "benchmarks")


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
    arguments = sys.orig_argv[1:]
    ours = _is_our_command(arguments)
    is_inside = Path(sys.prefix) == environment_python.parent.parent
    if ours and environment_python.exists() and not is_inside:
        print(f"{have} {lack}: continuing with {environment_python}", file=sys.stderr, flush=True)
        os.execv(environment_python, [str(environment_python), *arguments])
    if ours:
        sys.exit(f"{have} {lack}: {way_out}")
    raise ImportError(f"{have} {lack}: {way_out}")


def _is_our_command(arguments: list[str]) -> bool:
    """Whether the interpreter was started as `-m replica...` or as a script of this folder."""
    if "-m" in arguments[:-1]:
        return arguments[arguments.index("-m") + 1].split(".")[0] in OUR_PROGRAMS
    scripts = [Path(argument) for argument in arguments if argument.endswith(".py")]
    return bool(scripts) and scripts[0].resolve().parent == PROJECT_DIR / "data_prep"
