"""Pictures on disk -> shards. Imports neither torch nor replica nor cuda_ext."""

import importlib.util
import os
import signal
import sys
from pathlib import Path

PROJECT_DIR = Path(__file__).resolve().parent.parent
DEPENDENCIES = ("numpy", "PIL", "h5py", "scipy")
# Set for the Python of .venv, so that one without our dependencies does not start itself for ever.
ALREADY_TRIED = "REPLICA_ENVIRONMENT_TRIED"


def require_environment(name: str, *modules: str) -> None:
    """Makes sure that this Python can run the project; old Pythons can read this file.

    From here on Ctrl-C ends a command without a traceback, with exit status 130, until it handles
    Ctrl-C itself: its imports take seconds.

    A command that was started with a Python without our dependencies goes on with the one that
    `make setup` made, and says so; where there is none, it ends with one line. An import only
    ever raises.

    Args:
        name: `__name__` of the caller, which is a command where it is "__main__".
        modules: third-party modules that the caller needs beside those of this package.

    Raises:
        ImportError: another program imports the caller, and a module is missing.
    """
    if name == "__main__" or Path(sys.argv[0]).name.startswith("replica-"):
        _end_quietly_at_ctrl_c()
    wanted = (*DEPENDENCIES, *modules)
    missing = [name for name in wanted if importlib.util.find_spec(name) is None]
    if sys.version_info >= (3, 11) and not missing:
        return
    have = f"{sys.executable} (Python {sys.version_info.major}.{sys.version_info.minor})"
    lack = f"lacks {', '.join(missing)}" if missing else "is older than Python 3.11"
    environment_python = PROJECT_DIR / ".venv" / "bin" / "python"
    way_out = "run `make setup`, then `source .venv/bin/activate`"
    if not (PROJECT_DIR / "Makefile").is_file():  # installed from a wheel
        packages = " ".join(missing).replace("PIL", "pillow")
        way_out = f"run `{sys.executable} -m pip install {packages}`" if missing else "use another"
    if name != "__main__":
        raise ImportError(f"{have} {lack}: {way_out}")
    if environment_python.exists() and ALREADY_TRIED not in os.environ:
        print(f"{have} {lack}: continuing with {environment_python}", file=sys.stderr, flush=True)
        os.environ[ALREADY_TRIED] = "1"
        started = sys.modules["__main__"].__spec__  # by -m; None where a file was named
        command = ["-m", started.name] if started else [sys.argv[0]]
        os.execv(environment_python, [str(environment_python), *command, *sys.argv[1:]])
    sys.exit(f"{have} {lack}: {way_out}")


def _end_quietly_at_ctrl_c() -> None:
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not ignored
        signal.signal(signal.SIGINT, lambda number, _frame: os._exit(128 + number))
