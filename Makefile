# The two commands of the README are `make demo` and `make test`. Each sets up what it needs: a virtual environment in
# .venv with pinned packages. Set PYTHON to choose the interpreter, VENV to put the environment elsewhere.

VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

ifneq ($(words $(VENV)),1)
$(error VENV must be one path without spaces)
endif

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-embeddings check bench clean

help: ## what there is
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(READY) ## the job, as far as it is built, on the stand-in model: no key, no network
	@$(BIN)/python examples/demo.py

test: $(READY) ## every test
	@$(BIN)/pytest $(PYTEST_ARGS)

test-embeddings: $(READY) ## the tests of the extra, which is installed first (torch: install its CPU build before, or it brings gigabytes)
	@$(BIN)/pip install --quiet --disable-pip-version-check 'sentence-transformers>=3.0'
	@$(BIN)/pytest -m embeddings tests/test_embedding.py $(PYTEST_ARGS)

check: $(READY) ## lint, format, types, imports
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

bench: $(READY) ## measurements, as ratios within one run
	@for script in benchmarks/*.py; do echo "== $$script"; $(BIN)/python $$script || exit 1; done

setup: $(READY) ## only the environment

clean: ## remove the environment (not your data in .selfimprove)
	@if [ -f "$(VENV)/pyvenv.cfg" ]; then rm -rf "$(VENV)"; else echo "$(VENV) is no virtual environment; nothing removed."; fi

$(READY): pyproject.toml constraints.txt .setup.sh
	@PYTHON="$(PYTHON)" VENV="$(VENV)" sh .setup.sh
