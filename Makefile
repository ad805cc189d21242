# `make help` lists the targets. Every environment lives in a folder of its own and is rebuilt when its inputs change.

PYTHON ?= python3
PYTEST_ARGS ?=
export PIP_DISABLE_PIP_VERSION_CHECK := 1

DEMO := .venv-demo
TEST := .venv-test
PEFT018 := .venv-peft018
PEERS := .venv-peers
OTHERS := nemo-automodel==0.7.0 torchtitan==0.3.0 litgpt==0.5.13 torchtune==0.6.1
# Installed by itself and first, so that what follows finds torch present and leaves its build (CPU or CUDA) as it is.
TORCH := torch==2.13.0
BUILT_FROM := pyproject.toml setup.py lazysd/move/_turn.h lazysd/move/_strided.c lazysd/quant/_decode.c \
  lazysd/counting/_count.c lazysd/stores/_crc.c

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test test-tiny test-peft018 lint fuzz families sanitize faults budget bench bench-full bench-peers clean check-python

help:  ## this list
	@grep -E '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9-]+):.*## /\1\t/' | expand -t 16

demo: $(DEMO)/.installed  ## install what users get, then walk through the product
	$(DEMO)/bin/python scripts/demo.py

test: lint  ## format, lint, types, then every test, notebooks and docs included, two files at a time
	$(TEST)/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

test-tiny: $(TEST)/.installed  ## the whole product in a few seconds
	$(TEST)/bin/python -m pytest tests/test_tiny.py $(PYTEST_ARGS)

test-peft018: $(PEFT018)/.installed  ## adapters against peft 0.18.1, which stores grouped experts another way
	$(PEFT018)/bin/python -m pytest tests/peft018 $(PYTEST_ARGS)

lint: $(TEST)/.installed  ## ruff (format and lint) and mypy
	$(TEST)/bin/python -m ruff format --check .
	$(TEST)/bin/python -m ruff check .
	$(TEST)/bin/python -m mypy

fuzz: $(TEST)/.installed  ## random graphs under random constants against eager torch: SECONDS=600, GRAPHS=100000, MUTATIONS=100000, KINDS=header, SEED=0
	$(TEST)/bin/python tests/fuzz.py --seconds $(or $(SECONDS),600) $(if $(GRAPHS),--graphs $(GRAPHS)) $(if $(MUTATIONS),--mutations $(MUTATIONS)) $(if $(KINDS),--kinds $(KINDS)) --seed $(or $(SEED),0)

# Leaks are not looked for: Python itself keeps memory to its end. Preloaded, for python is built without a sanitizer.
sanitize: $(TEST)/.installed  ## the compiled kernels under ASan and UBSan, with and without vectors (needs gcc)
	for variant in vectors -DNO_VECTORS; do \
	  CFLAGS="-g -O1 -fsanitize=address,undefined -fno-sanitize-recover=all $${variant#vectors}" \
	    $(TEST)/bin/python setup.py -q build_ext --force --build-lib build/sanitize --build-temp build/sanitize && \
	  LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libubsan.so)" PYTHONMALLOC=malloc \
	    ASAN_OPTIONS=detect_leaks=0:detect_odr_violation=0 \
	    $(TEST)/bin/python tests/sanitized.py build/sanitize || exit 1; \
	done

faults: $(TEST)/.installed  ## kill saves and damage their journals at random: SECONDS=300, SEED=0
	$(TEST)/bin/python tests/faults.py --seconds $(or $(SECONDS),300) --seed $(or $(SEED),0)

budget: $(TEST)/.installed  ## every command at the default budget and at the smallest, at sizes that take minutes
	$(TEST)/bin/python benchmarks/budget.py

families: $(TEST)/.installed  ## every family in every layout on random sizes, faults refused: SECONDS=600
	$(TEST)/bin/python tests/fuzz_families.py --seconds $(or $(SECONDS),600)

bench: $(TEST)/.installed  ## measure lazysd beside the alternatives, what takes minutes
	$(TEST)/bin/python benchmarks/run_all.py --quick $(ARGS)

bench-full: $(TEST)/.installed  ## all of it, an hour and 16 GB of disk: ARGS="--write results.md"
	$(TEST)/bin/python benchmarks/run_all.py $(ARGS)

bench-peers: $(PEERS)/.installed  ## whole jobs beside what others use for them: ARGS="--layers 2 --only grouped"
	$(PEERS)/bin/python benchmarks/peers.py $(ARGS)

clean:  ## remove environments, caches and build output
	rm -rf $(DEMO) $(TEST) $(PEFT018) $(PEERS) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis lazysd/*/*.so
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

check-python:
	@command -v "$(PYTHON)" >/dev/null || { \
	  echo "make: no '$(PYTHON)' found; install Python 3.11 or newer, or say which one: make PYTHON=python3.12 ..." >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "make: '$(PYTHON)' is $$("$(PYTHON)" --version 2>&1), lazysd needs 3.11 or newer:" \
	    "make PYTHON=python3.12 ..." >&2; exit 1; }
	@"$(PYTHON)" -c 'import venv, ensurepip' 2>/dev/null || { \
	  echo "make: '$(PYTHON)' has no venv module; install it (Debian, Ubuntu: apt-get install" \
	    "$$("$(PYTHON)" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])'))" >&2; exit 1; }

# An environment that still works is updated in place, which takes seconds; a missing or broken one is made anew.
make_venv = @$(1)/bin/python -m pip --version >/dev/null 2>&1 || { \
	echo "creating $(1) (downloads torch, a few minutes)"; "$(PYTHON)" -m venv --clear $(1); }

$(DEMO)/.installed: $(BUILT_FROM) constraints.txt | check-python
	$(call make_venv,$(DEMO))
	$(DEMO)/bin/python -m pip install -q $(TORCH)
	$(DEMO)/bin/python -m pip install -q -c constraints.txt -e .
	@touch $@

$(TEST)/.installed: $(BUILT_FROM) constraints.txt | check-python
	$(call make_venv,$(TEST))
	$(TEST)/bin/python -m pip install -q $(TORCH)
	$(TEST)/bin/python -m pip install -q -c constraints.txt -e '.[test]'
	$(TEST)/bin/python -m pip install -q --no-deps $(OTHERS)
	@touch $@

$(PEFT018)/.installed: $(BUILT_FROM) requirements-peft018.txt | check-python
	$(call make_venv,$(PEFT018))
	$(PEFT018)/bin/python -m pip install -q $(TORCH)
	$(PEFT018)/bin/python -m pip install -q -r requirements-peft018.txt
	$(PEFT018)/bin/python -m pip install -q -c requirements-peft018.txt -e .
	@touch $@

$(PEERS)/.installed: pyproject.toml constraints.txt requirements-peers.txt | check-python
	$(call make_venv,$(PEERS))
	$(PEERS)/bin/python -m pip install -q $(TORCH)
	$(PEERS)/bin/python -m pip install -q -c constraints.txt -e . -r requirements-peers.txt
	$(PEERS)/bin/python -m pip install -q --no-deps nemo-automodel==0.7.0 mergekit==0.1.5
	@touch $@
