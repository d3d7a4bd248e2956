"""The owner's commands need six packages; what else they can use is asked for in one line."""

import os
import subprocess
import sys
import tomllib

import pytest
from conftest import PROJECT_DIR
from runs import lines_of

from data_prep import DEPENDENCIES, progress
from data_prep.progress import duration

SIX = {"torch", "numpy", "PIL", "scipy", "h5py", "pytest"}
# What the six need themselves.
BENEATH = {
    *("filelock", "fsspec", "jinja2", "markupsafe", "mpmath", "networkx", "setuptools", "sympy"),
    *("typing_extensions", "iniconfig", "packaging", "pluggy", "py", "pygments"),
    *("nvidia", "torchgen", "triton", "functorch", "cuda"),
}
# Hides every other installed package, from Python and from importlib.util.find_spec.
SITECUSTOMIZE = """
import sys
from importlib.machinery import PathFinder

class Six(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        spec = super().find_spec(name, path, target)
        top = name.partition(".")[0]
        # Names with an underscore are parts of a package, or of Python; setuptools brings others.
        is_there = top in {there!r} or top.startswith("_") or "/setuptools/" in repr(spec)
        is_installed = "/site-packages/" in repr(spec)
        return spec if is_there or not is_installed else None

sys.meta_path[sys.meta_path.index(PathFinder)] = Six
"""


@pytest.fixture(scope="module")
def with_six(tmp_path_factory):
    """Runs `python` in an empty directory, with the six packages and the project alone."""
    directory = tmp_path_factory.mktemp("six")
    (directory / "site").mkdir()
    text = SITECUSTOMIZE.format(there=SIX | BENEATH)
    (directory / "site" / "sitecustomize.py").write_text(text)

    def run(*command, cwd=PROJECT_DIR, **environment):
        path = os.pathsep.join([str(directory / "site"), str(PROJECT_DIR)])
        return subprocess.run(
            [sys.executable, *command],
            cwd=cwd,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
            env={**os.environ, "PYTHONPATH": path, "REPLICA_MALLOC": "stock", **environment},
        )

    return run


ABSENT = ("tqdm", "matplotlib", "tensorboard", "simplejpeg", "cv2", "hypothesis", "xdist")


def test_the_other_packages_are_really_not_there(with_six):
    lines = [f"import importlib.util, {', '.join(sorted(SIX))}"]
    lines += [f"assert importlib.util.find_spec({name!r}) is None, {name!r}" for name in ABSENT]
    result = with_six("-c", "\n".join(lines))
    assert (result.returncode, result.stderr) == (0, "")


def test_the_project_asks_for_nothing_but_the_six():
    content = tomllib.loads((PROJECT_DIR / "pyproject.toml").read_text())["project"]
    names = {name.split(">=")[0] for name in content["dependencies"]}
    assert names == {"torch", "numpy", "pillow", "scipy", "h5py"}
    assert {*DEPENDENCIES, "torch", "pytest"} == SIX


def test_with_six_packages_a_set_is_built_trained_on_and_tested(with_six, toy_dir, tmp_path):
    shards, out = str(tmp_path / "shards"), tmp_path / "run"
    arguments = ("--source", "kaggle", "--input", str(toy_dir), "--output", shards)
    result = with_six("data_prep/build_shards.py", *arguments, "--workers", "1")
    assert result.returncode == 0, result.stderr
    (line,) = result.stderr.splitlines()
    assert "tqdm is not installed: pip install 'replica-alexnet[progress]'" in line

    train = ("-m", "replica.train", "--recipe", "mini", "--gpus", "2", "--device", "cpu")
    train += ("--batch-size", "16", "--steps", "3", "--data", shards, "--out", str(out))
    result = with_six(*train)
    assert result.returncode == 0, result.stderr
    (line,) = [line for line in result.stdout.splitlines() if "tensorboard" in line]
    assert "pip install 'replica-alexnet[tensorboard]'" in line
    assert [line["step"] for line in lines_of(out, "step")] == [1, 2, 3]
    first, *_, last = result.stderr.splitlines()
    assert "replica-alexnet[progress]" in first
    assert last.startswith("epoch 1, step 3: validation loss ")

    test = ("-m", "replica.test", "--ten-crop", "--checkpoint", str(out / "best.pt"))
    result = with_six(*test)
    assert result.returncode == 0, result.stderr
    assert "on 30 val images, ten crops" in result.stdout

    for command, extra in (
        (("-m", "replica.figures", "--run", str(out)), "figures"),
        (("data_prep/build_shards.py", *arguments, "--decoder", "fast"), "fast"),
    ):
        result = with_six(*command)
        assert result.returncode == 2, result.stderr
        (line,) = result.stderr.splitlines()
        assert f"pip install 'replica-alexnet[{extra}]'" in line


# Modules of tests that are about another package as a whole.
ABOUT_OTHERS = {
    "test_export": "needs the extra export",
    "test_fuzz": "hypothesis is not installed",
    "test_safetensors_file": "needs the extra export",
    "test_sweep": "needs the extra sweep",
    "test_sweep_study": "needs the extra sweep",
}


def test_with_six_packages_every_test_is_found_and_the_papers_shapes_are_checked(with_six):
    alone = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    pytest_command = ("-m", "pytest", "-q", "-p", "no:cacheprovider")
    result = with_six(*pytest_command, "--collect-only", **alone)
    assert result.returncode == 0, result.stdout
    skipped = [line for line in result.stdout.splitlines() if line.startswith("SKIPPED")]
    assert len(skipped) == len(ABOUT_OTHERS)
    for module, reason in ABOUT_OTHERS.items():
        (line,) = [line for line in skipped if f"tests/{module}.py" in line]
        assert line.endswith(reason)
    result = with_six(*pytest_command, "tests/test_paper_shapes.py", **alone)
    assert result.returncode == 0, result.stdout


# --- Progress without tqdm


@pytest.fixture
def plain(monkeypatch):
    """Lines in place of tqdm's bar, and a clock that stands still."""
    monkeypatch.setattr(progress, "tqdm", None)
    progress._say_that_tqdm_is_absent.cache_clear()
    now = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_without_tqdm_a_line_comes_now_and_then_with_the_time_left(plain, capsys):
    with progress.progress_bar(200, " images", initial=100, desc="test") as bar:
        for seconds in (20, 20, 20, 20):
            plain[0] += seconds
            bar.set_postfix_str("1 bad file", refresh=False)
            bar.update(10)
    first, *lines = capsys.readouterr().err.splitlines()
    assert "tqdm is not installed: pip install 'replica-alexnet[progress]'" in first
    assert lines == [
        "test 120/200 images, 02:40 left, 1 bad file",
        "test 140/200 images, 02:00 left, 1 bad file",
    ]


def test_a_bar_that_is_switched_off_says_nothing(plain, capsys):
    with progress.progress_bar(10, " images", disable=True) as bar:
        plain[0] += 1000
        bar.update(5)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        *((0, "00:00"), (65.9, "01:05"), (3600, "1:00:00")),
        *((2 * 86400 + 11045, "2d 3:04:05"), (86400 + 245, "1d 0:04:05")),
    ],
)
def test_a_duration_is_read_as_a_clock(seconds, text):
    assert duration(seconds) == text
