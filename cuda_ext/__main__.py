"""`python -m cuda_ext`: what is built of the operators, and what is live."""

import argparse
import json
import platform
import sys

import torch

from cuda_ext.library import compiled_state, implementations


def main() -> None:
    """Prints the report, as text or with --json as one object."""
    parser = argparse.ArgumentParser(prog="python -m cuda_ext", description=main.__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    try:
        state = compiled_state()
    except ValueError as error:
        print(f"cuda_ext: {error}", file=sys.stderr)
        sys.exit(2)
    report = {
        "torch": torch.__version__,
        "processor": platform.machine(),
        "cpu_library": {"is_live": state.is_live, "reason": state.reason},
        "live": implementations(),
    }
    if arguments.json:
        print(json.dumps(report, indent=1))
        return
    print(f"torch {report['torch']} on {report['processor']}")
    print(f"compiled CPU operators: {state.reason}")
    for name, implementation in implementations().items():
        print(f"{name}: {implementation}")


if __name__ == "__main__":
    main()
