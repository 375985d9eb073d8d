MODEL ?= progressive_gan
DATASET ?= digits
PRESET ?= demo
WORKERS ?= 2
PYTHON ?= python3.11
SECONDS ?= 3600

BIN := .venv/bin
INSTALLED := .venv/.installed

.DEFAULT_GOAL := help
.PHONY: help retrain up down test soak lint bench lock

help: ## say what can be made
	@sed -n 's/^\([.a-z]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 16
	@echo "  with MODEL=$(MODEL) DATASET=$(DATASET) PRESET=$(PRESET) WORKERS=$(WORKERS)"

retrain: up ## train MODEL on DATASET by the flow, register it, and print where to look at it
	@$(BIN)/genmodels retrain $(MODEL) --dataset $(DATASET) --preset $(PRESET) --workers $(WORKERS)

up: $(INSTALLED) ## start the local stack: SeaweedFS (S3), MLflow, Prefect, Ray
	@$(BIN)/genmodels up

down: $(INSTALLED) ## stop the local stack; its data are kept
	@$(BIN)/genmodels down

test: $(INSTALLED) ## run all tests, those on the real servers included
	@$(BIN)/pytest --numprocesses=auto --dist=loadgroup --no-loadscope-reorder

soak: $(INSTALLED) ## what takes long: SECONDS of random kills, servers away for minutes, images in a Debian root
	@GENMODELS_SOAK_SECONDS=$(SECONDS) $(BIN)/pytest -s tests/faults tests/infra/test_dockerfiles.py

lint: $(INSTALLED) ## style, types, and which module may import which
	@echo "style" && $(BIN)/ruff check && $(BIN)/ruff format --check
	@echo "types" && $(BIN)/basedpyright
	@echo "imports" && $(BIN)/lint-imports

bench: $(INSTALLED) ## time Progressive GAN and CycleGAN at the sizes that their speed is judged by
	@$(BIN)/genmodels bench progressive_gan --resolution 64 --batch-size 16 --threads 2 \
	    --set fmap_base=2048 --set fmap_max=128 --set latent=128
	@$(BIN)/genmodels bench cyclegan --resolution 128 --batch-size 1 --threads 2 --set residual_blocks=9

lock: $(INSTALLED) ## renew requirements.lock from pyproject.toml
	@$(BIN)/uv pip compile --python-version 3.11 --generate-hashes --no-emit-index-url --no-annotate --all-extras \
	    --upgrade pyproject.toml -o requirements.lock

.venv: $(INSTALLED) ## install the project and all that it needs into .venv

$(INSTALLED): requirements.lock pyproject.toml
	@test -x $(BIN)/python || { echo "creating .venv with $(PYTHON)"; $(PYTHON) -m venv .venv; }
	@test -x $(BIN)/uv || { echo "installing uv"; $(BIN)/python -m pip install --quiet uv; }
	@echo "installing what requirements.lock names (a few minutes when nothing is cached)"
	@$(BIN)/uv pip sync --compile-bytecode --python $(BIN)/python requirements.lock
	@$(BIN)/uv pip install --python $(BIN)/python --no-deps --editable .
	@touch $@
