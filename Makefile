# Two commands need nothing but Python 3.11 or later, git and make:
#   make quickstart   install into .venv, run the quickstart recipe, say where its report is
#   make test         install everything the tests use, run them
# Both install once; later calls reuse .venv until pyproject.toml or constraints.txt changes.

PYTHON ?= python3
ARGS ?=

# TORCH_INDEX names one more package index, asked for torch alone; set it to PyTorch's CPU index where the build with
# GPU libraries (several GB) is not wanted. It is passed as --extra-index-url, which adds to the usual index: torch's own
# dependencies keep coming from there. --index-url would replace the usual index, and they would not be found.
TORCH_INDEX ?=

VENV := .venv
BIN := $(VENV)/bin
UV := $(shell command -v uv 2>/dev/null)

ifeq ($(UV),)
CREATE = $(PYTHON) -m venv $(VENV)
INSTALL = $(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt
TORCH_FROM = $(if $(TORCH_INDEX),--extra-index-url "$(TORCH_INDEX)")
else
# uv reads no PIP_* variable, and takes a package from the first index that has it unless told to compare.
CREATE = uv venv -q --allow-existing --python "$(PYTHON)" $(VENV)
INSTALL = uv pip install -q --python $(BIN)/python -c constraints.txt $(if $(PIP_FIND_LINKS),--find-links "$(PIP_FIND_LINKS)")
TORCH_FROM = $(if $(TORCH_INDEX),--extra-index-url "$(TORCH_INDEX)" --index-strategy unsafe-best-match)
endif

.DEFAULT_GOAL := help
.PHONY: help quickstart test lint types docs-check clean

help: ## show the commands
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 22
	@echo '  Options: PYTHON=python3.12, TORCH_INDEX=<address of a package index>, ARGS="seed=2" (quickstart) or ARGS="-k store" (test).'

quickstart: $(VENV)/.ready-quickstart ## votes to report on a tiny model, on a laptop; ARGS="section.key=value" overrides
	@echo 'Running recipes/quickstart.yaml (a few minutes on two cores).'
	@$(BIN)/tiebreak run recipes/quickstart.yaml $(ARGS)

test: $(VENV)/.ready-test ## every test that needs no accelerator and no network
	@$(BIN)/python -m pytest $(ARGS)

lint: $(VENV)/.ready-test ## ruff, rules and layout
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

types: $(VENV)/.ready-test ## mypy, strict
	@$(BIN)/mypy

docs-check: $(VENV)/.ready-test ## run the blocks of README.md and docs/
	@$(BIN)/python -m pytest tests/docs $(ARGS)

clean: ## remove .venv and every cache; keeps runs/
	@rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find src tests -name __pycache__ -type d -prune -exec rm -rf {} +

# A stamp is touched only after its command succeeded, so a half-finished install is done again.

$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "tiebreak needs Python 3.11 or later, and $(PYTHON) is $$($(PYTHON) --version 2>/dev/null || echo 'not there'); name another one: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
	@echo 'Creating $(VENV) (seconds).'
	@$(CREATE)
	@touch $@

$(VENV)/.torch: constraints.txt | $(VENV)/.made
	@echo 'Installing torch (200 MB for the CPU build, several GB with GPU libraries; 1 to 10 minutes, once).'
	@$(INSTALL) $(TORCH_FROM) torch
	@touch $@

$(VENV)/.ready-quickstart: pyproject.toml constraints.txt | $(VENV)/.torch
	@echo 'Installing tiebreak with what training and reports need (about a minute, once).'
	@$(INSTALL) -e '.[train,report]'
	@touch $@

$(VENV)/.ready-test: pyproject.toml constraints.txt | $(VENV)/.torch
	@echo 'Installing tiebreak with everything its tests use (1 to 2 minutes, once).'
	@$(INSTALL) -e '.[train,hub,report,postgres,verify,dev]'
	@touch $@
