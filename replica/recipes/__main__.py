"""All recipes, and what two of them differ in: `python -m replica.recipes --help`."""

if __name__ == "__main__":  # before the imports that it is about
    from data_prep import require_environment

    require_environment(__name__)

import argparse
import json
import sys

from data_prep.arguments import nonempty_name
from data_prep.errors import OneLineParser, command_for, run_command
from replica.recipes.differences import (
    as_json,
    as_markdown,
    as_text,
    differences,
    list_as_text,
    listed,
)
from replica.recipes.registry import RECIPES, find_recipe


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = OneLineParser(
        prog=command_for("replica.recipes"),
        description="Lists the recipes: what each tests, what it costs, what is expected of it. "
        "`diff A B` prints every field that differs, both values, and where each stands.",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON list")
    chosen = parser.add_subparsers(dest="what", metavar="diff")
    two = chosen.add_parser("diff", help="what two recipes differ in")
    two.add_argument("recipes", type=nonempty_name, nargs=2, metavar="RECIPE")
    two.add_argument(
        "--json", action="store_true", default=argparse.SUPPRESS, help="print one JSON object"
    )
    two.add_argument("--markdown", action="store_true", help="print a table for a document")
    arguments = parser.parse_args(argv)
    if arguments.json and getattr(arguments, "markdown", False):
        two.error("--json and --markdown: expected one of them")
    return arguments


def show(arguments: argparse.Namespace) -> None:
    """Prints the list or the differences."""
    if arguments.what is None:
        recipes = list(RECIPES.values())
        plain = [listed(recipe) for recipe in recipes]
        print(json.dumps(plain, indent=1) if arguments.json else list_as_text(recipes))
        return
    first, second = (find_recipe(name, option="diff") for name in arguments.recipes)
    rows = differences(first, second)
    write = as_markdown if arguments.markdown else as_json if arguments.json else as_text
    print(write(first, second, rows))


def main(argv: list[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    return run_command("replica.recipes", lambda: show(parse_arguments(argv)))


if __name__ == "__main__":
    sys.exit(main())
