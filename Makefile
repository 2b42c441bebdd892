# make setup, make demo, make test: see `make help`. PYTHON=python3.12 chooses the interpreter for a new .venv.

PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python

# Stamps carry a checksum of what they stand for, so nothing is installed twice and nothing stale is taken for done.
sum = $(shell cat $(1) | cksum | cut -d' ' -f1)
RUNTIME := $(VENV)/.runtime-$(call sum,requirements.txt)
DEV := $(VENV)/.dev-$(call sum,requirements.txt requirements-cluster.txt requirements-dev.txt)
CACHE := $(shell echo '$(EMRRG_HOME)|$(XDG_CACHE_HOME)|$(HOME)' | cat - emrrg_core/model/language_model.py | cksum | cut -d' ' -f1)
READY := $(VENV)/.ready-$(CACHE)

# two tests at once; those of a file one after the other
BESIDE := -n 2 --dist loadfile

PIP := $(PY) -m pip install --disable-pip-version-check --no-input --progress-bar on

# pip says nothing while it unpacks: say every 20 seconds how far it is
define patiently
( while sleep 20 < /dev/null > /dev/null 2>&1; do echo "  ... $$(du -sm $(VENV) | cut -f1) MB in $(VENV)"; done ) & \
	beat=$$!; trap 'kill $$beat' EXIT; $(1)
endef

.PHONY: help setup demo test test-slow test-all bench venv
.DELETE_ON_ERROR:

help:
	@echo "make setup   make .venv, install requirements.txt, fetch the language model, compile the scan kernel"
	@echo "make demo    the same where it is missing, then the app on http://127.0.0.1:7860"
	@echo "make test    lint, types and tests; make test-all runs the slow ones too"
	@echo "make bench   speeds on this machine: drafting, what a reader waits for, readers at once, the scan kernel"

# always looks; what is there already is not made again
setup: $(RUNTIME)
	@$(call prepare)

demo: $(RUNTIME) $(READY)
	@exec $(PY) app.py

test: $(DEV) $(READY)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(PY) -m pytest $(BESIDE) -m "not slow"

test-slow: $(DEV) $(READY)
	$(PY) -m pytest $(BESIDE) -m slow

test-all: test test-slow

bench: $(DEV) $(READY)
	$(PY) benchmarks/decode.py
	$(PY) benchmarks/latency.py
	$(PY) benchmarks/load.py
	$(PY) benchmarks/scan.py

define prepare
echo "Step 2 of 3: compile the scan kernel, where there is a C compiler"
@$(PY) -c "from emrrg_core.model import language_model, selective_scan; \
	print('selective scan:', selective_scan.chosen_backend('cpu')); print('Step 3 of 3: the language model, fetched (93 MB) and converted once', flush=True); \
	raise SystemExit(language_model.main())"
@touch $(READY)
endef

$(READY): | $(RUNTIME)
	@rm -f $(VENV)/.ready-*
	@$(call prepare)

$(RUNTIME): | venv
	@echo "Step 1 of 3: Python packages into $(VENV), one to two gigabytes; a few minutes"
	@$(call patiently,$(PIP) -r requirements.txt)
	@rm -f $(VENV)/.runtime-* && touch $@

$(DEV): | $(RUNTIME)
	@echo "Packages for tests"
	@$(call patiently,$(PIP) -r requirements-dev.txt)
	@rm -f $(VENV)/.dev-* && touch $@

# sees to a .venv that works, or says why there is none
venv:
	@if [ -e $(VENV) ] || [ -L $(VENV) ]; then \
		$(PY) -c 'import pip, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
			echo "$(VENV) is broken or older than Python 3.11: remove it (rm -r $(VENV)) and run make again." >&2; exit 1; }; \
	else \
		$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
			echo "EMRRG needs Python 3.11 or newer, and $(PYTHON) is not: install one and run make PYTHON=python3.12 ..." >&2; \
			exit 1; }; \
		$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
			echo "$(PYTHON) cannot make a virtual environment: on Debian or Ubuntu, apt install python3-venv." >&2; exit 1; }; \
	fi
