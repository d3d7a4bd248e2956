"""The house: imports point down, names say what they hold, documents tell the truth."""

import ast
import json
import re
import shlex
import sys
from pathlib import Path

import pytest
from conftest import PROJECT_DIR, run, run_here

from replica import paper
from replica.recipes import ALIASES, RECIPES
from replica.recipes.recipe import settable_fields

PACKAGES = ("cuda_ext", "data_prep", "replica")
# What `replica` may import of data_prep: the file format, what is beside it, one picture's way.
OF_DATA_PREP = (
    *("data_prep.errors", "data_prep.files", "data_prep.manifest", "data_prep.shards"),
    *("data_prep.pictures", "data_prep.require_environment"),
)
# Of `replica`, the lowest first; commands are above all of them.
LAYERS = ("paper", "recipes", "network", "feed", "distributed", "training", "results", "claims")
MOST_LINES = 400
# Longer modules, each with its reason.
LONG_MODULES = dict.fromkeys(
    (
        *("data_prep/build_shards.py", "data_prep/shard_writer.py", "data_prep/shards.py"),
        *("data_prep/trees.py", "replica/training/options.py"),
    ),
    "not cut yet",
)
FORBIDDEN_NAMES = {"utils", "util", "helpers", "helper", "common", "misc"}


def modules():
    return [path for package in PACKAGES for path in sorted((PROJECT_DIR / package).rglob("*.py"))]


