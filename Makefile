# make quickstart   train the embedded model with GRPO and RAL, and write quickstart/report.html
# make test         the whole test suite
# make lint         ruff and mypy
# make docs         the documentation site, in site/
# make wheel        the package as a wheel, in dist/
# make audit        known vulnerabilities of the tested versions of all dependencies
#
# The first target that runs makes .venv and installs everything into it; PYTHON chooses the interpreter.

PYTHON ?= python3
OUTPUT ?= quickstart
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
INSTALLED := .venv/.installed
DOCS_INSTALLED := .venv/.docs-installed

.DEFAULT_GOAL := test
.PHONY: quickstart test lint docs wheel audit

quickstart: $(INSTALLED)
	$(BIN)/ral quickstart --output $(OUTPUT)

# The tests run side by side, one thread each: more threads than cores make torch many times slower.
test: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadscope $(PYTEST_ARGS)

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(DOCS_INSTALLED)
	$(BIN)/mkdocs build --strict

wheel: $(INSTALLED)
	$(PIP) wheel --quiet --no-deps --wheel-dir dist .

# In an environment of its own, and by the pinned versions as they are, so that nothing has to be resolved or built.
audit: $(INSTALLED)
	test -x .venv/audit/bin/pip-audit || ($(BIN)/python -m venv .venv/audit && .venv/audit/bin/pip --disable-pip-version-check install --quiet pip-audit)
	$(BIN)/python -m pip freeze --exclude-editable > .venv/audit/installed.txt
	.venv/audit/bin/pip-audit --strict --no-deps --disable-pip --requirement .venv/audit/installed.txt

# torch comes first: the packages after it then find it, and its large wheels are not downloaded again when they change.
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "ral needs Python 3.11 or newer; choose one with: make PYTHON=python3.12")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) install --quiet --upgrade pip
	$(PIP) install --quiet --constraint constraints.txt torch torchvision
	$(PIP) install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

$(DOCS_INSTALLED): $(INSTALLED)
	$(PIP) install --quiet --constraint constraints.txt --editable '.[docs]'
	@touch $@
