# Each target does all set-up on a machine with Python 3.11 or newer and nothing else.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
AXE = $(VENV)/node_modules/axe-core/axe.min.js

.PHONY: demo test test-reliability programs benchmark figures docs clean

demo: $(VENV)/installed
	$(BIN)/attention-transfer demo

test: $(VENV)/installed programs
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile

# Interruptions, many processes and other faults that take long to inject.
test-reliability: $(VENV)/installed
	$(BIN)/python -m pytest -m slow --numprocesses auto tests/reliability

benchmark: $(VENV)/installed
	$(BIN)/attention-transfer benchmark step

# Writes the figures of README.md and docs/*.md from the files in benchmarks/results and docs/results.
figures: $(VENV)/installed
	cd benchmarks && $(abspath $(BIN))/python -m figures

# The documentation site, in the folder site; a broken link or reference fails.
docs: $(VENV)/installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# A browser for the report and shells for completion. Tests whose program is missing are left out
# (not where CI is set).
programs: $(VENV)/installed
	@missing=; for program in chromium zsh fish; do \
		command -v $$program > /dev/null || missing="$$missing $$program"; done; \
		test -z "$$missing" || { apt-get -qq update && apt-get -qq install --yes $$missing; } \
		|| echo "install$$missing, or their tests are left out"
	@test -f $(AXE) || npm install --silent --no-fund --prefix $(VENV) axe-core@4.14.1 \
		|| echo "no axe-core: install npm, or the test of the report's accessibility is left out"

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt torch torchvision
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[demo,dev]'
	touch $@

clean:
	rm -rf $(VENV)
