"""The faults of faults.toml and the tests that do them: the table of docs/reliability.md.

python tests/faults.py        writes the table anew
"""

import ast
import sys
import tomllib
from pathlib import Path

TESTS_DIR = Path(__file__).resolve().parent
PAGE = TESTS_DIR.parent / "docs" / "reliability.md"
BEGIN, END = "<!-- written by tests/faults.py -->\n", "<!-- end -->\n"


def tests_by_fault() -> dict[int, list[str]]:
    """Number of a fault -> `module::test` of those that are marked with it."""
    found: dict[int, list[str]] = {}
    for path in sorted(TESTS_DIR.glob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                for number in marked(node.decorator_list):
                    found.setdefault(number, []).append(f"{path.name}::{node.name}")
    return found


def marked(decorators: list[ast.expr]) -> list[int]:
    """The numbers in `@pytest.mark.fault(...)`."""
    return [
        ast.literal_eval(argument)
        for decorator in decorators
        if isinstance(decorator, ast.Call) and ast.unparse(decorator.func) == "pytest.mark.fault"
        for argument in decorator.args
    ]


def faults() -> dict[str, dict[int, list[str]]]:
    """Group -> number -> fault and what must happen."""
    groups = tomllib.loads((TESTS_DIR / "faults.toml").read_text())
    return {group: {int(n): lines for n, lines in rows.items()} for group, rows in groups.items()}


def table() -> str:
    """The table, in Markdown."""
    tests = tests_by_fault()
    lines = []
    for group, rows in faults().items():
        lines += [f"## {group}", "", "| | fault | what must happen | tests |", "|-|-|-|-|"]
        for number, (fault, expected) in rows.items():
            names = ", ".join(
                f"`{name.removeprefix('test_').replace('.py::test_', ': ')}`"
                for name in tests.get(number, [])
            )
            lines.append(f"| {number} | {fault} | {expected} | {names} |")
        lines.append("")
    return "\n".join(lines)


def page() -> str:
    """The page with the table as it should be."""
    before, rest = PAGE.read_text().split(BEGIN)
    return f"{before}{BEGIN}\n{table()}\n{END}{rest.split(END)[1]}"


if __name__ == "__main__":
    PAGE.write_text(page())
    sys.exit(0)
