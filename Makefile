# Everything runs in .venv, made from what pyproject.toml says. PYTHON chooses the interpreter (3.11 or newer).
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-torch test-gpu bench lint clean
.DELETE_ON_ERROR:

demo: .venv/demo
	$(BIN)/bpaccel tutorial
	$(BIN)/bpaccel bench --engine auto,numba --json build/bench.json --plot build/bench.png

test: .venv/test
	BPACCEL_REQUIRE=$${BPACCEL_REQUIRE-numpy,array_api_strict,jax} $(BIN)/python -m pytest -n auto --dist worksteal

# The same suite with torch. On machines where plain `torch` would bring CUDA, TORCH names a CPU build.
TORCH ?= torch
test-torch: .venv/test
	$(BIN)/python -m pip install -q $(TORCH)
	BPACCEL_REQUIRE=numpy,array_api_strict,jax,torch $(BIN)/python -m pytest -n auto --dist worksteal

# For a machine with an NVIDIA GPU and CuPy installed in $(PYTHON) already; CuPy may then not be skipped.
test-gpu:
	BPACCEL_REQUIRE=numpy,cupy $(PYTHON) -m pytest -p no:cacheprovider

bench: .venv/test
	JAX_ENABLE_X64=1 $(BIN)/python -m pytest benchmarks -p no:xdist --benchmark-json=build/benchmarks.json
	JAX_ENABLE_X64=1 $(BIN)/bpaccel bench --backend numpy,jax --dtype float32,float64 --json build/bench.json
	$(BIN)/python benchmarks/report.py build/bench.json build/benchmarks.json --out build

lint: .venv/test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf .venv build

# pip 25.1 is the first that knows dependency groups.
.venv/bin/python:
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q --upgrade 'pip>=25.1'

.venv/demo: pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install -q -e '.[all]'
	mkdir -p build
	touch $@

.venv/test: pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install -q -e '.[all]' --group test --group lint
	mkdir -p build
	touch $@ .venv/demo
