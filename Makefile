# Everything runs in .venv, made from what pyproject.toml says. PYTHON chooses the interpreter (3.11 or newer).
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-torch native wheels sanitize mutants torture test-gpu bench-gpu gpu-wheels bench bench-peers bench-sklearn \
        bench-first lint clean
.DELETE_ON_ERROR:

demo: .venv/demo
	$(BIN)/bpaccel tutorial
	$(BIN)/bpaccel bench --json build/bench.json --plot build/bench.png

test: .venv/test
	BPACCEL_REQUIRE=$${BPACCEL_REQUIRE-numpy,array_api_strict,jax,fused} $(BIN)/python -m pytest -n auto --dist worksteal

# The same suite with torch. On machines where plain `torch` would bring CUDA, TORCH names a CPU build.
TORCH ?= torch
test-torch: .venv/test
	$(BIN)/python -m pip install -q $(TORCH)
	BPACCEL_REQUIRE=numpy,array_api_strict,jax,fused,torch $(BIN)/python -m pytest -n auto --dist worksteal

# The compiled kernels, in place: what .venv/test does where a source of theirs has changed. KERNELS are these sources.
KERNELS := $(wildcard bpaccel/native/*.hpp bpaccel/native/*.cpp bpaccel/formulas/*.py) \
           bpaccel/native/build.py bpaccel/activations.py bpaccel/losses.py
native: .venv/packages
	$(BIN)/python -m bpaccel.native.build

# Wheels for all platforms and the source distribution, in dist/, from this machine; then all checks of them.
wheels: .venv/test
	rm -rf dist
	$(BIN)/python -m hatchling build -t sdist -d dist
	for target in $$($(BIN)/python -m bpaccel.native.build --targets); do \
		BPACCEL_TARGET=$$target $(BIN)/python -m hatchling build -t wheel -d dist || exit 1; done
	BPACCEL_WHEELS=dist $(BIN)/python -m pytest tests/test_wheels.py

# Our kernels, and on the CPU those for CUDA, under sanitizers: memory and undefined behaviour, and races. It needs g++,
# and is to stay below three minutes on two cores, for .ci/run calls it: name few tests in sanitize.py and sanitize.sh,
# and those that launch most.
sanitize: .venv/test
	$(BIN)/python tests/native/sanitize.py
	BPACCEL_REQUIRE=g++ sh tests/cuda/sanitize.sh address $(BIN)/python
	BPACCEL_REQUIRE=g++ sh tests/cuda/sanitize.sh thread $(BIN)/python

# Bugs put into our kernels, one at a time: which of them the fuzz, the tests and the sanitizers see. It takes a quarter
# of an hour.
mutants: .venv/test
	$(BIN)/python tests/native/mutants.py --out build/mutants.md

# Hundreds of kills and interrupts at random moments, and long walks through the states of a model: some 20 minutes.
torture: .venv/test
	BPACCEL_STATES=400 $(BIN)/python -m pytest -n auto tests/test_states.py
	$(BIN)/python tests/torture.py --kills 200 --interrupts 200 --out build/torture.md

# For a machine with an NVIDIA GPU and CuPy installed in $(PYTHON) already: proofs, sanitizers and the whole suite, with
# CuPy required; then times. WHEELS is a folder with what it lacks. docs/gpu.md says more.
GPU_OUT ?= build/gpu
WHEELS ?= $(wildcard .whl)
test-gpu bench-gpu:
	$(PYTHON) benchmarks/gpu.py $(@:-gpu=) --out $(GPU_OUT) $(if $(WHEELS),--wheels $(WHEELS))

# Fills .whl with what CuPy's, PyTorch's and JAX's own dependencies do not bring, where there is a network.
gpu-wheels:
	$(PYTHON) -m pip download -q --no-deps --only-binary=:all: -d .whl array-api-compat array-api-strict

bench: .venv/test
	JAX_ENABLE_X64=1 $(BIN)/python -m pytest benchmarks -p no:xdist --benchmark-json=build/benchmarks.json
	JAX_ENABLE_X64=1 $(BIN)/bpaccel bench --backend numpy,jax --dtype float32,float64 --json build/bench.json
	$(BIN)/python benchmarks/report.py build/bench.json build/benchmarks.json --out build

# What others take for the same work: minutes, and a file of 1.6 GB for a while in FOLDER. For an idle machine.
FOLDER ?= build
bench-peers: .venv/test
	$(BIN)/python -m pip install -q $(TORCH) --group peers
	env -u OPENBLAS_CORETYPE $(BIN)/python benchmarks/compare.py --json build/peers.json --folder $(FOLDER)
	$(BIN)/python benchmarks/report.py build/peers.json --out build

# Our estimators beside scikit-learn's and PyTorch, on the same numbers: minutes. For an idle machine.
bench-sklearn: .venv/test
	$(BIN)/python -m pip install -q $(TORCH)
	env -u OPENBLAS_CORETYPE $(BIN)/python benchmarks/sklearn_mlp.py --out build

# What a first call in a new process takes, beside scikit-learn and the tutorial's NumPy code: minutes. For an idle
# machine.
bench-first: .venv/test
	env -u OPENBLAS_CORETYPE $(BIN)/python benchmarks/first.py --out build

lint: .venv/test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf .venv build dist bpaccel/native/lib

# pip 25.1 is the first that knows dependency groups.
.venv/bin/python:
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q --upgrade 'pip>=25.1'

.venv/demo: pyproject.toml hatch_build.py $(KERNELS) | .venv/bin/python
	$(BIN)/python -m pip install -q -e '.[all]'
	mkdir -p build
	touch $@

# The kernels come next, by the compiler that is installed here: pip would fetch it once more.
.venv/packages: pyproject.toml hatch_build.py | .venv/bin/python
	BPACCEL_PURE=1 $(BIN)/python -m pip install -q -e '.[all]' --group test --group cuda-tests --group lint
	touch $@

.venv/test: .venv/packages $(KERNELS)
	$(BIN)/python -m bpaccel.native.build
	mkdir -p build
	touch $@ .venv/demo
