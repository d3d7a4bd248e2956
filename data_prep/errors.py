"""What a user did wrong becomes one line and exit status 2."""

import argparse
from typing import NoReturn


class UserError(ValueError):
    """What a user gave cannot be used; the message holds the value, the rule and the way out.

    The commands print it as one line and end with exit status 2.
    """


class OneLineParser(argparse.ArgumentParser):
    """Says what is wrong with the arguments in one line; `--help` shows the rest."""

    def error(self, message: str) -> NoReturn:
        """Ends the program with exit status 2."""
        self.exit(2, f"{self.prog.removeprefix('python -m ')}: {message}: see --help\n")
