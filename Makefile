# Two commands do all the set-up on a fresh machine: `make run` and `make test`.
PYTHON ?= python3
VENV := .venv
SAM_VENV := .venv-sam
VASTAI_VENV := .venv-vastai
PY := $(VENV)/bin/python
# The event that `make run` runs; without one it runs two samples.
EVENT ?=
# What `make test` and `make fast` run, as pytest takes it: TESTS="tests/events -k sqs".
TESTS ?=
# `make lock UPGRADE=1` takes the newest versions that pyproject.toml allows.
UPGRADE ?=
# One version for all versions of Python, with the hashes of all its files.
LOCK := $(VENV)/bin/uv pip compile --quiet --universal --fork-strategy fewest --generate-hashes \
	--custom-compile-command 'make lock' $(if $(UPGRADE),--upgrade)
# What shellcheck reads.
SCRIPTS := $(wildcard .ci/* infra/*.sh infra/*/*.sh) $(addprefix infra/docker/,bootstrap entrypoint extension)

.PHONY: run test fast lint format lock sam-validate api-function image image-test clean

# Silent: what `make run` writes to stdout are the paths of the files, and nothing else.
run: $(VENV)/.installed
	@$(PY) -m runtime example $(if $(EVENT),--event '$(EVENT)')

test: $(VENV)/.installed-tests $(SAM_VENV)/.installed $(VASTAI_VENV)/.installed
	$(PY) -m runtime install
	$(PY) -m runtime standins
	$(PY) -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(TESTS)

# The tests that need neither ComfyUI, nor a server, nor time.
fast: $(VENV)/.installed-tests
	COMFYUI_HOME=/nonexistent $(PY) -m pytest -q -n 2 -m 'not comfyui and not slow' $(TESTS)

lint: $(VENV)/.installed-tests
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(VENV)/bin/hadolint infra/docker/Dockerfile
	$(VENV)/bin/shellcheck $(SCRIPTS)

format: $(VENV)/.installed-tests
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

# The pinned packages of each environment: what pyproject.toml names, and what that requires.
lock: $(VENV)/.installed-tests
	$(LOCK) --group comfyui --output-file infra/locks/comfyui.txt
	$(LOCK) pyproject.toml --extra image --output-file infra/locks/handler.txt
	$(LOCK) pyproject.toml --extra local --constraint infra/locks/handler.txt \
		--output-file infra/locks/local.txt

# Needs no account: the credentials are there because SAM CLI wants some before it looks at a file.
sam-validate: export SAM_CLI_TELEMETRY := 0
sam-validate: export AWS_DEFAULT_REGION := us-east-1
sam-validate: export AWS_ACCESS_KEY_ID := none
sam-validate: export AWS_SECRET_ACCESS_KEY := none
sam-validate: $(SAM_VENV)/.installed
	$(SAM_VENV)/bin/sam validate
	$(SAM_VENV)/bin/sam validate --lint
	$(SAM_VENV)/bin/cfn-lint

# The code of template.yaml's ApiFunction: handler, events and what they need, for Lambda's Python.
api-function: $(VENV)/.installed
	rm -rf build/api
	$(PY) -m pip install --quiet --disable-pip-version-check --target build/api --only-binary=:all: \
		--platform manylinux_2_28_x86_64 --platform manylinux2014_x86_64 --python-version 3.13 \
		-r infra/api-requirements.txt
	cp -r events handler build/api/
	find build/api -name __pycache__ -prune -exec rm -rf {} +
	@du -sh build/api

# Both images, with Docker or podman: the variables are in the script.
image:
	infra/build_image.sh

# Builds both in a folder of its own, checks them in containers, and removes them; with KEEP=1, it
# leaves them where `make image` puts them. For Debian, as root.
image-test:
	infra/image_test.sh

clean:
	rm -rf $(VENV) $(SAM_VENV) $(VASTAI_VENV) .comfyui out build *.egg-info .mypy_cache .ruff_cache .pytest_cache

$(VENV)/.installed: pyproject.toml infra/locks/local.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "$(PYTHON) is older than Python 3.11; set PYTHON=/path/to/python3.11"; exit 1; }
	@echo "setting up $(VENV)" >&2
	@$(PYTHON) -m venv $(VENV)
	@$(PY) -m pip install --quiet --disable-pip-version-check --require-hashes -r infra/locks/local.txt >&2
	@$(PY) -m pip install --quiet --disable-pip-version-check --no-deps --editable . >&2
	@touch $@

# What `make run` does not need.
$(VENV)/.installed-tests: $(VENV)/.installed
	@echo "adding the test tools to $(VENV)" >&2
	@$(PY) -m pip install --quiet --disable-pip-version-check --editable '.[tests]' >&2
	@touch $@

$(SAM_VENV)/.installed: infra/sam-requirements.txt
	@echo "setting up $(SAM_VENV)" >&2
	@$(PYTHON) -m venv $(SAM_VENV)
	@echo '*' > $(SAM_VENV)/.gitignore
	@$(SAM_VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r $< >&2
	@touch $@

$(VASTAI_VENV)/.installed: infra/vastai-requirements.txt
	@echo "setting up $(VASTAI_VENV)" >&2
	@$(PYTHON) -m venv $(VASTAI_VENV)
	@echo '*' > $(VASTAI_VENV)/.gitignore
	@$(VASTAI_VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r $< >&2
	@touch $@
