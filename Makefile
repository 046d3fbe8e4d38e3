# Two commands on a fresh machine: `make demo` (set-up and the main job) and `make test` (set-up and the tests).
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: setup demo test test-all lint api claims golden wheel clean
setup: $(VENV)/.ready

# torch is asked for as a range with an upper bound: an open range takes a CUDA build of several gigabytes.
$(VENV)/.ready: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q "torch>=2.11,<2.14"
	$(BIN)/pip install -q -e ".[text,track,dev]"
	touch $@

demo: setup
	$(BIN)/python -m sidera demo $(if $(DATA),--data $(DATA))

test: setup lint
	$(BIN)/python -m pytest -n 2 --dist loadgroup -q

test-all: setup lint
	$(BIN)/python -m pytest -n 2 --dist loadgroup -q -m "slow or not slow"

lint: setup
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell src docs benchmarks/*.py *.md

api: setup  # API reference, from the docstrings
	$(BIN)/pdoc --docformat google -o build/api sidera

claims: setup  # which committed figures were measured with other code than today's
	$(BIN)/python benchmarks/claims.py

golden: setup  # record anew what every recipe does in twenty steps, and say what changed
	$(BIN)/python tests/golden/golden_runs.py --write

# dist/ receives the source distribution and the wheel that is built from it; the recipes travel inside (setup.py).
wheel: setup
	rm -rf build dist
	$(BIN)/python -m build --no-isolation

clean:
	rm -rf $(VENV) build dist runs .pytest_cache .mypy_cache .ruff_cache
