# Every target does the set-up that it needs. `make` alone lists them.
#
#   PYTHON                 the interpreter that makes the virtual environment
#   TORCH                  the torch to build and test with
#   TORCH_CUDA_ARCH_LIST   the GPU architectures to build for (default: see setup.py)
#   PYTEST_ARGS            more arguments for pytest
#   SWEEP_ARGS             arguments for sweep, such as '--precisions tf32 --merge'
#   BLOCKS_ARGS            arguments for gpu-blocks, such as '--precisions fp16'
#   MATRIX                 pairs PYTHON:TORCH for test-matrix, such as 3.12:2.11.0 (default: see scripts/test_matrix.py)

PYTHON ?= python3
TORCH ?= 2.13.0
PYTEST_ARGS ?=
SWEEP_ARGS ?=
BLOCKS_ARGS ?=
MATRIX ?=

VENV := .venv
VENV_PYTHON := $(VENV)/bin/python
STAMPS := build/stamps
# With the folders, so that a deleted file is noticed too.
SOURCES := $(shell find cuda include src/convt_ext -not -name '*.pyc' -not -name __pycache__) setup.py pyproject.toml
CXX_FILES = $(shell find cuda include tests/cpp examples/cpp -name '*.cpp' -o -name '*.cu' -o -name '*.cuh' -o -name '*.h')

.PHONY: help wheel demo test test-matrix lint format docs bench-plots docs-tables source-hash gpu gpu-build gpu-test gpu-bench gpu-models gpu-blocks sweep sanitize clean distclean FORCE
.NOTPARALLEL:
.DELETE_ON_ERROR:

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# --- the virtual environment and the wheel

# Written only when the value changes, so that what was made with another one is made anew.
define keep_value
@mkdir -p $(@D)
@echo '$(1)' | cmp -s - $@ || echo '$(1)' > $@
endef
$(STAMPS)/python: FORCE
	$(call keep_value,$(PYTHON))
$(STAMPS)/torch: FORCE
	$(call keep_value,$(TORCH))
$(STAMPS)/archs: FORCE
	$(call keep_value,$(TORCH_CUDA_ARCH_LIST))

$(VENV)/made: $(STAMPS)/python
	$(PYTHON) -m venv --clear $(VENV)
	@touch $@
$(VENV)/requirements.txt: $(VENV)/made pyproject.toml scripts/requirements.py $(STAMPS)/torch
	@$(VENV_PYTHON) scripts/requirements.py --torch $(TORCH) build onnx test dev wheel plot docs > $@.new
	@cmp -s $@.new $@ || cp $@.new $@
$(VENV)/stamp: $(VENV)/requirements.txt
	$(VENV_PYTHON) -m pip install -r $<
	@touch $@

