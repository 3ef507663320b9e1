# Two commands are all a fresh clone needs: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# OpenMP threads that spin while they wait make two processes on the same cores 20 to 40 times slower.
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: demo test test-faults test-others lint format

# One resolver run, so that the pins in constraints.txt decide which torch everything else is resolved against.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "dearkd needs Python 3.11 or newer; run make with PYTHON=/path/to/python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $(STAMP)

demo: $(STAMP)
	$(BIN)/dearkd demo $(ARGS)

# The fault tests mostly wait, the others compute: side by side they take little longer than the others alone.
test: $(STAMP) lint
ifdef ARGS
	$(BIN)/python -m pytest $(ARGS)
else
	$(MAKE) --jobs=2 $(if $(filter output-sync,$(.FEATURES)),--output-sync=target) test-faults test-others
endif

# Processes killed, Redis and storage failing, disks full.
test-faults: $(STAMP)
	$(BIN)/python -m pytest -m faults $(ARGS)

test-others: $(STAMP)
	$(BIN)/python -m pytest -m 'not faults' $(ARGS)

lint: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
