"""A command line whose errors are one line, as all other wrong input is."""

import argparse
from typing import NoReturn


class OneLineParser(argparse.ArgumentParser):
    """Says what is wrong with the arguments in one line; `--help` shows the rest."""

    def error(self, message: str) -> NoReturn:
        """Ends the program with exit status 2."""
        self.exit(2, f"{self.prog.removeprefix('python -m ')}: {message}: see --help\n")
