"""Imports point down, names say what they hold, documents agree with code and records."""

import ast
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import PROJECT_DIR, run, run_here

from replica import paper
from replica.recipes import ALIASES, RECIPES
from replica.recipes.changes import settable_fields

PACKAGES = ("cuda_ext", "data_prep", "replica")
# What `replica` may import of data_prep: the file format, what is beside it, one picture's way.
OF_DATA_PREP = (
    *("data_prep.errors", "data_prep.files", "data_prep.manifest", "data_prep.shards"),
    *("data_prep.parent", "data_prep.pictures", "data_prep.progress", "data_prep.arguments"),
    *("data_prep.signals", "data_prep.streams", "data_prep.workers"),
    # A submission needs the ids of ILSVRC's development kit, which shards do not have.
    *("data_prep.sources.devkit", "data_prep.sources.trees"),
    "data_prep.require_environment",
)
# Of `replica`, the lowest first; commands are above all of them.
LAYERS = ("paper", "recipes", "network", "feed", "distributed", "training", "results")
LAYERS += ("claims", "sweeps")
# The same inside data_prep, and inside its sources, where what is not named is a data set.
DATA_PREP_LAYERS = (
    *("signals", "streams", "errors", "arguments", "parent", "progress", "files", "workers"),
    *("pictures", "jpeg", "color_statistics"),
    *("manifest", "manifest_json", "hdf5_files", "shards", "labels_csv", "sources"),
    "shard_writer",
    *("shard_builder", "plan", "chosen_pictures", "builder", "pairs", "job_array"),
    *("verification", "contact_sheet"),
)
SOURCE_LAYERS = ("places", "archives", "trees", "text", "picture_set", "devkit", "", "recognize")
MOST_LINES = 400
# Longer modules, each with its reason.
LONG_MODULES: dict[str, str] = {}
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


def test_imports_inside_data_prep_go_down_the_layers():
    modules = sorted((PROJECT_DIR / "data_prep").rglob("*.py"))
    commands = {"build_shards", "verify_shards"}
    seen = set()
    for path in modules:
        own, *inner = path.relative_to(PROJECT_DIR / "data_prep").with_suffix("").parts
        seen.add(own)
        for name in imports_of(path):
            package, _, module = name.partition(".")
            if package != "data_prep" or module in ("", "require_environment"):
                continue
            other, *deeper = module.split(".")
            assert other not in commands, f"{path} imports the command {name}"
            if own == other == "sources":
                assert not deeper or height_in_sources(deeper[0]) <= height_in_sources(inner[0]), (
                    f"{path} imports upwards: {name}"
                )
            elif own not in commands:
                assert DATA_PREP_LAYERS.index(other) < DATA_PREP_LAYERS.index(own), (
                    f"{path} imports upwards: {name}"
                )
    assert seen == {"__init__", *DATA_PREP_LAYERS, *commands}


def height_in_sources(module):
    return SOURCE_LAYERS.index(module if module in SOURCE_LAYERS else "")


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
    generated = {"build", "shards", "toy", "runs", "demo", "gpu-report"}
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
        is_package = PROJECT_DIR.joinpath(*command[1].split("."), "__main__.py").exists()
        name = f"{command[1]}.__main__" if is_package else command[1]
        return importlib.import_module(name), command[2:]
    return importlib.import_module(command[0].removesuffix(".py").replace("/", ".")), command[1:]


# Pages of docs/ that only include one of the others are left out.
DOCUMENTS = (
    *("README.md", "REPRODUCE.md", "CONTRIBUTING.md", "data_prep/FORMAT.md"),
    *(
        f"docs/{path.name}"
        for path in sorted((PROJECT_DIR / "docs").glob("*.md"))
        if not path.read_text().startswith("```{include}")
    ),
)
WITHOUT_COMMANDS = ("data_prep/FORMAT.md", "docs/api.md", "docs/reliability.md")


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
    assert checked or document in WITHOUT_COMMANDS


