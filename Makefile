# What one does with a checkout. Needs make and Python 3.11 or 3.12, and fetches the rest with pip.
# pip's own settings hold: a CPU build of torch is taken where PIP_FIND_LINKS or an index offers one.

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
MODEL ?= demo

# The first Python that fits. Asked of each, because a name alone does not say what runs under it.
FITS := import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))
PYTHON ?= $(shell for python in python3.11 python3.12 python3; do \
	if $$python -c '$(FITS)' 2>/dev/null; then echo $$python; break; fi; done)

.PHONY: help
help:  ## Say what there is
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 15

.PHONY: setup
setup: $(STAMP)  ## Install everything into .venv

$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "error: needs python3.11 or python3.12 with the venv module" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
		-c constraints.txt -e '.[serve,ui,postgres,bench,test,check]'
	touch $@

.PHONY: demo
demo: $(STAMP)  ## Serve the embedded model on this machine until Ctrl-C
	@$(BIN)/mezzotint serve --model $(MODEL)

# Processes that the tests are spread over, by lanes and files (tests/lanes.py); 0 for none but pytest's own.
WORKERS ?= 2

.PHONY: test
test: $(STAMP)  ## Run every test
	$(BIN)/python -m pytest -n $(WORKERS)

CHAOS_FIGURES ?= docs/measurements/chaos-$(shell git rev-parse --short HEAD).json

.PHONY: chaos
chaos: $(STAMP)  ## Kill, overload and abuse a real server; writes its figures to docs/measurements
	CHAOS_FIGURES=$(CHAOS_FIGURES) $(BIN)/python -m pytest -m chaos -s --timeout=1800 tests/chaos

.PHONY: people
people: $(STAMP)  ## Have twenty people draw through the page at once; says how soon it answers
	$(BIN)/python -m tests.ui.people

.PHONY: fuzz
fuzz: $(STAMP)  ## Send a real server 20,000 generated requests
	$(BIN)/python -m tests.api.fuzz --cases 20000

CONTRACT := .venv-contract

.PHONY: contract
contract: $(STAMP)  ## Hold what optimum-neuron exports to what is read here, in an environment of its own
	test -x $(CONTRACT)/bin/python || $(PYTHON) -m venv $(CONTRACT)
	$(CONTRACT)/bin/python -m pip install --quiet --disable-pip-version-check -r tests/contract/requirements.txt
	CONTRACT_PYTHON=$(CONTRACT)/bin/python $(BIN)/python -m pytest tests/contract

SCAN := .venv-scan
# What is there: the rendered manifests come from `kubectl kustomize`.
SCANNED := $(wildcard deploy/terraform deploy/docker deploy/kubernetes/rendered)

.PHONY: scan
scan:  ## Hold Terraform, Dockerfiles and manifests to checkov's rules, in an environment of its own
	test -x $(SCAN)/bin/python || $(PYTHON) -m venv $(SCAN)
	$(SCAN)/bin/python -m pip install --quiet --disable-pip-version-check -r deploy/checkov-requirements.txt
	$(SCAN)/bin/checkov $(SCANNED:%=--directory %) --config-file deploy/checkov.yaml

.PHONY: check
check: $(STAMP)  ## Lint, formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

.PHONY: settings
settings: $(STAMP)  ## Write docs/settings.md from the settings themselves
	$(BIN)/mezzotint config schema --markdown > docs/settings.md

RENDERED := local:local gpu:gpu inf2:ray-service-stablediffusion trn1:trn1

.PHONY: manifests
manifests:  ## Render each overlay to one file, for `kubectl apply -f`
	@for each in $(RENDERED); do \
		file=deploy/kubernetes/rendered/$${each#*:}.yaml; \
		kubectl kustomize deploy/kubernetes/overlays/$${each%:*} > $$file && echo "wrote $$file"; \
	done

# The images: IMAGES="cpu ui", BUILDER=docker|podman|buildah, BUILD_FLAGS, TAG; docs/deploy/images.md.
IMAGES ?= cpu cuda neuron ui
IMAGE_TOOL := $(PYTHON) deploy/docker/images.py
OF_A_BUILD = $(if $(BUILDER),--builder $(BUILDER)) $(if $(TAG),--tag $(TAG)) --flags='$(BUILD_FLAGS)'

.PHONY: images
images:  ## Build the images (IMAGES="cpu ui", MODEL_DIR=folder to bake in, UNPINNED=1)
	$(IMAGE_TOOL) build $(OF_A_BUILD) $(if $(UNPINNED),--unpinned) $(if $(BASE),--base $(BASE)) \
		$(if $(MODEL_DIR),--models $(MODEL_DIR)) $(if $(WHEELS),--wheels $(WHEELS)) $(IMAGES)

.PHONY: push
push:  ## Push them to REGISTRY=host/prefix, and write their digests for the overlays
	@test -n "$(REGISTRY)" || { echo "error: say where to: make push REGISTRY=host/prefix" >&2; exit 2; }
	$(IMAGE_TOOL) push $(OF_A_BUILD) --registry $(REGISTRY) $(IMAGES)

.PHONY: pin
pin:  ## Ask the registries for the bases' digests and write them down
	$(IMAGE_TOOL) pin $(IMAGES)

.PHONY: lock
lock:  ## Resolve the images' packages anew, with their hashes
	$(PYTHON) deploy/docker/lock.py $(LOCKS)

SBOM := .venv-sbom

.PHONY: sbom
sbom:  ## Write what the images' locks hold to build/sbom, as CycloneDX
	test -x $(SBOM)/bin/python || $(PYTHON) -m venv $(SBOM)
	$(SBOM)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes \
		-r deploy/docker/sbom.txt
	$(IMAGE_TOOL) sbom --tool $(SBOM)/bin/cyclonedx-py $(IMAGES)

.PHONY: images-check
images-check:  ## Build cpu and ui, run them as a cluster would, and measure them (podman; as root)
	$(PYTHON) -m tests.deploy.images_check $(CHECK_FLAGS)

.PHONY: clean
clean:  ## Remove what was made here, the environment too
	rm -rf $(VENV) $(CONTRACT) $(SCAN) $(SBOM) .cache .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist out
	find src tests training -name __pycache__ -type d -prune -exec rm -rf {} +
