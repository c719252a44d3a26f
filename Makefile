# make demo    learnt strides beside fixed ones, from poor initial strides
# make test    all tests but the slow ones
# make docs    the documentation's site, into build/docs
#
# Every target installs what it needs into .venv first; the demo needs less. Another interpreter:
# make PYTHON=python3.13 test

PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
comma := ,
INSTALLED := $(VENV)/.installed
DEMO_INSTALLED := $(VENV)/.installed-demo

.PHONY: help demo docs test test-slow lint wheel install

help:
	@echo 'make demo       train small networks: learnt strides beside fixed ones'
	@echo 'make test       run all tests but the slow ones'
	@echo 'make test-slow  run the slow tests'
	@echo 'make docs       execute the notebooks and build the site into build/docs'
	@echo 'make lint       ruff check, ruff format --check, mypy'
	@echo 'make wheel      build the source distribution and the wheel into dist/'

demo: $(DEMO_INSTALLED)
	$(VENV)/bin/diffstride-study demo

# One process per core, each with one thread: threads of several processes would wait for each other.
# Tests that lie together stay in one process while both have work, so that it compiles once what they share.
test: install
	OMP_NUM_THREADS=1 $(PY) -m pytest -n auto --dist worksteal -m 'not slow'

# What JAX compiles here runs once: code that is made fast, rather than fast code. The quick tests take
# JAX as it is.
test-slow: install
	OMP_NUM_THREADS=1 XLA_FLAGS='--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false' $(PY) -m pytest -n auto --dist worksteal -m slow

# Every warning is reported, and an error at the end.
docs: install
	OMP_NUM_THREADS=1 $(PY) docs/run_notebooks.py
	$(PY) -m sphinx -b html -W --keep-going -q docs build/docs

lint: install
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

# The wheel is built from the source distribution, which so proves complete.
wheel: install
	$(PY) -m build --no-isolation

install: $(INSTALLED)

# An interpreter that already sits in .venv is kept, and is the one to check.
define set_up
	@python=$(PY); test -x "$$python" || python='$(PYTHON)'; \
	version=$$("$$python" --version 2>&1) || version='not found'; \
	"$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "DiffStride needs Python 3.11 or newer, but '$$python' is: $$version."; \
	  echo "Name another (make PYTHON=python3.13 test), and remove an older .venv first."; \
	  exit 1; } >&2
	@$(PY) -m pip --version >/dev/null 2>&1 || '$(PYTHON)' -m venv $(VENV) || { \
	  echo "No virtual environment could be made; on Debian and Ubuntu: apt install python3-venv" >&2; \
	  exit 1; }
	$(PY) -m pip install --disable-pip-version-check -c constraints.txt -e '.[$(1)]'
endef

$(INSTALLED): pyproject.toml constraints.txt
	$(call set_up,torch$(comma)flax$(comma)equinox$(comma)experiments$(comma)docs$(comma)dev)
	@touch $(DEMO_INSTALLED) $@

$(DEMO_INSTALLED): pyproject.toml constraints.txt
	$(call set_up,demo)
	@touch $@
