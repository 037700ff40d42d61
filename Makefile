# What a clone can do. `make` alone lists it. Everything that is installed goes into .venv; delete it to start over.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/installed
EXTRAS := embedded,bench,test,check

.PHONY: help install demo test chaos check bench

help: ## list what there is to make
	@echo "What there is to make:"
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 18

install: $(STAMP) ## put url2vec and all it needs into .venv (nothing to do the second time)
	@echo "install: url2vec is in $(BIN)/url2vec"

# The stamp is made last, so that an interrupted install is taken up again, and is older than a pyproject.toml that changed.
$(STAMP): pyproject.toml
	@echo "install: makes $(VENV) and installs url2vec into it (torch alone is some gigabytes: a minute or several)"
	@python=""; \
	for candidate in $(PYTHON) python3.11 python3.12 python3.13 python3; do \
	  if "$$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then python="$$candidate"; break; fi; \
	done; \
	if [ -z "$$python" ]; then echo "install: needs Python 3.11 or later; on Debian: apt-get install python3" >&2; exit 1; fi; \
	if ! "$$python" -c 'import ensurepip, venv' 2>/dev/null; then \
	  echo "install: $$python cannot make a virtual environment; on Debian: apt-get install python3-venv" >&2; exit 1; \
	fi; \
	[ -x $(BIN)/pip ] || "$$python" -m venv --clear $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --retries 10 -e '.[$(EXTRAS)]'
	@$(BIN)/python -m streams.warm
	@touch $@

demo: $(STAMP) ## show the whole pipeline on this machine, no server needed (ARGS=--exit stops at the end)
	@echo "demo: starts a broker, a store and a worker on this machine, and replays recorded visits"
	@$(BIN)/url2vec demo $(ARGS)

test: $(STAMP) ## run the tests (ARGS="tests/unit -k sessions" chooses)
	@echo "test: runs the tests; servers are started as needed, Apache Kafka where java and mvn are installed"
	@$(BIN)/python -m pytest -n 2 --dist loadfile $(ARGS)

chaos: $(STAMP) ## run the long chaos tests (ARGS="-k storm" chooses)
	@echo "chaos: kills, freezes and floods for an hour or more; the seed is in the header, URL2VEC_TEST_SEED sets another"
	@$(BIN)/python -m pytest --long tests/chaos $(ARGS)

check: $(STAMP) ## check formatting, lint and types
	@echo "check: formatting and lint by ruff, types by mypy"
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy

bench: $(STAMP) ## measure the pipeline beside its opponents
	@echo "bench: measures the pipeline beside its opponents"
	@$(BIN)/url2vec bench pipeline $(ARGS)
