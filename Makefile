# Two commands do everything on a machine with Python >= 3.11, pip, venv and a C++ compiler:
#   make demo    a real model, quantized three ways, measured and generating text
#   make test    the tests
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
EXTRAS := cpu,torch,hf,gguf,genai,media,plots,tune,tensorrt-rtx,dev
NATIVE := $(shell find custom_ops -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name CMakeLists.txt)

.PHONY: setup demo test slow test-arm test-web test-gpu test-tensorrt lint wheel-smoke results docs clean

setup: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt $(NATIVE)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[$(EXTRAS)]'
	touch $@

demo: setup
	$(BIN)/onnxq demo

test: setup
	$(BIN)/python -m pytest

slow: setup
	$(BIN)/python -m pytest -m slow

# kernels and models on 64-bit ARM: cross-compiled by Debian's compiler, and ONNX Runtime's wheel for
# ARM, under QEMU
test-arm: setup
	if ! command -v aarch64-linux-gnu-g++ || ! command -v qemu-aarch64-static; then \
	  apt-get install -y g++-aarch64-linux-gnu qemu-user-static; fi
	$(BIN)/python -m pytest -m slow tests/custom_ops/test_arm.py tests/export/test_arm64_machine.py

# the page of the web target and that of reports, in headless Chromium
test-web: setup
	if ! command -v chromium; then apt-get update && apt-get install -y chromium; fi
	if ! command -v npm; then apt-get install -y npm; fi
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[$(EXTRAS),web]'
	$(BIN)/python -m pytest -m web tests/export/test_web_page.py tests/report/test_browser.py

# the CUDA kernels, checked and timed on the first GPU
test-gpu: setup
	$(BIN)/python -m tests.bench gpu

# the plugins for TensorRT without it: its headers, and its tensorrt.plugin as Python source
PUBLIC := build/tensorrt
test-tensorrt: setup
	$(BIN)/python -m pip install --quiet --no-deps --upgrade --target $(PUBLIC) \
	  kernel-lens==2.0.1 tensorrt-cu13-bindings==11.4.0.106
	PYTHONPATH=$(PUBLIC) ONNXQ_TENSORRT_INCLUDE=$(CURDIR)/$(PUBLIC)/kernel_lens/include/tensorrt \
	  $(BIN)/python -m pytest -m trt tests/custom_ops

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/clang-format --dry-run --Werror $$(find custom_ops tests -name '*.cpp' -o -name '*.h')
	$(BIN)/python -m tests.typecheck

results: setup
	$(BIN)/python -m onnxq.models.results docs/results.md
	$(BIN)/python -m onnxq.models.report_results build/reports
	$(BIN)/python -m onnxq.models.targets_results docs/targets.md

# the parts of pages that are written from the code
docs: setup
	$(BIN)/python -m onnxq.pages docs

clean:
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache
