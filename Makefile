# `make demo` and `make test` do all the set-up themselves: a .venv next to this file, pinned by constraints.txt.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
export OMP_NUM_THREADS ?= 1

.PHONY: demo test docs dist coverage lint bench smoke examples clean

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c constraints.txt torch
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev]'
	touch $(STAMP)

demo: $(STAMP)
	$(BIN)/prunus demo --out runs/demo

test: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest -q -n 2 --dist loadfile --doctest-modules $(PYTEST_ARGS) tests src

# The site as folders of HTML that open from the disk: runs/site/index.html.
docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

# Wheel and source distribution: their metadata, and the wheel alone in an environment that holds nothing else.
dist: $(STAMP)
	rm -rf dist runs/dist
	$(BIN)/python -m build --outdir dist
	$(PYTHON) -m venv runs/dist/twine
	runs/dist/twine/bin/python -m pip install -q -c constraints.txt twine
	runs/dist/twine/bin/twine check --strict dist/*
	$(PYTHON) -m venv runs/dist/alone
	runs/dist/alone/bin/python -m pip install -q -c constraints.txt dist/*.whl
	cd runs/dist && alone/bin/python -m prunus doctor

# Apart from `test`: tracing lines costs the suite half as much again on Python before 3.12.
coverage: $(STAMP)
	$(BIN)/pytest -q -n 2 --dist loadfile --cov --cov-report=term:skip-covered --cov-fail-under=90 $(PYTEST_ARGS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(STAMP)
	$(BIN)/python benchmarks/analysis_cost.py
	$(BIN)/python benchmarks/dirichlet_cost.py

smoke: $(STAMP)
	$(BIN)/python benchmarks/smoke.py

# Every example, in a fresh environment of what it says it needs. `make examples NAMES=own_cnn` runs one.
examples:
	$(PYTHON) .ci/examples.py $(NAMES)

clean:
	rm -rf $(VENV) runs .pytest_cache .mypy_cache .ruff_cache .hypothesis
