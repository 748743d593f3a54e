# Every target makes .venv if it is not there, brings it up to date with pyproject.toml, and does its job.
# PYTHON=python3.12 make test   picks the interpreter of a new .venv; ARGS="..." goes to the command that runs.

PYTHON ?= python3
ARGS ?=
BIN := .venv/bin
STAMP := .venv/.installed
LOWEST := .venv-lowest
PIP_INSTALL := -m pip install --quiet --disable-pip-version-check

# The fast tests, in two processes; a file's tests stay in one, so that what they share is made once.
PYTEST := -m pytest -m "not slow and not gpu and not comfyui" -n 2 --dist loadfile

.PHONY: help demo test test-lowest test-comfyui workflows lint bench docs readme-picture live-picture node-pictures

help:
	@echo "make demo             generate demo.mp4 from a text prompt with the tiny model (no download, no GPU)"
	@echo "make test             run the fast tests (no GPU, no ComfyUI)"
	@echo "make test-lowest      run them with the lowest allowed versions of all dependencies, in .venv-lowest"
	@echo "make test-comfyui COMFYUI_PATH=... COMFYUI_PYTHON=...   run the node tests in this ComfyUI and its Python"
	@echo "make lint             ruff check, ruff format --check and pyright"
	@echo "make bench            speed table of this machine (ARGS=gpu on a GPU), time and memory of long rollouts"
	@echo "make docs             build the documentation site in site/"
	@echo "make readme-picture, make node-pictures COMFYUI_PATH=... COMFYUI_PYTHON=...   record docs/images again"
	@echo "make live-picture     record docs/images/live.webp again"
	@echo "make workflows        write workflows/*.json again (ARGS='--server URL' checks them with a running ComfyUI)"

# torch goes first: pip then takes a CPU build if this machine offers one, before another package asks for the newest
# build. An existing environment is kept and added to.
$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python $(PIP_INSTALL) -c constraints.txt torch
	$(BIN)/python $(PIP_INSTALL) -c constraints.txt -e ".[train,dev]"
	touch $@

$(LOWEST)/.installed: pyproject.toml constraints-lowest.txt
	test -x $(LOWEST)/bin/python || $(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/python $(PIP_INSTALL) -c constraints-lowest.txt torch
	$(LOWEST)/bin/python $(PIP_INSTALL) -c constraints-lowest.txt -e ".[train,dev]"
	touch $@

demo: $(STAMP)
	$(BIN)/salt demo $(ARGS)

test: $(STAMP)
	$(BIN)/python $(PYTEST) $(ARGS)

test-lowest: $(LOWEST)/.installed
	$(LOWEST)/bin/python $(PYTEST) $(ARGS)

# A plain `make test-comfyui` says what is missing instead of skipping all.
test-comfyui: $(STAMP)
	@test -n "$(COMFYUI_PATH)" -a -n "$(COMFYUI_PYTHON)" || \
		{ echo "expected COMFYUI_PATH (a checkout) and COMFYUI_PYTHON (its environment's python)"; exit 2; }
	$(BIN)/python $(PIP_INSTALL) -c constraints.txt -e ".[train,dev,browser]"
	COMFYUI_PATH="$(COMFYUI_PATH)" COMFYUI_PYTHON="$(COMFYUI_PYTHON)" \
		$(BIN)/python -m pytest tests/comfyui $(ARGS)

workflows: $(STAMP)
	$(BIN)/python -m workflows.maker $(ARGS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

bench: $(STAMP)
	$(BIN)/python -m benchmarks $(or $(ARGS),cpu)
	$(BIN)/python -m benchmarks.rollout

docs: $(STAMP)
	$(BIN)/python $(PIP_INSTALL) -c constraints.txt -e ".[train,dev,docs]"
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --site-dir site
	$(BIN)/python -m docs.tools.check_site site

# They need chromium, and COMFYUI_PATH and COMFYUI_PYTHON; without them they say so.
readme-picture live-picture node-pictures: $(STAMP)
	$(BIN)/python $(PIP_INSTALL) -c constraints.txt -e ".[train,dev,browser,docs]"
	COMFYUI_PATH="$(COMFYUI_PATH)" COMFYUI_PYTHON="$(COMFYUI_PYTHON)" $(BIN)/python -m docs.tools.$(subst -,_,$@)
