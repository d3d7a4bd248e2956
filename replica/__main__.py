"""`python -m replica` lists the commands."""

import sys

from data_prep.errors import run_command

COMMANDS = {
    "python data_prep/build_shards.py": "pictures -> shards (without arguments: the toy set)",
    "python data_prep/verify_shards.py": "compares every file of a data set with its SHA-256",
    "python -m replica.train": "trains a network, on one device or one tower per device",
    "python -m replica.control": "changes a live run by hand: rates, frozen layers, color noise",
    "python -m replica.test": "top-1 and top-5 error, ten-crop or central crop",
    "python -m replica.info": "the layer table of a recipe beside the paper's own figures",
    "python -m replica.figures": "pictures of runs: loss curves and conv1's kernels",
    "python -m replica.demo": "the whole path on the embedded data set (`make demo`)",
    "python -m cuda_ext": "what is built of the operators, and what is live",
}


def show() -> None:
    """Prints one line per command."""
    width = max(map(len, COMMANDS))
    for command, purpose in COMMANDS.items():
        print(f"{command:{width}}  {purpose}")
    print("\nEach of them takes --help. README.md shows where to begin.")


def main() -> int:
    """Runs the command and returns its exit status."""
    return run_command("replica", show)


if __name__ == "__main__":
    sys.exit(main())
