# Each target does all set-up on a machine with Python 3.11 or newer and nothing else.
PYTHON ?= python3
VENV ?= .venv
ifeq ($(OS),Windows_NT)
BIN = $(VENV)/Scripts
else
BIN = $(VENV)/bin
endif
AXE = $(VENV)/node_modules/axe-core/axe.min.js

# Tests of formulas, settings and data, for every system.
PORTABLE = $(patsubst %,tests/test_%.py,attention_distillation augmentation auto_beta channels \
	class_attention config configuration_files decoding double_backward files formulas fused \
	gradient_terms labels_as_people_have_them locks logit_losses measures mixed_dtypes paired_errors \
	pairing points study_statistics taps terms transfer)
# Whole runs beside, for the lowest versions of the dependencies.
LOWEST = $(VENV)-lowest
RUNS = $(patsubst %,tests/test_%.py,cache demo fine_tuning gradient_runs loading maps_drawing \
	optimizers predict report seeds training)

.PHONY: demo lint test test-reliability test-portable test-lowest programs benchmark figures pictures docs \
	dist release clean

demo: $(VENV)/installed
	$(BIN)/attention-transfer demo

test: lint programs
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Interruptions, many processes and other faults that take long to inject.
test-reliability: $(VENV)/installed
	$(BIN)/python -m pytest -m slow --numprocesses auto tests/reliability

# For macOS and Windows, on which they have not run yet.
test-portable: $(VENV)/installed
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile $(PORTABLE)

# With the lowest version of each dependency that pyproject.toml allows, in an environment of its own.
test-lowest:
	$(PYTHON) -m venv $(LOWEST)
	$(PYTHON) scripts/lowest_versions.py datasets demo metrics > $(LOWEST)/constraints.txt
	$(LOWEST)/bin/pip install --quiet --constraint $(LOWEST)/constraints.txt --editable '.[datasets,demo,metrics]' \
		hypothesis pytest pytest-timeout pytest-xdist
	$(LOWEST)/bin/python -m pytest --numprocesses auto --dist loadfile $(PORTABLE) $(RUNS)

benchmark: $(VENV)/installed
	$(BIN)/attention-transfer benchmark step

# Writes the figures of README.md and docs/*.md from the files in benchmarks/results and docs/results.
figures: $(VENV)/installed
	cd benchmarks && $(abspath $(BIN))/python -m figures

# Runs the demo and draws the pictures of README.md, docs and the notebook from it.
pictures: $(VENV)/installed programs
	$(BIN)/python scripts/pictures.py

# The documentation site, in the folder site; a broken link or reference fails.
docs: $(VENV)/installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# The source archive, and the wheel that is built from it, in the folder dist.
dist: $(VENV)/installed
	rm -rf dist
	$(BIN)/python -m build --outdir dist

# The wheel in a new environment: the demo, predictions, an export, and the export without torch.
release: dist
	$(PYTHON) scripts/try_release.py dist/*.whl

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
	rm -rf $(VENV) $(LOWEST) dist site
