# Everything runs out of .venv in this directory; nothing is written outside the repository.
# Needed beforehand: Python 3.11 or newer, make, and a package registry that pip can reach.

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
# The locks name every package with its hash, so nothing is left to resolve, and nothing comes in unnamed.
INSTALL := $(PIP) install --quiet --no-deps --require-hashes
MODELS := $(wildcard src/modelport/catalog/prepare/*.py) src/modelport/catalog/defaults.py

.DELETE_ON_ERROR:
.PHONY: help setup run test check bench soak compat lock generate screenshots clean

help:  ## say what there is
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: $(VENV)/.stamp-models  ## build .venv and prepare the default models
	@echo "setup: everything is in place"

run: setup  ## set up, then serve on 127.0.0.1:8000
	@exec $(BIN)/modelport serve $(ARGS)

test: setup $(VENV)/.stamp-test  ## set up, then run the whole suite
ifdef ARGS
	@$(BIN)/python -m pytest $(ARGS)
else
	@echo "test: running the suite, a file on each core at a time"
	@$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile --ignore tests/chaos
	@echo "test: running tests/chaos, which wants the machine to itself"
	@$(BIN)/python -m pytest tests/chaos
endif

check: setup $(VENV)/.stamp-test  ## format, lint, types, layers, sizes, banned calls, locks, generated files
	@$(BIN)/python tools/check.py

bench: setup $(VENV)/.stamp-test  ## measure against the peers in one run (long)
	@$(BIN)/python -m bench $(ARGS)

soak: setup $(VENV)/.stamp-test  ## load one server for an hour and watch its memory, then the full chaos campaigns
	@$(BIN)/python -m bench.soak $(ARGS)
	@MODELPORT_CAMPAIGN=full $(BIN)/python -m pytest tests/chaos

compat: setup $(VENV)/.stamp-test  ## run the official SDKs' own test suites against our server
	@$(BIN)/python -m tests.compat $(ARGS)

lock: $(VENV)/.stamp-venv  ## resolve the requirements anew and write requirements/*.lock
	@$(BIN)/python tools/lock.py $(ARGS)

generate: setup  ## write the generated documents anew
	@$(BIN)/python tools/generate.py

clean:  ## remove what set-up built; the data directory stays
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache build dist

$(VENV)/.stamp-venv:
	@echo "setup: making $(VENV)"
	@python=$$(for name in $(PYTHON) python3 python3.13 python3.12 python3.11; do \
	  $$name -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$name && break; done); \
	if [ -z "$$python" ]; then echo "setup: Python 3.11 or newer is needed; none was found (PYTHON=… names one)" >&2; exit 1; fi; \
	$$python -m venv $(VENV) || { echo "setup: $$python can't make virtual environments; on Debian: apt-get install python3-venv" >&2; exit 1; }
	@touch $@

$(VENV)/.stamp-run: requirements/run.lock $(VENV)/.stamp-venv
	@echo "setup: installing the packages that serving needs (the first time this loads about 300 MB)"
	@$(INSTALL) -r requirements/run.lock
	@touch $@

$(VENV)/.stamp-package: pyproject.toml $(VENV)/.stamp-run
	@echo "setup: installing modelport itself, from src/"
	@$(PIP) install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/.stamp-models: $(MODELS) $(VENV)/.stamp-package
	@echo "setup: preparing the default models"
	@$(BIN)/python -m modelport.catalog.prepare
	@touch $@

$(VENV)/.stamp-test: requirements/test.lock $(VENV)/.stamp-package
	@echo "setup: installing what tests and checks need"
	@$(INSTALL) -r requirements/test.lock
	@touch $@
