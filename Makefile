# `make demo` and `make test` do all set-up themselves, in .venv; they need only Python and make.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DEMO_WORKDIR ?= runs/quickstart
# Tracing takes one core alone, so two processes keep two cores busy.
TEST_PROCESSES ?= 2
MINUTES ?= 60

.PHONY: help demo demo-slides test lint docs notebooks fuzz lock clean-demo

help:
	@echo "make demo        install, train and evaluate DenseNet201 on drawn tiles (minutes, on a CPU)"
	@echo "make demo-slides draw whole slides and predict them with the demo's network: tables, heatmaps, pages"
	@echo "make test        install, check format, lint and types, run the tests"
	@echo "make lint        format, lint and types only"
	@echo "make docs        the documentation as a site, in site/"
	@echo "make notebooks   execute the notebooks and keep what they show: minutes"
	@echo "make fuzz        MINUTES=60: read damaged files of every kind; see docs/reliability.md"
	@echo "make lock        write a new requirements.lock from the ranges (with Python 3.11 requirements-oldest.lock)"
	@echo "make clean-demo  remove the demo's run, so that it trains from the start"

$(VENV)/python.stamp:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: $(PYTHON) is older than Python 3.11; set PYTHON=/path/to/a/newer/one"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/run.stamp: $(VENV)/python.stamp requirements.txt
	$(BIN)/python -m pip install --quiet --requirement requirements.txt
	@touch $@

$(VENV)/test.stamp: $(VENV)/run.stamp pyproject.toml
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	@touch $@

demo: $(VENV)/run.stamp
	$(BIN)/python main.py --config=configs/quickstart.py --workdir=$(DEMO_WORKDIR)

# The demo's network on slides that are drawn in the same way, from the file to the heatmap.
demo-slides: $(VENV)/run.stamp
	$(BIN)/python -m pip install --quiet --editable '.[slides]'
	test -f $(DEMO_WORKDIR)/report/report.html || $(MAKE) demo
	test -d $(DEMO_WORKDIR)-slides || \
		$(BIN)/python -m densenet_flax.data draw-slides --output=$(DEMO_WORKDIR)-slides
	$(BIN)/python main.py --mode=slide --workdir=$(DEMO_WORKDIR) --slides='$(DEMO_WORKDIR)-slides/*.tif' \
		--output=$(DEMO_WORKDIR)-slides/results --stride=0.5

clean-demo:
	rm -rf $(DEMO_WORKDIR)

lint: $(VENV)/test.stamp
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

test: lint
	$(BIN)/python -m pytest --numprocesses=$(TEST_PROCESSES) --dist=loadfile

$(VENV)/docs.stamp: $(VENV)/run.stamp pyproject.toml
	$(BIN)/python -m pip install --quiet --editable '.[docs]'
	@touch $@

docs: $(VENV)/docs.stamp
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

notebooks: $(VENV)/test.stamp
	$(BIN)/python -m notebooks.execute

fuzz: $(VENV)/test.stamp
	$(BIN)/python -m tests.fuzz --minutes=$(MINUTES)

# In a separate venv, so that it lists what the ranges allow today and nothing else. Python 3.11 gives the
# oldest end, every later one the main line: `make lock PYTHON=python3.11`, `make lock PYTHON=python3.13`.
lock: LOCK = $(shell $(PYTHON) -c 'import sys; print("requirements%s.lock" % ("-oldest" * (sys.version_info < (3, 12))))')
lock:
	rm -rf $(VENV)-lock && $(PYTHON) -m venv $(VENV)-lock
	$(VENV)-lock/bin/python -m pip install --quiet --requirement requirements.txt
	{ echo "# One exact set that the ranges of requirements.txt allow: $$($(PYTHON) --version), Linux, CPU."; \
	  echo "# pip install --requirement $(LOCK)"; \
	  $(VENV)-lock/bin/python -m pip freeze; } > $(LOCK)
	rm -rf $(VENV)-lock
