# Two commands for a machine with nothing but Python >= 3.11:
#   make demo    environment, install, the main job on the embedded pool and model
#   make test    environment, install, the fast test suite
# The tests that it leaves out, minutes on two cores:
#   make test-slow
# What is published, built and used outside the checkout:
#   make wheel-check
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
MEASURED := equal or exact or differences or adam_direction or ranks_by_cosine or dense_method

.PHONY: demo test test-slow check audit wheel-check reference-errors install clean

demo: install
	$(BIN)/gistselect demo --output runs/demo

test: install
	$(BIN)/python -m pytest

test-slow: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports
	$(BIN)/python tools/check_light_start.py
	$(BIN)/python tools/write_reference.py --check
	$(BIN)/python tools/write_results.py --check

# How far each formula is from its reference in the tests; docs/method.md shows it.
reference-errors: install
	$(BIN)/python -m pytest --numprocesses=0 --reference-errors -k '$(MEASURED)' $(addprefix tests/test_,$(addsuffix .py,\
	  run representations ekfac text_representations loss_drop embedding perplexity directions gradients))

wheel-check: install
	$(BIN)/python tools/check_wheel.py

# Known faults of the tested versions. It asks a database on the network (pypi.org, osv.dev), so it is no part of `check`.
audit: install
	$(BIN)/python -m pip install --quiet pip-audit
	$(BIN)/pip-audit --strict --requirement constraints.txt --no-deps --disable-pip

install: $(VENV)/installed

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) runs
