# `make demo` and `make test` are the two commands for a newcomer; each sets up what it needs.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
ROOMS  := images partitions updater server
DESTDIR ?=
NODE_PYTHON ?= /usr/bin/python3

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint types contracts unit tools bench bench-functions slow test-boot soak fuzz coverage proto requirements papers man completions install clean

help: ## say what can be made
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | sort | expand -t 16

setup: $(STAMP) ## make .venv with everything

$(STAMP): requirements/dev.txt pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/dev.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps -e .
	touch $@

demo: setup ## a fleet on one machine: KEEP=1 leaves the server up
	$(BIN)/python -m demo $(if $(KEEP),--keep) $(if $(MAKE_ONLY),--make-only) $(if $(NO_MAKE),--no-make)

tools: ## install by apt what the tests drive, when root
	@sh .ci/tools

# Modules go to workers in the order of their folders: what takes longest comes first.
JOBS ?= 2
test: setup tools lint types contracts ## lint, types, contracts and every quick test; JOBS=0 for one process
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/mypy $(ROOMS) tests demo docs

contracts: setup
	$(BIN)/lint-imports

ROUNDS ?= 3
bench: setup tools ## measure beside the peers: BENCH_DIR=folder of images, ROWS=install,delta,... ROUNDS=3 KEEP=1 MAKE_ONLY=1 NO_MAKE=1
	$(BIN)/python -m tests.bench $(if $(BENCH_DIR),--folder $(BENCH_DIR)) $(if $(ROWS),--rows $(ROWS)) --rounds $(ROUNDS) $(if $(KEEP),--keep) $(if $(MAKE_ONLY),--make-only) $(if $(NO_MAKE),--no-make)

bench-functions: setup ## time single functions, and what an idle node costs
	$(BIN)/python -m pytest -m bench -s tests/bench

slow: setup tools ## the tests that boot or soak for minutes
	$(BIN)/python -m pytest -m slow

test-boot: setup tools ## machines with each boot loader: updates, fall-backs, replayed power cuts
	$(BIN)/python -m pytest -m boot -s tests/e2e/boot

N ?= 1000
soak: setup tools ## N=1000 power cuts of machines over all loaders, and the replays; goes on where it was
	$(BIN)/python -m tests.e2e.boot.soak --cuts $(N)

coverage: setup tools
	$(BIN)/coverage run -m pytest
	$(BIN)/coverage combine -q || true
	$(BIN)/coverage report

proto: setup ## regenerate the protobuf module
	$(BIN)/python -m images.proto.generate

papers: man completions ## manual pages, completions, and docs/errors.md afresh
	$(BIN)/python -m docs.papers errors docs/errors.md

man: setup ## manual pages, into build/share for `make install`
	$(BIN)/python -m docs.papers man build/share/man

completions: setup ## for bash, zsh and fish, into build/share for `make install`
	$(BIN)/python -m docs.papers completions build/share

install: ## a node's files below DESTDIR=; NODE_PYTHON= is the image's interpreter
	sh updater/system/install "$(DESTDIR)" "$(NODE_PYTHON)"

requirements: ## pin afresh; needs uv on PATH
	uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-annotate --custom-compile-command "make requirements" pyproject.toml --group dev --extra server -o requirements/dev.txt
	uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-annotate --custom-compile-command "make requirements" pyproject.toml -o requirements/node.txt
	uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-annotate --custom-compile-command "make requirements" pyproject.toml --extra server -o requirements/server.txt
	uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-annotate --custom-compile-command "make requirements" --group build -o requirements/build.txt

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis build
