# Every target creates .venv when it is missing, so a fresh clone needs only make, Python 3.11 or newer, and pip.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TEACHER := .models/SmolLM2-135M-Instruct
STAMP := $(VENV)/.installed
# Tests at a time. Each takes up to two threads and 2 GiB.
JOBS ?= 2

.PHONY: install teacher demo test check docs bench test-gpu bench-gpu clean
.DEFAULT_GOAL := install

install: $(STAMP)

# Two steps: with torch pinned by constraints.txt in place, nothing after it pulls another build.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

teacher: $(TEACHER)/config.json

$(TEACHER)/config.json: | $(STAMP)
	$(BIN)/python examples/get_teacher.py $(TEACHER)

demo: $(STAMP) teacher
	$(BIN)/python examples/demo.py --teacher $(TEACHER) --out demo-out

# All that CI runs: lint, types, docs, tests.
test: check docs teacher
	$(BIN)/python -m pytest --numprocesses $(JOBS) --dist worksteal

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/hadolint docker/Dockerfile.dump docker/Dockerfile.train

docs: $(STAMP)
	$(BIN)/python docs/generate.py --check
	$(BIN)/sphinx-build --quiet --fail-on-warning --keep-going --nitpicky docs site

bench: $(STAMP) teacher
	$(BIN)/python -m benchmarks

# Both need a GPU, and fail with one line where there is none. Tests that need two GPUs are skipped on a machine with one.
test-gpu: $(STAMP)
	@$(BIN)/python -m benchmarks._device
	$(BIN)/python -m pytest -m gpu tests/gpu

# Writes results-gpu/gpu.json and results-gpu/gpu.md.
bench-gpu: $(STAMP)
	@$(BIN)/python -m benchmarks.gpu --out results-gpu

clean:
	rm -rf $(VENV) demo-out site build
