# Every target makes .venv if it is not there, brings it up to date with pyproject.toml, and does its job.
# PYTHON=python3.12 make test   picks the interpreter of a new .venv; ARGS="..." goes to the command that runs.

PYTHON ?= python3
ARGS ?=
BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: help demo test test-comfyui workflows lint bench docs readme-picture node-pictures

help:
	@echo "make demo    write demo.mp4 from a text prompt with the embedded model (no download, no GPU)"
	@echo "make test    run the tests that need neither a GPU, nor ComfyUI, nor patience"
	@echo "make test-comfyui COMFYUI_PATH=... COMFYUI_PYTHON=...   the nodes' tests, in that ComfyUI checkout and its Python"
	@echo "make docs    the documentation site, written to site/"
	@echo "make readme-picture, make node-pictures COMFYUI_PATH=... COMFYUI_PYTHON=...   docs/images anew, from real runs"
	@echo "make lint    ruff and pyright"
	@echo "make bench   the speed table of this machine (ARGS=gpu on a GPU), and time and memory of long rollouts"
	@echo "make workflows   write workflows/*.json anew from workflows/maker (ARGS='--server URL' asks a running ComfyUI)"

# torch goes first, so that a CPU build which pip finds on this machine is taken before another package asks for
# whatever build is newest. A .venv that is already there is kept and added to.
$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[train,dev]"
	touch $@

demo: $(STAMP)
	$(BIN)/salt demo $(ARGS)

test: $(STAMP)
	$(BIN)/python -m pytest -m "not slow and not gpu and not comfyui" $(ARGS)

# A plain `make test-comfyui` says what is missing instead of skipping all.
test-comfyui: $(STAMP)
	@test -n "$(COMFYUI_PATH)" -a -n "$(COMFYUI_PYTHON)" || \
		{ echo "expected COMFYUI_PATH (a checkout) and COMFYUI_PYTHON (its environment's python)"; exit 2; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[train,dev,browser]"
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
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[train,dev,docs]"
	$(BIN)/python -m mkdocs build --strict --site-dir site
	$(BIN)/python -m docs.tools.check_site site

# They need chromium, and COMFYUI_PATH and COMFYUI_PYTHON; without them they say so.
readme-picture node-pictures: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[train,dev,browser,docs]"
	COMFYUI_PATH="$(COMFYUI_PATH)" COMFYUI_PYTHON="$(COMFYUI_PYTHON)" $(BIN)/python -m docs.tools.$(subst -,_,$@)