# setuptools packs whatever earlier builds left in build/lib*: start without. The steps after it are those of
# [tool.cibuildwheel], with the tag that this machine's glibc gives.
$(STAMPS)/wheel: $(SOURCES) $(VENV)/stamp $(STAMPS)/archs scripts/repair_wheel.py scripts/smoke_test.py
	rm -rf build/lib.* build/bdist.* build/wheel dist/*.whl
	$(VENV_PYTHON) -m pip wheel -v --no-build-isolation --no-deps -w build/wheel .
	$(VENV_PYTHON) scripts/repair_wheel.py build/wheel/*.whl dist
	$(VENV_PYTHON) -m pip install --no-deps --force-reinstall dist/*.whl
	$(VENV_PYTHON) scripts/smoke_test.py
	@touch $@

wheel: $(STAMPS)/wheel  ## build, repair and install dist/*.whl, and try it out
	@ls -l dist/*.whl

# --- use and test

demo: $(STAMPS)/wheel  ## enlarge a picture, on the GPU if there is one; writes build/demo/
	@mkdir -p build/demo
	$(VENV_PYTHON) examples/upscale.py build/demo/upscaled.png --scale 4

test: $(STAMPS)/wheel  ## run all tests against the installed wheel
	$(VENV_PYTHON) -m pytest $(PYTEST_ARGS)

test-matrix: $(STAMPS)/wheel  ## run the tests under other Pythons and torch versions (downloads several GB)
	$(VENV_PYTHON) scripts/test_matrix.py $(MATRIX)

lint: $(VENV)/stamp  ## ruff, mypy, clang-format and the workflows' schema, changing nothing
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(VENV)/bin/clang-format --dry-run -Werror $(CXX_FILES)

format: $(VENV)/stamp  ## format Python, C++ and CUDA files in place
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .
	$(VENV)/bin/clang-format -i $(CXX_FILES)

docs: $(STAMPS)/wheel  ## build the pages of docs/ into build/docs/, warnings as errors
	$(VENV_PYTHON) -m sphinx --fail-on-warning --keep-going --quiet --fresh-env -b html -d build/doctrees docs build/docs

bench-plots:  ## draw benchmarks/results/h100.json into docs/images/
	$(PYTHON) benchmarks/plots.py

docs-tables:  ## rewrite the tables of docs/accuracy.md from benchmarks/results/h100.json
	$(PYTHON) benchmarks/docs_tables.py

source-hash:  ## print the hash of the sources that benchmark results name
	@$(PYTHON) scripts/source_hash.py

# --- on a machine with a GPU

# With torch and the build tools at hand, no environment is made and nothing is downloaded.
GPU_NEEDS := import torch, setuptools, ninja, pytest
GPU_PYTHON = $(shell $(PYTHON) -c '$(GPU_NEEDS)' 2> /dev/null && echo $(PYTHON) || echo $(VENV_PYTHON))
GPU_RUN = PYTHONPATH=$(CURDIR)/build/gpu/site CONVT_WHEEL="$$(ls $(CURDIR)/build/gpu/dist/*.whl)" $(GPU_PYTHON)
GPU_ARCH := import torch; c = torch.cuda.get_device_capability(); print("%d.%d" % c + "a" * (c == (9, 0)))

build/gpu/stamp: $(SOURCES)
	@mkdir -p build
	@$(PYTHON) -c '$(GPU_NEEDS)' 2> /dev/null || $(MAKE) $(VENV)/stamp
	rm -rf build/gpu build/lib.* build/bdist.*
	arch=$$($(GPU_PYTHON) -c '$(GPU_ARCH)') && TORCH_CUDA_ARCH_LIST=$$arch \
		$(GPU_PYTHON) -m pip wheel -v --no-build-isolation --no-index --no-deps -w build/gpu/dist .
	$(GPU_PYTHON) -m pip install --no-deps --no-index --target build/gpu/site build/gpu/dist/*.whl
	@touch $@

gpu: gpu-build gpu-test gpu-bench  ## build for this machine's GPU, run all tests, benchmark into benchmarks/results/

gpu-build: build/gpu/stamp  ## build for this machine's GPU alone, into build/gpu/

gpu-test: build/gpu/stamp  ## run all tests against that build
	$(GPU_RUN) -m pytest $(PYTEST_ARGS)

gpu-bench: build/gpu/stamp  ## benchmark that build; writes benchmarks/results/<gpu>.json and .md
	$(GPU_RUN) -m benchmarks.run --output benchmarks/results --source-hash $$($(PYTHON) scripts/source_hash.py)

gpu-models: build/gpu/stamp  ## time whole generators, converted or not; writes benchmarks/results/<gpu>-models.json and .md
	$(GPU_RUN) -m benchmarks.models --output benchmarks/results --source-hash $$($(PYTHON) scripts/source_hash.py)

gpu-blocks: build/gpu/stamp  ## time blocks with an activation in the operator; writes benchmarks/results/<gpu>-blocks.json and .md
	$(GPU_RUN) -m benchmarks.blocks --output benchmarks/results --source-hash $$($(PYTHON) scripts/source_hash.py) \
		$(BLOCKS_ARGS)

sweep: build/gpu/stamp  ## time other launches beside the plan's; writes benchmarks/results/<gpu>-sweep.json and .md
	$(GPU_RUN) -m benchmarks.sweep --output benchmarks/results --source-hash $$($(PYTHON) scripts/source_hash.py) \
		$(SWEEP_ARGS)

COMPUTE_SANITIZER ?= $(shell command -v compute-sanitizer || echo /usr/local/cuda/bin/compute-sanitizer)
# torch probes for features with calls that may fail; their return codes are no errors.
SANITIZE := $(COMPUTE_SANITIZER) --error-exitcode 1 --report-api-errors no --target-processes all

sanitize: build/gpu/stamp  ## run a small selection of the tests under compute-sanitizer
	@# Without the caching allocator, an access past a tensor's end is seen.
	PYTORCH_NO_CUDA_MEMORY_CACHING=1 PYTHONPATH=$(CURDIR)/build/gpu/site \
		$(SANITIZE) --tool memcheck $(GPU_PYTHON) -m pytest -m sanitize
	PYTHONPATH=$(CURDIR)/build/gpu/site $(SANITIZE) --tool racecheck $(GPU_PYTHON) -m pytest -m sanitize

# ---

clean:  ## delete what was built
	rm -rf build dist src/*.egg-info

distclean: clean  ## also delete the virtual environment
	rm -rf $(VENV) .hypothesis .mypy_cache .pytest_cache .ruff_cache
