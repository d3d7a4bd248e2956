"""How commands are called, and how what a user did wrong becomes one line and exit status 2."""

import argparse
import difflib
import re
import sys
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from data_prep.signals import exit_status, interrupt, on_stop_signals
from data_prep.streams import lasting_output

# Categories of Unicode: controls, formats, halves of codes, ends of lines and of paragraphs.
ESCAPED = ("Cc", "Cf", "Cs", "Zl", "Zp")
JOINERS = "\u200c\u200d"  # two formats that Persian words and emoji are written with
EXIT_FAILURE, EXIT_USER_ERROR = 1, 2


class UserError(ValueError):
    """What a user gave cannot be used; the message holds the value, the rule and the way out.

    The commands print it as one line and end with exit status 2. What has to be drawn stands in
    `below`, further lines.
    """

    def __init__(self, message: str, *, below: tuple[str, ...] = ()):
        super().__init__(message)
        self.below = below


def printable(text: str) -> str:
    r"""A text of unknown origin, such as a file's name, as one line that a terminal only shows.

    Control characters, line ends, marks that turn the direction of writing, and bytes that are no
    UTF-8 become escapes such as `\x1b`; every other letter stays.
    """
    if text.isprintable():
        return text
    return "".join(_escaped(letter) for letter in text)


def print_line(line: object) -> None:
    """Prints a line in which names of unknown origin may stand, as `printable` shows them."""
    print(printable(str(line)))


def print_aside(line: str) -> None:
    """Prints such a line to standard error: what is no result of the command."""
    print(printable(line), file=sys.stderr)


def _escaped(letter: str) -> str:
    if "\udc80" <= letter <= "\udcff":  # how Python holds a byte of a name that is no UTF-8
        return f"\\x{ord(letter) - 0xDC00:02x}"
    is_harmless = unicodedata.category(letter) not in ESCAPED or letter in JOINERS
    return letter if is_harmless else repr(letter)[1:-1]


def command_for(module: str) -> str:
    """How a command is typed where the user is, such as `python -m replica.train`.

    Who has started one of the installed scripts has the others; else a script of the checkout is
    called as README.md calls it, from there, and every other module by -m.
    """
    package, _, name = module.partition(".")
    if Path(sys.argv[0]).name.startswith("replica-"):
        return f"replica-{name.replace('_', '-')}"
    script = Path(package, f"{name}.py")
    is_script = package == "data_prep" and script.is_file()
    return f"python {script}" if is_script else f"python -m {module}"


class OneLineParser(argparse.ArgumentParser):
    """Says what is wrong with the arguments in one line; `--help` shows the rest.

    Options are given in full: what an abbreviation means would change with the next option.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        """Ends the program with exit status 2, and names the option that was meant."""
        unknown = re.match(r"unrecognized arguments: .*?(--[\w-]+)", message)
        if unknown:
            names = [name for name in self._option_string_actions if name.startswith("--")]
            longer = [name for name in names if name.startswith(unknown[1])]
            meant = longer or difflib.get_close_matches(unknown[1], names, n=1, cutoff=0.75)
            if meant:
                message += f": did you mean {' or '.join(meant)}?"
        line = f"{self.prog.removeprefix('python -m ')}: {message}: see --help"
        self.exit(2, f"{printable(line)}\n")


def run_command(
    program: str,
    command: Callable[[], int | None],
    *,
    when_interrupted: str = "interrupted",
    way_out: str = "make room or mend it, then try again",
) -> int:
    """Runs a command; what a user must know becomes one line on standard error.

    Args:
        program: whose line it is, such as `replica.train`.
        command: does the work, and returns its exit status or None for 0.
        when_interrupted: what Ctrl-C leaves behind.
        way_out: what helps where the file system refuses.

    Returns:
        The exit status: the command's own; 2 for what a user gave or a file system refused; 1 for
        what happened, and for output that could not be written; 130, 143 or 129 after Ctrl-C,
        SIGTERM or SIGHUP. That nobody reads the output any more changes nothing.
    """
    line = end = None
    with lasting_output() as refusal, on_stop_signals(interrupt):
        try:
            status = command() or 0
        except SystemExit as error:  # argparse has printed its help, or what is wrong
            end, status = error, EXIT_FAILURE if error.code else 0
        except UserError as error:
            line, status = printable(str(error)), EXIT_USER_ERROR
            line = "\n".join((line, *map(printable, error.below)))
        except OSError as error:
            place = "" if error.filename is None else f"{error.filename}: "
            line = printable(f"{place}{error.strerror or error}: {way_out}")
            status = EXIT_USER_ERROR
        except RuntimeError as error:  # may hold the traceback of a rank
            line, status = "\n".join(map(printable, str(error).split("\n"))), EXIT_FAILURE
        except KeyboardInterrupt as error:
            line, status = when_interrupted, exit_status(error)
        if not status and (refused := refusal()):
            line = f"standard output: {refused.strerror}: what was printed is lost"
            status = EXIT_FAILURE
        elif end is not None:
            raise end
        if line is not None:
            print(f"{program}: {line}", file=sys.stderr)
    return status
