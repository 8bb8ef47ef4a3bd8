# Set-up is shared, and skipped when it is up to date.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test browser check bench benchmarks leaderboards studies clean

demo: $(STAMP)
	$(BIN)/ctxbench demo --out report

test: $(STAMP) browser
	$(BIN)/python -m pytest -n 2 --dist worksteal

# The tests of the page need Chromium; where it can be neither found nor installed they are skipped.
browser:
	@for name in chromium chromium-browser google-chrome; do command -v $$name >/dev/null && exit 0; done; \
	{ test "$$(id -u)" = 0 && command -v apt-get >/dev/null && apt-get update --quiet=2 && \
	  DEBIAN_FRONTEND=noninteractive apt-get install --quiet=2 chromium >/dev/null; } || \
	echo "There is no Chromium: the tests of the page in a browser will be skipped."

leaderboards: $(STAMP)
	$(BIN)/ctxbench report --markdown results/leaderboard.md
	$(BIN)/ctxbench report --site results/leaderboards

studies: $(STAMP)
	$(BIN)/ctxbench study results/runs/attention-vs-decomposition-* --out results/studies

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Our blocks against official implementations, whose code is fetched to a folder outside the project.
bench: $(STAMP)
	$(BIN)/python -m tests.bench.official

benchmarks: $(STAMP)
	$(BIN)/python -m pytest tests/bench --override-ini addopts= --benchmark-only --benchmark-autosave --benchmark-group-by=func --benchmark-time-unit=ms --benchmark-columns=min,median,iqr,rounds

clean:
	rm -rf $(VENV) report dist .pytest_cache .mypy_cache .ruff_cache .benchmarks .hypothesis

$(STAMP): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $(STAMP)
