# Two commands: `make demo` and `make test`; each sets up what it needs, once.
PYTHON ?= python3
VENV   ?= .venv
# what pip installs first; for another build of torch: make demo TORCH="torch==2.11.0"
TORCH  ?= torch==2.13.0
BIN    := $(VENV)/bin
PYTEST := $(BIN)/python -m pytest -n auto --dist worksteal
STAMPS := $(VENV)/.stamps
SOURCES := setup.py pyproject.toml $(shell find csrc -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')
INTERPRETED := $(addprefix tests/kernels/test_triton,.py $(addprefix _,$(addsuffix .py,autotune backup bregman compaction groups masks random steps zo))) \
    tests/optim/test_optim_triton.py tests/optim/test_optim_triton_bregman.py
FORMATTED := $(shell find csrc tests -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')

.PHONY: demo test lint test-cpu test-triton compile-checks bench clean

demo: $(STAMPS)/installed
	$(BIN)/sparse-optim demo

test: lint test-cpu test-triton

$(STAMPS)/torch:
	@command -v g++ >/dev/null || { echo "g++ is missing: install it (Debian: apt-get install g++)"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check "setuptools>=77" wheel ninja "pybind11>=2.13" $(TORCH)
	@mkdir -p $(STAMPS) && touch $@

# an editable install: Python sources are used in place, compiled ones are rebuilt when they change
$(STAMPS)/installed: $(STAMPS)/torch $(SOURCES)
	SPARSE_KERNELS_BUILD_TESTS=1 $(BIN)/pip install --quiet --disable-pip-version-check \
	    --no-build-isolation --editable ".[test,dev]"
	@touch $@

lint: $(STAMPS)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check --quiet .
	$(BIN)/clang-format --dry-run -Werror $(FORMATTED)
	$(BIN)/mypy

test-cpu: $(STAMPS)/installed
	$(PYTEST) -m "not slow and not large" $(addprefix --ignore=,$(INTERPRETED))

# the interpreter is chosen at import, so its tests are a process of their own
test-triton: $(STAMPS)/installed
	TRITON_INTERPRET=1 $(PYTEST) -m "not slow and not large" $(INTERPRETED)

# what needs nvcc, or more than a minute: CUDA for three architectures, the compiled wheel, the CPU
# kernels' machine code and instruction counts, sanitizers, long tests
compile-checks: $(STAMPS)/installed
	$(PYTEST) --dist loadfile -m "slow and not large"  # fixtures of a file compile things once

bench: $(STAMPS)/installed
	$(BIN)/python -m bench

clean:
	rm -rf build dist out $(VENV) *.egg-info sparse_kernels/*.so
