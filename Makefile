# The two commands: `make app` and `make test`. Each makes .venv and installs into it when needed; a second run starts at once.
PYTHON ?= python3
PORT ?= 7860
READY := .venv/ready
READY_DEV := .venv/ready-dev

app: $(READY)  ## serve the page on PORT (7860)
	.venv/bin/vdmreason app --port $(PORT)

test: $(READY_DEV)  ## every test; browser tests on an installed Chromium
	@scripts/browser.sh
	@rm -f vdmreason/ui/*.pyi  # what gradio left there is of another day
	.venv/bin/ruff check . && .venv/bin/ruff format --check . && .venv/bin/mypy
	OMP_NUM_THREADS=1 .venv/bin/python -m pytest -q -n 3 --dist loadfile --no-loadscope-reorder --durations=15

$(READY): requirements.lock pyproject.toml scripts/install.sh
	@PYTHON=$(PYTHON) scripts/install.sh
	@touch $@

$(READY_DEV): requirements.lock requirements-dev.lock pyproject.toml scripts/install.sh
	@PYTHON=$(PYTHON) scripts/install.sh dev
	@touch $(READY) $@

lock: $(READY_DEV)  ## write both locks anew from what .venv holds
	.venv/bin/python scripts/lock.py

clean:  ## remove .venv and caches, never runs/
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache

help:
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

.PHONY: app test lock clean help
