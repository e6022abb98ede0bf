# Two commands: `make run` and `make test`. Paths are relative, so a folder with spaces in its name works.
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python

.PHONY: run test check bench clean help
.DEFAULT_GOAL := help

help:
	@echo "make run    install and start everything; prints the address"
	@echo "make test   run the whole suite with coverage"
	@echo "make check  lint, types, layers, migrations, API schema"
	@echo "make bench  the short form of every benchmark"

$(VENV)/.ready: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed")'
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

$(VENV)/.ready-dev: requirements-dev.txt $(VENV)/.ready
	$(PY) -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	@touch $@

run: $(VENV)/.ready
	@exec $(PY) manage.py up

test: $(VENV)/.ready-dev
	$(PY) -m pytest -n auto --dist loadgroup --cov --cov-report=lcov:.coverage.lcov $(ARGS)
	$(PY) tests/coverage_floors.py

check: $(VENV)/.ready-dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	SECRET_KEY=only-for-this-check $(VENV)/bin/mypy
	$(VENV)/bin/lint-imports
	$(PY) -m pytest -q -p no:cacheprovider tests/unit/test_guards.py

bench: $(VENV)/.ready-dev
	$(PY) -m benchmarks $(ARGS)

clean:
	rm -rf $(VENV)
