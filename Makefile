# The two commands that do everything: `make demo` and `make test`. `make help` lists the others.
PYTHON ?= python3
TORCH ?= 2.13.0
VENV := .venv
BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help setup test test-slow test-all test-gpu bench-gpu gpu-report fuzz soak mutants
.PHONY: mutants-sample mutants-map lint format docs docs-links demo lock clean
CPP := cuda_ext/csrc/* benchmarks/*.cpp tests/*.cpp tests/*.h

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' Makefile | sed -E 's/:.*## /\t/' | expand -t 14

setup: $(VENV)/built ## make .venv: locked dependencies, and the operators' libraries

# A stamp is written last, so an interrupted set-up is finished by the next one.
$(VENV)/installed: requirements.lock Makefile
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "make setup: expected Python 3.11 or later, got %d.%d: use make setup PYTHON=..." % sys.version_info[:2])'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check torch==$(TORCH)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	@touch $@

$(VENV)/built: $(VENV)/installed setup.py pyproject.toml cuda_ext/toolchain.py $(wildcard cuda_ext/csrc/*)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps -e .
	@$(BIN)/python -m cuda_ext
	@if ls cuda_ext/*.so >/dev/null 2>&1; then touch $@; fi  # without a compiler, the next set-up tries again

demo: setup ## the whole path on the embedded data set; writes demo/result.json and pictures
	$(BIN)/python -m replica.demo

# One process a core, up to four; who has no more tests of its own takes from another.
test: setup ## the tests but the slow ones, on up to four cores
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal -m "not slow"

test-slow: setup ## the slow tests, on up to four cores
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal -m slow

test-all: setup ## all tests
	$(BIN)/python -m pytest

test-gpu: setup ## the tests that need a GPU; where there is none, they fail
	REQUIRE_GPU=1 $(BIN)/python -m pytest -m gpu

bench-gpu: setup ## speed on a GPU, operator and training; without one the rows say "not measured"
	$(BIN)/python -m benchmarks local_response_norm_gpu
	$(BIN)/python -m benchmarks split_conv2d --device cuda
	$(BIN)/python -m benchmarks training_gpu

# With a Python that has its own PyTorch: no .venv, no pip, no network.
gpu-report: ## all that needs a GPU, with PYTHON as it is, into gpu-report/; PART="build sanitizer" chooses
	$(PYTHON) -m benchmarks.gpu_report $(if $(PART),--part $(PART))

fuzz: setup ## damaged files of every kind for the readers, a minute each
	FUZZ_SECONDS=60 $(BIN)/python -m pytest tests/test_fuzz.py

soak: setup ## disturb builds and runs at random for SECONDS=600, and compare with undisturbed ones
	PYTHONPATH=tests:. $(BIN)/python tests/soak.py --seconds $(or $(SECONDS),600)

mutants: setup ## see whether the tests notice each mistake of tests/mutants/table.toml
	$(BIN)/python tests/mutants/run.py

mutants-sample: setup ## the same for ten of them, chosen by the revision
	$(BIN)/python tests/mutants/run.py --sample 10

mutants-map: setup ## measure anew which test module runs which function
	$(BIN)/python tests/mutants/run.py --map

lint: setup ## ruff, mypy, clang-format, codespell
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror --style=file:cuda_ext/.clang-format $(CPP)
	$(BIN)/codespell

format: setup ## let ruff and clang-format write the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i --style=file:cuda_ext/.clang-format $(CPP)

docs: setup ## the site: guides and API reference in build/docs; a broken link fails
	$(BIN)/python -m sphinx -E -W --keep-going -q docs build/docs
	@echo "built: open build/docs/index.html"

docs-links: setup ## follow the external links of the documents (needs network)
	$(BIN)/python -m sphinx -E -W --keep-going -q -b linkcheck docs build/docs-links

lock: setup ## write requirements.lock anew from requirements.in (needs network)
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-package torch --no-header requirements.in -o requirements.lock

clean: ## remove what set-up built; data and runs stay
	rm -rf $(VENV) build *.egg-info cuda_ext/*.so
