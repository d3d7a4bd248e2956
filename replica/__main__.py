"""`python -m replica` lists the commands."""

if __name__ == "__main__":  # before the imports that it is about
    from data_prep import require_environment

    require_environment(__name__)

import sys

from data_prep.errors import OneLineParser, command_for, run_command

COMMANDS = {
    "data_prep.build_shards": "pictures -> shards (without arguments: the toy set)",
    "data_prep.verify_shards": "compares every file of a data set with its SHA-256",
    "replica.train": "trains a network, on one device or one tower per device",
    "replica.control": "changes a live run by hand: rates, frozen layers, color noise",
    "replica.test": "top-1 and top-5 error, ten-crop or central crop",
    "replica.predict": "the most probable classes of any pictures",
    "replica.neighbors": "the training images nearest to some images, by fc7's features",
    "replica.export": "a network as safetensors, ONNX, or a program of PyTorch",
    "replica.info": "the layer table of a recipe beside the paper's own figures",
    "replica.recipes": "the recipes: what each tests, costs, and differs in from another",
    "replica.compare": "runs in one table: loss, errors, epoch of the best, seconds, seeds",
    "replica.figures": "the paper's figures and others, of runs and networks",
    "replica.report": "one HTML file that tells of a run, or of several side by side",
    "replica.sweep": "tries values of a recipe's fields, and chooses by validation",
    "replica.demo": "the whole path on the embedded data set",
    "replica.reproduce": "the paper's claims: runs what is missing, and judges them",
    "cuda_ext": "what is built of the operators, and what is live",
}


def show() -> None:
    """Prints one line per command."""
    commands = {command_for(module): purpose for module, purpose in COMMANDS.items()}
    width = max(map(len, commands))
    for command, purpose in commands.items():
        print(f"{command:{width}}  {purpose}")
    print(
        "\nEach of them takes --help. Installed, all but the last are also scripts, such as "
        "replica-train."
    )


def parse_arguments(argv: list[str] | None = None) -> None:
    """Refuses arguments: there are none."""
    OneLineParser(prog="python -m replica", description="Lists the commands.").parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Runs the command and returns its exit status."""

    def command() -> None:
        parse_arguments(argv)
        show()

    return run_command("replica", command)


if __name__ == "__main__":
    sys.exit(main())
