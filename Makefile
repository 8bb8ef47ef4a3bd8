# Set-up is shared, and skipped when it is up to date.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test check bench clean

demo: $(STAMP)
	$(BIN)/ctxbench demo --out report

test: $(STAMP)
	$(BIN)/python -m pytest -n 2 --dist worksteal

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(STAMP)
	$(BIN)/python -m pytest tests/bench --override-ini addopts= --benchmark-only --benchmark-autosave --benchmark-group-by=func --benchmark-time-unit=ms --benchmark-columns=min,median,iqr,rounds

clean:
	rm -rf $(VENV) report dist .pytest_cache .mypy_cache .ruff_cache .benchmarks .hypothesis

$(STAMP): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $(STAMP)
