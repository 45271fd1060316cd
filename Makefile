# make demo:  install what is needed into .venv, draw the built-in benchmark, train on it, show results.
# make check: install the development tools too, check the style, run the fast tests.
# make test:  the same with all tests.
# make demo VENV=path (also check, test): with another environment. WORKERS=n: processes of tests.
PYTHON ?= python3
VENV ?= .venv
WORKERS ?= auto
BIN := $(VENV)/bin
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(WORKERS)

.PHONY: demo check test style

demo: $(VENV)/.installed
	$(BIN)/python quickstart.py

check: style
	$(PYTEST) -m "not slow"

test: style
	$(PYTEST)

style: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

$(VENV)/.installed: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "error: $(PYTHON) is absent or older than Python 3.10; name a newer one: make PYTHON=python3.12"; exit 1; }
	@echo "Installing requirements.txt into $(VENV): some minutes, about 5 GB."
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -r requirements.txt
	touch $@

$(VENV)/.installed-dev: requirements-dev.txt $(VENV)/.installed
	$(BIN)/python -m pip install --quiet -r requirements-dev.txt
	touch $@