def imports_of(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{name.name}" for name in node.names)


def test_imports_point_down_only():
    for path in modules():
        package = path.relative_to(PROJECT_DIR).parts[0]
        for name in imports_of(path):
            top = name.split(".")[0]
            if package == "cuda_ext":
                assert top not in ("data_prep", "replica"), (path, name)
            if package == "data_prep":
                assert top not in ("torch", "replica", "cuda_ext"), (path, name)
            if package == "replica" and top == "data_prep":
                assert name == "data_prep" or name.startswith(OF_DATA_PREP), (path, name)


def test_imports_inside_replica_go_down_the_layers():
    layers = {layer: height for height, layer in enumerate(LAYERS)}
    for path in sorted((PROJECT_DIR / "replica").rglob("*.py")):
        parts = path.relative_to(PROJECT_DIR / "replica").with_suffix("").parts
        if parts == ("__init__",):
            continue
        # A file at the top is a command, but for the paper's numbers.
        own = layers.get(parts[0], len(layers))
        for name in imports_of(path):
            below, _, of_replica = name.partition(".")
            layer = of_replica.split(".")[0]
            if below == "replica" and of_replica and layer != "__version__":
                assert layer in layers or own == len(layers), f"{path} imports the command {name}"
                assert layers.get(layer, len(layers)) <= own, f"{path} imports upwards: {name}"


def test_a_long_module_says_why():
    long = {
        str(path.relative_to(PROJECT_DIR)): len(path.read_text().splitlines())
        for path in modules()
        if len(path.read_text().splitlines()) > MOST_LINES
    }
    assert long.keys() == LONG_MODULES.keys(), long


def test_no_file_hides_what_it_holds_or_shadows_a_standard_module():
    for path in modules():
        assert path.stem not in FORBIDDEN_NAMES, path
    for path in (PROJECT_DIR / "data_prep").glob("*.py"):
        # The folder is on sys.path when a script in it runs.
        assert path.stem not in sys.stdlib_module_names, path


def test_the_top_level_is_the_owners():
    folders = {p.name for p in PROJECT_DIR.iterdir() if p.is_dir() and not p.name.startswith(".")}
    generated = {"build", "shards", "toy", "runs", "demo"}
    ours = {name for name in folders - generated if not name.endswith((".egg-info", "__pycache__"))}
    assert ours - {"docs"} == {"cuda_ext", "data_prep", "replica", "tests", "benchmarks"}


def deviation_rows():
    text = (PROJECT_DIR / "REPRODUCE.md").read_text()
    return re.findall(r"^\| (D\d+) \|", text, re.MULTILINE)


def test_deviations_in_the_code_are_the_rows_of_the_table():
    tags = {}
    for path in modules():
        for tag in re.findall(r"DEVIATION (D\d+):", path.read_text()):
            tags.setdefault(tag, []).append(path.name)
    rows = deviation_rows()
    assert len(rows) == len(set(rows))
    assert sorted(tags) == sorted(rows)
    assert all(len(places) == 1 for places in tags.values()), tags


def commands_of(document):
    """The lines of the shell blocks of a document that call our programs."""
    text = (PROJECT_DIR / document).read_text()
    for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            line = line.split("  #")[0].strip()
            words = shlex.split(line)
            if words[:1] == ["python"]:
                yield words[1:]
            elif "torchrun" in words and "-m" in words:
                yield words[words.index("-m") :]


def parser_of(command):
    import importlib

    if command[0] == "-m":
        is_package = (PROJECT_DIR / command[1] / "__main__.py").exists()
        name = f"{command[1]}.__main__" if is_package else command[1]
        return importlib.import_module(name), command[2:]
    return importlib.import_module(command[0].removesuffix(".py").replace("/", ".")), command[1:]


DOCUMENTS = ("README.md", "REPRODUCE.md", "CONTRIBUTING.md", "docs/many-machines.md")


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_command_of_a_document_parses(document):
    checked = 0
    for command in commands_of(document):
        module, arguments = parser_of(command)
        if hasattr(module, "parse_arguments"):
            parsed = module.parse_arguments(arguments)
            if getattr(parsed, "recipe", None):
                assert parsed.recipe in RECIPES, command
        else:
            options = [word for word in arguments if word.startswith("--")]
            text = run_here(*command[: len(command) - len(arguments)], "--help").stdout
            assert all(option.split("=")[0] in text for option in options), command
        checked += 1
    assert checked or document == "CONTRIBUTING.md"


def test_every_make_target_of_the_documents_exists():
    makefile = (PROJECT_DIR / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    for document in ("README.md", "REPRODUCE.md", "CONTRIBUTING.md", ".github/workflows/ci.yml"):
        named = re.findall(r"\bmake ([a-z-]+)", (PROJECT_DIR / document).read_text())
        assert set(named) - {"sure"} <= targets, document


def test_files_that_the_documents_link_exist():
    for document in (*DOCUMENTS, "CHANGELOG.md"):
        links = re.findall(r"\]\(([^)#:]+)\)", (PROJECT_DIR / document).read_text())
        for link in links:
            assert ((PROJECT_DIR / document).parent / link).exists(), (document, link)


def test_aliases_name_fields_that_can_be_set():
    assert set(ALIASES.values()) <= set(settable_fields())


def test_every_recipe_says_what_it_claims():
    for name, recipe in RECIPES.items():
        assert recipe.name == name
        assert len(recipe.claim) > 20


def test_the_papers_numbers_are_written_in_one_place():
    """Values that only paper.py may hold: a copy elsewhere would drift."""
    for path in (PROJECT_DIR / "replica").rglob("*.py"):
        if path.name == "paper.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
                assert node.value not in (paper.LRN_ALPHA, paper.WEIGHT_DECAY, 4096), path


def test_the_speed_in_the_readme_is_that_of_the_record():
    text = (PROJECT_DIR / "README.md").read_text()
    (figure,) = re.findall(r"Two CPU cores made (\d+) images a second", text)
    record = json.loads((PROJECT_DIR / "benchmarks" / "results" / "training.json").read_text())
    speeds = {row["name"]: row["value"] for row in record["rows"]}
    assert int(figure) == round(speeds["replica: float32, channels last"])


def test_versions_agree():
    pyproject = (PROJECT_DIR / "pyproject.toml").read_text()
    version = re.search(r'^version = "(.*)"', pyproject, re.MULTILINE).group(1)
    from replica import __version__

    assert __version__ == version
    assert f"version: {version}" in (PROJECT_DIR / "CITATION.cff").read_text()
    assert f"## {version}" in (PROJECT_DIR / "CHANGELOG.md").read_text()


def test_a_python_without_our_dependencies_is_told_what_to_do(tmp_path):
    """As a user who forgot to activate .venv: one line, and the project's own Python goes on."""
    program = Path(PROJECT_DIR / "data_prep" / "build_shards.py")
    result = run("-S", "-I", str(program), "--help", cwd=tmp_path)
    assert "Traceback" not in result.stderr
    if (PROJECT_DIR / ".venv" / "bin" / "python").exists() and "continuing" in result.stderr:
        assert result.returncode == 0
        assert "usage: python data_prep/build_shards.py" in result.stdout
    else:
        assert result.returncode == 1
        assert "run `make setup`" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
