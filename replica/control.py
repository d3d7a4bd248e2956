"""Changes a live run by hand, as in 2012: `python -m replica.control --help`."""

if __name__ == "__main__":  # before the imports that it is about
    from data_prep import require_environment

    require_environment(__name__, "torch")

import argparse
import sys
from functools import partial

from data_prep.arguments import nonempty_name, nonempty_path, number
from data_prep.errors import OneLineParser, UserError, command_for, print_line, run_command
from replica.training.control_log import ACTIONS, send_request
from replica.training.options import layers_in, rates_in

DEFAULT_WAIT_SECONDS, MOST_WAIT_SECONDS = 120.0, 1_000_000


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = OneLineParser(
        prog=command_for("replica.control"),
        description="Changes a live run: the request acts on its next step, on all processes, and "
        "is logged in control.jsonl with the step and the reason.",
    )
    add = parser.add_argument
    add("run", type=nonempty_path, metavar="RUN", help="the run's directory")
    rate = number(0, sys.float_info.max)
    add("--lr", type=rate, metavar="RATE", help="learning rate of all layers but frozen ones")
    add("--bias-lr", type=rate, metavar="RATE", help="learning rate of all biases")
    several = partial(add, action="append", default=[])
    several(
        "--rate",
        metavar="LAYER=RATE",
        help="learning rate of one layer (conv1) or one of its tensors (conv1.bias)",
    )
    several(
        "--freeze",
        metavar="LAYERS",
        help="the same as a rate of 0: the layers, and their velocities, stay as they are",
    )
    add(
        "--color-noise",
        type=nonempty_name,
        metavar="off|SD",
        help="standard deviation of the alphas; off is 0",
    )
    add("--checkpoint", action="store_true", help="save after the next step")
    add("--stop", action="store_true", help="save after the next step, and end")
    add("--reason", default="", metavar="TEXT", help="for the log")
    add(
        "--wait",
        type=number(0, MOST_WAIT_SECONDS, "seconds"),
        default=DEFAULT_WAIT_SECONDS,
        metavar="SECONDS",
        help="for the run to read the request (default: %(default)g)",
    )
    return parser.parse_args(argv)


def changes_of(arguments: argparse.Namespace) -> dict[str, float]:
    """Target -> value, in the order in which the targets act.

    Raises:
        UserError: a value is no number, or a target is named twice.
    """
    common = [("learning_rate", arguments.lr), ("bias_learning_rate", arguments.bias_lr)]
    pairs = [(target, rate) for target, rate in common if rate is not None]
    pairs += rates_in(arguments.rate, example="conv1=0.0001")
    pairs += [(layer, 0.0) for layer in layers_in("--freeze", arguments.freeze)]
    if arguments.color_noise is not None:
        try:
            value = 0.0 if arguments.color_noise == "off" else float(arguments.color_noise)
        except ValueError:
            raise UserError(
                f"--color-noise {arguments.color_noise}: expected off, or a number such as 0.1"
            ) from None
        pairs.append(("color_noise", value))
    targets = [target for target, _ in pairs]
    twice = {target for target in targets if targets.count(target) > 1}
    if twice:
        raise UserError(f"{', '.join(sorted(twice))}: expected one value each, got two")
    return dict(pairs)


def control(arguments: argparse.Namespace) -> None:
    """Sends the request, and prints the step from which it acts."""
    line = send_request(
        arguments.run,
        changes_of(arguments),
        [action for action in ACTIONS if getattr(arguments, action)],
        reason=arguments.reason,
        wait_seconds=arguments.wait,
    )
    print_line(f"{line}: from step {line.step}, epoch {line.epoch}")


def main(argv: list[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    return run_command(
        "replica.control",
        lambda: control(parse_arguments(argv)),
        when_interrupted="interrupted; the request may still act",
    )


if __name__ == "__main__":
    sys.exit(main())
