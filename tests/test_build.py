"""What the build and the report say where something is missing, foreign or broken."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import PROJECT_DIR, assert_user_error, run
from torch.utils import cpp_extension

from cuda_ext import toolchain

# Compiles the CUDA library as setup.py does, with the toolkit that is named.
COMPILE = """
import logging, sys
from setuptools import Distribution
from torch.utils import cpp_extension
cpp_extension.CUDA_HOME = sys.argv[1]  # a PyTorch without CUDA looks for none
import setup
logging.basicConfig(level="INFO")  # the commands

class Compile(setup.BuildOperators):
    def build_extensions(self):
        # nor has it a library to link with
        self.compiler.link_shared_object = lambda *arguments, **options: None
        super().build_extensions()

command = Compile(Distribution({"ext_modules": [setup.cuda_library()]}), use_ninja=False)
command.build_temp, command.build_lib = sys.argv[2:]
command.ensure_finalized()
command.run()
"""


@pytest.fixture
def nvcc(tmp_path, monkeypatch):
    """A program that answers as an nvcc of CUDA 13.0, in the toolkit that PyTorch finds."""
    program = tmp_path / "bin" / "nvcc"
    program.parent.mkdir()
    program.write_text('#!/bin/sh\necho "Cuda compilation tools, release 13.0, V13.0.48"\n')
    program.chmod(0o755)
    monkeypatch.setattr(cpp_extension, "CUDA_HOME", str(tmp_path))
    return program


def test_an_nvcc_of_pytorchs_version_is_taken(nvcc):
    assert toolchain.find_nvcc() == str(nvcc)
    assert toolchain.cuda_problem("13.2") is None


def test_an_nvcc_of_another_version_is_named(nvcc):
    problem = toolchain.cuda_problem("12.8")
    assert problem == (
        f"{nvcc}: expected nvcc 12, as this PyTorch has CUDA 12.8, got 13.0: "
        "name another one's directory in CUDA_HOME"
    )


def test_a_pytorch_without_cuda_needs_no_nvcc():
    assert toolchain.cuda_problem(None) == "this PyTorch has no CUDA"


@pytest.mark.parametrize(
    ("program", "reason"),
    [("#!/bin/sh\nfalse", "fails"), ("#!/bin/sh", "says no release"), ("\0", "fails")],
)
def test_a_program_that_is_no_nvcc_is_named(program, reason, nvcc):
    nvcc.write_text(program)
    problem = toolchain.cuda_problem("13.0")
    assert f"{nvcc}: expected nvcc, got a program that {reason}" in problem
    assert "\n" not in problem


@pytest.mark.parametrize("home", [None, "/nowhere"])
def test_without_nvcc_the_report_says_how_to_get_one(home, monkeypatch):
    monkeypatch.setattr(cpp_extension, "CUDA_HOME", home)
    assert toolchain.cuda_problem("13.0") == (
        "no nvcc found: install CUDA 13's, or name its directory in CUDA_HOME"
    )


def test_architectures_are_those_that_nvcc_knows():
    assert toolchain.architectures((13, 0)) == "8.0;9.0;10.0;12.0+PTX"
    assert toolchain.architectures((12, 8)) == toolchain.architectures((13, 0))
    assert toolchain.architectures((12, 6)) == "8.0;9.0+PTX"


def compiled(home, out, **environment):
    command = ("-c", COMPILE, str(home), str(out / "objects"), str(out / "lib"))
    return run(*command, timeout=900, **environment)


@pytest.mark.parametrize("wrong", ["9.9", "sm_90a", "90", "sm_90"])
def test_an_unknown_architecture_is_refused(nvcc, tmp_path, wrong):
    result = compiled(tmp_path, tmp_path, TORCH_CUDA_ARCH_LIST=wrong)
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].startswith(f"setup.py: Unknown CUDA arch ({wrong})")
    assert "Traceback" not in result.stderr


@pytest.mark.slow
def test_the_cuda_files_compile_for_the_oldest_and_the_newest_architecture(tmp_path):
    """The others are between the two; all take five minutes of one core."""
    home = cpp_extension._find_cuda_home()
    if home is None:
        pytest.skip("no nvcc here")
    oldest, *_, newest = toolchain.architectures(toolchain.nvcc_version(f"{home}/bin/nvcc")).split(
        ";"
    )
    result = compiled(home, tmp_path, TORCH_CUDA_ARCH_LIST=f"{oldest};{newest}")
    assert result.returncode == 0, result.stderr
    (output,) = tmp_path.rglob("local_response_norm.o")
    assert output.stat().st_size > 100_000
    (output,) = tmp_path.rglob("split_conv2d.o")
    assert output.stat().st_size > 50_000
    virtual = newest.removesuffix("+PTX").replace(".", "")
    assert f"arch=compute_{virtual},code=compute_{virtual}" in result.stderr


def test_without_a_compiler_the_build_says_so_and_goes_on():
    result = run("setup.py", "--name", PATH="/nowhere", CXX="")
    assert result.returncode == 0
    assert "setup.py: no C++ compiler found: the operators will run in plain" in result.stdout


def test_setuptools_that_cannot_read_pyproject_gets_one_line():
    older = (
        "import runpy, setuptools; setuptools.__version__ = '70.3.0'; "
        "runpy.run_path('setup.py', run_name='__main__')"
    )
    result = run("-c", older, PATH="/nowhere", CXX="")
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1] == (
        "setup.py: expected setuptools 77 or later, got 70.3.0: upgrade setuptools"
    )


@pytest.fixture
def package(tmp_path):
    """A copy of cuda_ext in which nothing is built."""
    shutil.copytree(
        PROJECT_DIR / "cuda_ext", tmp_path / "cuda_ext", ignore=shutil.ignore_patterns("*.so")
    )
    shutil.copy(PROJECT_DIR / "Makefile", tmp_path)
    return tmp_path


def report(package):
    result = run("-m", "cuda_ext", "--json", cwd=package)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    return json.loads(result.stdout)


@pytest.mark.fault(42)
def test_a_library_that_is_not_built_is_reported(package):
    state = report(package)
    assert state["libraries"]["cpu"]["reason"] == "not built: run `make clean setup`"
    assert state["live"]["local_response_norm"].startswith("plain PyTorch (not built")


@pytest.mark.fault(42)
@pytest.mark.parametrize("kind", ["text", "truncated", "foreign"])
def test_a_binary_that_is_not_ours_is_reported_and_the_reference_serves(package, kind):
    binary = package / "cuda_ext" / "_cpu.abi3.so"
    if kind == "text":
        binary.write_text("no library")
    elif kind == "truncated":
        built = PROJECT_DIR / "cuda_ext" / "_cpu.abi3.so"
        if not built.exists():
            pytest.skip("no compiled operators here")
        binary.write_bytes(built.read_bytes()[:20_000])
    else:
        module = pytest.importorskip("_heapq")
        if not getattr(module, "__file__", None):
            pytest.skip("this Python has no library of its own to take")
        shutil.copy(module.__file__, binary)
    state = report(package)
    reason = state["libraries"]["cpu"]["reason"]
    assert reason.startswith("_cpu.abi3.so ")
    said = {
        "text": "cannot be loaded",
        "truncated": "is cut off",
        "foreign": "is of another project",
    }
    assert said[kind] in reason
    assert reason.endswith("run `make clean setup`")
    assert "\n" not in reason
    assert state["live"]["local_response_norm"].startswith("plain PyTorch (_cpu.abi3.so")


def test_a_memory_library_of_another_pytorch_is_reported_and_not_used(package):
    built = PROJECT_DIR / "cuda_ext" / "_memory.abi3.so"
    if not built.exists():
        pytest.skip("no compiled libraries here")
    version = torch.__version__.encode()
    other = b"1" + version[1:]
    binary = package / "cuda_ext" / built.name
    binary.write_bytes(
        built.read_bytes().replace(b"with PyTorch " + version, b"with PyTorch " + other)
    )
    state = report(package)["libraries"]["memory"]
    assert not state["is_live"]
    assert state["reason"] == (
        f"_memory.abi3.so was built with PyTorch {other.decode()}, this is {torch.__version__}: "
        "run `make clean setup`"
    )


def test_a_report_that_nobody_reads_ends_in_silence():
    read, write = os.pipe()
    os.close(read)
    result = subprocess.run(
        [sys.executable, "-m", "cuda_ext", "--json"],
        cwd=PROJECT_DIR,
        stdout=write,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    os.close(write)
    assert (result.returncode, result.stderr) == (0, "")


def test_a_wrong_setting_is_one_line_of_the_report():
    assert_user_error(run("-m", "cuda_ext", REPLICA_EXT="fast"), "cuda_ext: REPLICA_EXT: expected")


def test_the_report_says_for_what_the_library_was_built():
    libraries = json.loads(run("-m", "cuda_ext", "--json").stdout)["libraries"]
    if libraries["cpu"]["is_live"]:
        assert "PyTorch 2.11 and later" in libraries["cpu"]["built_for"]


@pytest.mark.slow
def test_operators_stay_within_their_tensors_under_address_sanitizer(tmp_path):
    """The tests of the operators with every access of the compiled code checked."""
    compiler = toolchain.find_compiler()
    if compiler is None or "clang" in Path(compiler).resolve().name:
        pytest.skip("needs g++, whose sanitizer can be loaded before Python")
    # The runtime comes before everything else, and with it the C++ library that it looks into.
    runtime = [
        subprocess.run(
            [compiler, f"-print-file-name={name}"], capture_output=True, text=True, check=True
        ).stdout.strip()
        for name in ("libasan.so", "libstdc++.so")
    ]
    if not all(Path(path).is_absolute() for path in runtime):
        pytest.skip("this compiler has no AddressSanitizer")
    for name in ("cuda_ext", "data_prep", "replica", "tests", "setup.py", "pyproject.toml"):
        source = PROJECT_DIR / name
        if source.is_dir():
            shutil.copytree(source, tmp_path / name, ignore=shutil.ignore_patterns("*.so"))
        else:
            shutil.copy(source, tmp_path / name)
    (tmp_path / "README.md").touch()
    (tmp_path / "LICENSE").touch()
    flags = dict.fromkeys(("CFLAGS", "CXXFLAGS", "LDFLAGS"), "-fsanitize=address -g1 -O1")
    environment = {**os.environ, **flags}
    subprocess.run(
        [sys.executable, "setup.py", "-q", "build_ext", "--inplace"],
        cwd=tmp_path,
        env=environment,
        check=True,
    )
    assert b"__asan_report_load" in (tmp_path / "cuda_ext" / "_cpu.abi3.so").read_bytes()
    pytest_command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"]
    others = ("compile_and_export", "without_compiled", "kernel")  # other processes and compilers
    left_out = ("torch_compile", "switch", "report", *others)
    chosen = ["-m", "not slow", "-k", " and ".join(f"not {name}" for name in left_out)]
    modules = ("test_operators", "test_split_conv2d", "test_pooling", "test_same_map_norm")
    result = subprocess.run(
        [*pytest_command, *chosen, *(f"tests/{name}.py" for name in modules)],
        cwd=tmp_path,
        env={**os.environ, "LD_PRELOAD": " ".join(runtime), "ASAN_OPTIONS": "detect_leaks=0"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