def test_every_make_target_of_the_documents_exists():
    makefile = (PROJECT_DIR / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    for document in (*DOCUMENTS, ".github/workflows/ci.yml"):
        named = re.findall(r"\bmake ([a-z-]+)", (PROJECT_DIR / document).read_text())
        assert set(named) - {"sure"} <= targets, document


def test_pre_commit_runs_the_tools_of_make_lint():
    lint = (PROJECT_DIR / "Makefile").read_text().split("\nlint:")[1].split("\n\n")[0]
    tools = re.findall(r"\$\(BIN\)/(\S+(?: check| format)?)", lint)
    hooks = (PROJECT_DIR / ".pre-commit-config.yaml").read_text()
    assert re.findall(r"entry: \.venv/bin/(\S+(?: check| format)?)", hooks) == tools


def test_the_workflow_runs_every_python_of_the_lock_and_what_ci_runs():
    workflow = (PROJECT_DIR / ".github" / "workflows" / "ci.yml").read_text()
    assert 'python: ["3.11", "3.12", "3.13"]' in workflow
    assert "- run: make setup PYTHON=python\n" in workflow
    here = (PROJECT_DIR / ".ci" / "run").read_text()
    commands = re.findall(r"^make .*", here, re.MULTILINE)
    assert re.findall(r"run: (make (?!setup).*)", workflow) == commands
    cached = re.search(r"cache-dependency-path: \|\n((?: {12}\S+\n)+)", workflow)
    assert cached.group(1).split() == ["requirements.lock", "Makefile"]


def anchors_of(document):
    """The anchors that GitHub and `make docs` give the headings of a document."""
    text = re.sub(r"```.*?```", "", document.read_text(), flags=re.DOTALL)
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_files_and_headings_that_the_documents_link_exist():
    num_anchors = 0
    for document in (*DOCUMENTS, "CHANGELOG.md"):
        path = PROJECT_DIR / document
        links = re.findall(r"\]\(([^)#:\s]*)(?:#([^)]+))?\)", path.read_text())
        for link, anchor in links:
            linked = path.parent / link if link else path
            assert linked.exists(), (document, link)
            if anchor:
                assert anchor in anchors_of(linked), (document, link, anchor)
                num_anchors += 1
    assert num_anchors > 10


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
    (figure,) = re.findall(r"two CPU cores train (\d+) images\s+per second", text)
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


BARE = ("-S",)  # a Python without site-packages, as a user's is who forgot to activate .venv
COMMANDS = [
    ("data_prep/build_shards.py", "--help"),
    ("data_prep/verify_shards.py", "--help"),
    *(("-m", f"replica.{name}", "--help") for name in ("train", "test", "info", "demo")),
    *(("-m", f"replica.{name}", "--help") for name in ("figures", "control", "recipes")),
    *(("-m", f"replica.{name}", "--help") for name in ("predict", "neighbors", "reproduce")),
    *(("-m", f"replica.{name}", "--help") for name in ("export", "sweep")),
    ("-m", "benchmarks", "--help"),
]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_goes_on_with_the_environments_python_or_says_how_to_get_one(command):
    for tried in ({}, {"REPLICA_ENVIRONMENT_TRIED": "1"}):
        result = run(*BARE, *command, PYTHONPATH=str(PROJECT_DIR), **tried)
        (line,) = result.stderr.strip().splitlines()
        assert " lacks numpy, PIL, h5py, scipy" in line
        if (PROJECT_DIR / ".venv" / "bin" / "python").exists() and not tried:
            assert line.endswith(f"continuing with {PROJECT_DIR / '.venv' / 'bin' / 'python'}")
            assert result.returncode == 0
            assert "usage: python " in result.stdout
            assert command[0].removeprefix("-m") in result.stdout
        else:
            assert line.endswith("run `make setup`, then `source .venv/bin/activate`")
            assert result.returncode == 1


OLD = ["3.6", "3.7", "3.8", "3.9", "3.10"]


@pytest.mark.fault(46)
@pytest.mark.parametrize("version", OLD)
def test_an_old_python_says_so_in_one_line(version):
    found = sorted(
        Path(os.environ.get("PYENV_ROOT", "~/.pyenv"))
        .expanduser()
        .glob(f"versions/{version}.*/bin/python")
    )
    old = found[0] if found else shutil.which(f"python{version}")
    if not old:
        pytest.skip(f"no Python {version} here")
    for command in COMMANDS:
        result = subprocess.run(
            [old, *command],
            cwd=PROJECT_DIR,
            capture_output=True,
            text=True,
            env={**os.environ, "REPLICA_ENVIRONMENT_TRIED": "1"},
        )
        (line,) = result.stderr.strip().splitlines()
        assert result.returncode == 1
        assert f"(Python {version})" in line
        assert "make setup" in line


@pytest.mark.parametrize("module", ["replica", "replica.train", "data_prep.build_shards"])
@pytest.mark.parametrize("arguments", [(), ("-m", "replica.train", "--help")])
def test_an_import_never_starts_another_program(module, arguments):
    """It raises with the line, whatever the program that imports us was given."""
    program = f"try:\n import {module}\nexcept ImportError as error:\n print('raised', error)"
    result = run(*BARE, "-c", program, *arguments, PYTHONPATH=str(PROJECT_DIR))
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith("raised ")
    assert "lacks numpy, PIL, h5py, scipy" in result.stdout
    assert "run `make setup`" in result.stdout


def test_only_the_main_program_starts_the_environments_python():
    for path in modules():
        text = path.read_text()
        if path != PROJECT_DIR / "data_prep" / "__init__.py":
            assert "os.exec" not in text, path
        for call in re.findall(r"require_environment\((.*)\)", text):
            assert call.startswith("__name__") or path.name == "__init__.py", path
