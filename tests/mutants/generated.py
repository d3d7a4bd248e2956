"""Mistakes that cosmic-ray makes by rule, a sample of them, beside those of table.toml.

    python tests/mutants/generated.py --sample 300      continues where it was stopped

Needs `pip install cosmic-ray`. Of each file of FILES every mutation is listed, but for those of
annotations and docstrings, and a sample drawn with a fixed seed. As in run.py, a test that fails
notices it; a survivor is tried on the modules of SLOWER, too. The record is
`benchmarks/results/generated-mutants.json`; whoever has read a survivor enters there, under
`equivalent`, why no test can notice it.
"""

import argparse
import ast
import contextlib
import difflib
import json
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from queue import SimpleQueue

from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator, operator_names
from run import LEAST_SECONDS, PROJECT_DIR, Copy, machine, revision

RECORD = PROJECT_DIR / "benchmarks" / "results" / "generated-mutants.json"
# What is mutated, and the test modules that run it without a process of their own, fastest first.
_NETWORK = ("recipes", "layers", "paper_shapes", "model", "transfer", "network")
FILES = {
    "replica/recipes/recipe.py": ("recipes", "layers", "paper_shapes", "optimizer", "model"),
    "replica/recipes/geometry.py": ("layers", "paper_shapes"),
    "replica/recipes/changes.py": ("recipes", "layers", "paper_shapes"),
    "replica/recipes/record.py": ("recipes", "layers"),
    "replica/recipes/paper.py": ("recipes", "paper_shapes", "layers", "network"),
    "replica/recipes/mini.py": ("recipes", "model", "layers"),
    "replica/network/alexnet.py": _NETWORK,
    "replica/network/layers.py": _NETWORK,
    "replica/network/initialization.py": _NETWORK,
    "replica/network/dropout_masks.py": ("draws", "model", "network"),
    "replica/network/draws.py": ("draws", "model", "augment"),
    "replica/network/placement.py": _NETWORK,
    "replica/feed/augment.py": ("augment", "evaluation"),
    "replica/training/optimizer.py": ("optimizer",),
    "replica/training/schedule.py": ("optimizer",),
    "replica/training/evaluation.py": ("evaluation",),
    "replica/results/evaluation.py": ("evaluation",),
}
SLOWER = ("batch_norm", "costs", "training")


def meaning(code: str) -> str:
    """The program without what does nothing: annotations and docstrings."""
    tree = ast.parse(code)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            node.returns = None
            for argument in (*node.args.args, *node.args.kwonlyargs):
                argument.annotation = None
        if isinstance(node, ast.AnnAssign):
            node.annotation = ast.Constant(None)
        match node:
            case ast.Module(body=body) | ast.ClassDef(body=body) | ast.FunctionDef(body=body):
                if body and isinstance(body[0], ast.Expr):
                    body[0] = ast.Pass()
    return ast.unparse(tree)


def mutations(file: str) -> Iterator[tuple[str, str, int]]:
    """File, operator and occurrence of each mutation."""
    nodes = list(ast_nodes(get_ast((PROJECT_DIR / file).read_text())))
    for operator in sorted(operator_names()):
        if operator in ("core/VariableInserter", "core/VariableReplacer"):
            continue  # these want variables to be named
        positions = get_operator(operator)().mutation_positions
        for occurrence in range(sum(len(list(positions(node))) for node in nodes)):
            yield file, operator, occurrence


def drawn(every: list[tuple[str, str, int]], number: int, seed: int) -> dict[str, str]:
    """The changed files of a sample, by the name of the mutation; each changes what is done."""
    random.Random(seed).shuffle(every)
    sample: dict[str, str] = {}
    for file, operator, occurrence in every:
        right = (PROJECT_DIR / file).read_text()
        changed = mutate_code(right, get_operator(operator)(), occurrence)
        with contextlib.suppress(SyntaxError):
            if changed is not None and meaning(changed) != meaning(right):
                sample[f"{file} {operator.removeprefix('core/')} {occurrence}"] = changed
        if len(sample) == number:
            break
    return sample


def difference(file: str, changed: str) -> list[str]:
    """The lines that differ."""
    right = (PROJECT_DIR / file).read_text()
    lines = difflib.unified_diff(right.splitlines(), changed.splitlines(), lineterm="", n=0)
    return [line for line in lines if line[0] in "+-" and line[:3] not in ("+++", "---")]


def attempt(copy: Copy, name: str, changed: str) -> dict[str, object]:
    """Which test notices a mutation."""
    file, began = name.split()[0], time.monotonic()
    place = copy.directory / file
    right = place.read_text()
    place.write_text(changed)
    killer = None
    try:
        for modules in (FILES[file], SLOWER):
            tests = [f"tests/test_{module}.py" for module in modules]
            killer = killer or copy.test(tests, LEAST_SECONDS + 60 * len(tests))
    finally:
        place.write_text(right)
    return {
        "killed_by": killer,
        "seconds": round(time.monotonic() - began, 1),
        "lines": difference(file, changed),
    }


def main() -> int:
    """Tries a sample; exit status 1 where one survives that is not known to be equivalent."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sample", type=int, default=300, metavar="N")
    parser.add_argument("--seed", type=int, default=2012)
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    every = [mutation for file in FILES for mutation in mutations(file)]
    sample = drawn(every, arguments.sample, arguments.seed)
    record = json.loads(RECORD.read_text()) if RECORD.exists() else {"mutants": {}}
    results = {}
    for name in sample:
        entry = record["mutants"].get(name, {})
        known = entry.get("killed_by") or entry.get("equivalent")
        if known and entry["lines"] == difference(name.split()[0], sample[name]):
            results[name] = entry
    left = [name for name in sample if name not in results]
    print(f"{len(every)} mutations, {len(sample)} drawn, {len(left)} to try", flush=True)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="generated-") as directory:
        copies: SimpleQueue[Copy] = SimpleQueue()
        for number in range(arguments.workers):
            (Path(directory) / str(number)).mkdir()
            copies.put(Copy(Path(directory) / str(number)))

        def work(name: str) -> tuple[str, dict[str, object]]:
            copy = copies.get()
            try:
                return name, attempt(copy, name, sample[name])
            finally:
                copies.put(copy)

        with ThreadPoolExecutor(arguments.workers) as pool:
            for number, future in enumerate(as_completed(pool.submit(work, n) for n in left), 1):
                name, entry = future.result()
                results[name] = entry
                minutes = (time.monotonic() - began) / number * (len(left) - number) / 60
                what = entry["killed_by"] or f"SURVIVES: {entry['lines']}"
                print(f"{number}/{len(left)} {name}: {what} ({minutes:.0f} min left)", flush=True)
                content = {
                    "what": "python tests/mutants/generated.py --sample 300",
                    "revision": revision(),
                    "machine": machine(),
                    "mutations": len(every),
                    "noticed": sum(bool(entry["killed_by"]) for entry in results.values()),
                    "mutants": dict(sorted(results.items())),
                }
                RECORD.write_text(json.dumps(content, indent=1) + "\n")
    survivors = [n for n, e in results.items() if not (e["killed_by"] or e.get("equivalent"))]
    print(f"{len(results) - len(survivors)} of {len(results)} are noticed or equivalent")
    print("\n".join(survivors))
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
