# Two commands do everything: `make demo` runs the main job, `make test` runs checks and tests.
# Each makes .venv on first use. PYTHON picks the interpreter, PIP_ARGS adds options for pip, such as
#   make demo PIP_ARGS="--extra-index-url https://download.pytorch.org/whl/cpu"
PYTHON ?= python3
PIP_ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --constraint constraints.txt $(PIP_ARGS)

# Byte code is written when a module is first imported, so that later starts are quick.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test check test-slow test-gpu bench format clean
.DELETE_ON_ERROR:

demo: $(VENV)/.installed
	$(BIN)/asnn-goose distill quickstart

test: check
	$(BIN)/python -m pytest

check: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test-slow: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m slow --timeout=1800

test-gpu: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m gpu

bench: $(VENV)/.installed-dev
	$(BIN)/python benchmarks/scan.py
	$(BIN)/python benchmarks/kd_loss.py
	$(BIN)/python benchmarks/delta.py
	$(BIN)/python benchmarks/membrane.py
	$(BIN)/python benchmarks/mixer_inputs.py
	$(BIN)/python benchmarks/training_step.py

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: asnn-goose needs Python 3.11 or newer, $(PYTHON) is older: make PYTHON=python3.12"; exit 2; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
		{ echo "error: $(PYTHON) has no venv module: install it (Debian, Ubuntu: apt install python3-venv)"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.installed: $(VENV)/.created pyproject.toml constraints.txt
	@echo "installing asnn-goose into $(VENV) (torch alone is about 200 MB; the first time takes minutes)"
	$(INSTALL) --editable '.[cpu]'
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.created pyproject.toml constraints.txt
	@echo "installing asnn-goose and the tools for tests into $(VENV) (the first time takes minutes)"
	$(INSTALL) --editable '.[dev]'
	@touch $@ $(VENV)/.installed

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache
