# Needs Python 3.10 to 3.12, make and the package index, nothing else.
PYTHON ?= python3
VENV = .venv
BIN = $(VENV)/bin
INSTALLED = $(VENV)/installed-$(shell cksum pyproject.toml | cut -d' ' -f1)

.PHONY: demo test test-rest test-all check types rooms install clean

install: $(INSTALLED)

$(INSTALLED):
	$(PYTHON) -c 'import sys; sys.exit(0 if (3, 10) <= sys.version_info[:2] <= (3, 12) else "Python 3.10 to 3.12 is needed: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	rm -f $(VENV)/installed-*
	touch $@

demo: install
	$(BIN)/lumina2-trainer demo

# Which tests are which: tests/conftest.py and CONTRIBUTING.md.
REST = host or browser or cuda or process or train or bench
PYTEST = $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadgroup

test: install
	$(PYTEST) -m 'not ($(REST))'

test-rest: install
	$(PYTEST) -m '$(REST)'

test-all: test test-rest

check: install types rooms
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# mypy takes module names from folders, and this folder is the package.
types: install
	mkdir -p .types
	ln -sfn .. .types/lumina2_trainer
	cd .types && ../$(BIN)/mypy --config-file ../pyproject.toml -p lumina2_trainer.trainer_core -p lumina2_trainer.nodes -p lumina2_trainer.benchmarks

# Who may import whom: the floors of the house, in pyproject.toml.
rooms: install
	mkdir -p .types
	ln -sfn .. .types/lumina2_trainer
	PYTHONPATH=.types $(BIN)/lint-imports --cache-dir .types/.import_linter_cache

clean:
	rm -rf $(VENV) .types build *.egg-info
