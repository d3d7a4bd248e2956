"""Commands are named as they exist where the user is: in a checkout, or installed from a wheel."""

import json
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile

import pytest
from conftest import PROJECT_DIR, assert_user_error, run

from data_prep.errors import command_for

SCRIPTS = {
    "replica-build-shards": "data_prep.build_shards",
    "replica-verify-shards": "data_prep.verify_shards",
    "replica-train": "replica.train",
    "replica-control": "replica.control",
    "replica-test": "replica.test",
    "replica-predict": "replica.predict",
    "replica-neighbors": "replica.neighbors",
    "replica-export": "replica.export",
    "replica-info": "replica.info",
    "replica-recipes": "replica.recipes",
    "replica-compare": "replica.compare",
    "replica-figures": "replica.figures",
    "replica-report": "replica.report",
    "replica-demo": "replica.demo",
    "replica-reproduce": "replica.reproduce",
    "replica-sweep": "replica.sweep",
}
# Where their `main` is.
ENTRIES = SCRIPTS | {"replica-recipes": "replica.recipes.__main__"}
# Asks every script and every module for its help, in one process.
HELP = """
import importlib, sys
for script, module in {scripts!r}.items():
    main = importlib.import_module(module).main
    for sys.argv[0] in (script, module):
        try:
            main(["--help"])
        except SystemExit as end:
            assert not end.code
"""


@pytest.mark.parametrize(
    ("started", "module", "command"),
    [
        ("x/bin/replica-train", "data_prep.build_shards", "replica-build-shards"),
        ("x/bin/replica-build-shards", "replica.train", "replica-train"),
        ("replica/train.py", "data_prep.build_shards", "python data_prep/build_shards.py"),
        ("data_prep/build_shards.py", "replica.train", "python -m replica.train"),
    ],
)
def test_in_a_checkout_commands_are_named_as_the_readme_does(started, module, command, monkeypatch):
    monkeypatch.setattr(sys, "argv", [started])
    monkeypatch.chdir(PROJECT_DIR)
    assert command_for(module) == command


def test_every_command_that_python_m_replica_lists_has_a_script():
    project = tomllib.loads((PROJECT_DIR / "pyproject.toml").read_text())["project"]
    assert project["scripts"] == {script: f"{entry}:main" for script, entry in ENTRIES.items()}
    from replica.__main__ import COMMANDS

    assert {*SCRIPTS.values(), "cuda_ext"} == set(COMMANDS)


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A wheel without compiled operators, installed into a directory of its own."""
    directory = tmp_path_factory.mktemp("wheel")
    source, site = directory / "source", directory / "site"
    no_builds = shutil.ignore_patterns("*.so", "__pycache__")
    for package in ("replica", "data_prep", "cuda_ext", "benchmarks"):
        shutil.copytree(PROJECT_DIR / package, source / package, ignore=no_builds)
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(PROJECT_DIR / name, source)
    build = f"import setuptools.build_meta as backend; backend.build_wheel({str(directory)!r})"
    result = run("-c", build, cwd=source, PATH="/nowhere", CXX="")
    assert result.returncode == 0, result.stderr
    (wheel,) = directory.glob("*.whl")
    result = run(
        "-m", "pip", "install", "--no-index", "--no-deps", "--target", str(site), str(wheel)
    )
    assert result.returncode == 0, result.stderr
    (directory / "empty").mkdir()
    return wheel, site, directory / "empty"


def run_installed(installed, *command, **environment):
    """Runs `python`, or a script of the wheel, in an empty directory."""
    _, site, empty = installed
    if command[0] in SCRIPTS:
        command = (str(site / "bin" / command[0]), *command[1:])
    return run(*command, cwd=empty, PYTHONPATH=str(site), **environment)


def test_the_wheel_has_the_three_packages_and_nothing_else(installed):
    names = {name.split("/")[0] for name in zipfile.ZipFile(installed[0]).namelist()}
    assert {name for name in names if not name.endswith(".dist-info")} == {
        *("replica", "data_prep", "cuda_ext")
    }


def test_help_names_each_script_and_each_module_as_it_was_started(installed):
    result = run_installed(installed, "-c", HELP.format(scripts=ENTRIES))
    assert result.returncode == 0, result.stderr
    usages = [line for line in result.stdout.splitlines() if line.startswith("usage: ")]
    expected = [
        f"usage: {name}"
        for script, module in SCRIPTS.items()
        for name in (script, f"python -m {module}")
    ]
    assert [usage.split(" [")[0] for usage in usages] == expected
    assert not re.search("make (setup|demo|test)", result.stdout)


def test_an_installed_command_names_the_next_one_as_it_exists_there(installed):
    result = run_installed(installed, "-m", "replica.train", "--data", "none")
    assert_user_error(result, "`python -m data_prep.build_shards --output none`")
    result = run_installed(installed, "replica-train", "--data", "none")
    assert_user_error(result, "`replica-build-shards --output none`")
    result = run_installed(installed, "replica-test")
    assert_user_error(result, "`replica-train --gpus 2`")
    listed = run_installed(installed, "-m", "replica").stdout
    assert "python -m data_prep.build_shards  " in listed
    assert ".py" not in listed


def test_an_installed_script_builds_with_processes_of_its_own(installed, toy_dir):
    arguments = ("--input", str(toy_dir), "--output", "shards", "--size", "32", "--workers", "2")
    result = run_installed(installed, "replica-build-shards", *arguments)
    assert result.returncode == 0, result.stderr
    assert "shards/manifest.json is complete" in result.stdout


@pytest.mark.fault(46)
def test_an_installed_command_without_its_dependencies_says_what_to_install(installed):
    result = run_installed(installed, "-S", "-m", "data_prep.build_shards")
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert line.endswith("-m pip install numpy pillow h5py scipy`")


def test_installed_operators_that_were_not_built_name_no_makefile(installed):
    result = run_installed(installed, "-m", "cuda_ext")
    assert "cpu library: not built: build and install the project anew" in result.stdout
    assert "make " not in result.stdout


def test_the_demo_shows_commands_that_exist_and_needs_no_matplotlib(tmp_path, monkeypatch, capsys):
    """Its own words; what it runs is replaced by what a run leaves."""
    from replica import demo

    shown = []

    def answer(command, **_):
        shown.append(command[1:3])
        if command[2] == "replica.train":
            (tmp_path / "run").mkdir()
            (tmp_path / "run" / "checkpoint-00000001.pt").touch()
        result = {"top1_error": 0.1, "top5_error": 0.1}
        result |= {"top1_interval": (0, 1), "top5_interval": (0, 1)}
        return subprocess.CompletedProcess(command, 0, json.dumps(result))

    def no_pictures(*_):
        raise demo.UserError("figures need matplotlib: `pip install 'replica-alexnet[figures]'`")

    monkeypatch.setattr(demo.subprocess, "run", answer)
    monkeypatch.setattr(demo, "draw_run", no_pictures)
    monkeypatch.chdir(tmp_path)
    assert demo.main(["--out", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    commands = [line.split()[1:4] for line in lines if line.startswith("$ ")]
    modules = ["data_prep.build_shards", "replica.train", "replica.test"]
    assert commands == [["python", "-m", module] for module in modules]
    assert shown == [["-m", module] for module in modules]
    assert "no pictures: figures need matplotlib" in "\n".join(lines)
    assert f"wrote {tmp_path / 'result.json'} in 0 s" in lines
