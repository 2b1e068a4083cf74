# MedVQ: `make` alone prints help. Every target sets up its own environment first.

DATASET ?= kermany
SET ?=
SEED ?=
LABEL_FRACTION ?=
DEVICE ?= auto
DATA_ROOT ?= data
DATA_MIRROR ?=
ARTIFACTS ?= artifacts
FORCE ?=
JSON ?=
QUICK ?=
NPROC ?= 1
PROBE ?=
PYTHON ?= python3.11
PORT ?= 5000

VENV := .venv
BIN := $(VENV)/bin
export DATA_ROOT DATA_MIRROR ARTIFACTS

# The stage's command line from the variables above.
RUN = $(BIN)/python -m pipeline $(1) --config "$(2)" --device "$(DEVICE)" \
	$(foreach pair,$(SET),--set "$(pair)") $(if $(SEED),--set "seed=$(SEED)") \
	$(if $(LABEL_FRACTION),--set "probe.label_fraction=$(LABEL_FRACTION)") \
	$(if $(FORCE),--force) $(if $(JSON),--json) $(if $(NPROC),--processes "$(NPROC)")

.DEFAULT_GOAL := help
.PHONY: help setup demo data pretrain extract-features linear-probe prior sample \
	evaluate-prior mlflow-ui notebook benchmark benchmark-ablation benchmark-alignment \
	benchmark-calibration benchmark-ingest benchmark-learning-curve benchmark-reconstruction \
	benchmark-scale benchmark-speed benchmark-supervised benchmark-untrained test test-cuda lint \
	format lock clean

help: ## this text
	@echo "MedVQ: features from unlabelled medical images that need few labels."
	@echo
	@echo "Targets (each runs what it needs; what is up to date is not run again):"
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/:.*## /\t/' | expand -t 26 | sed 's/^/  /'
	@echo
	@echo "Variables:"
	@echo "  DATASET=kermany         a name in configs/, or a path to your own yaml"
	@echo "  LABEL_FRACTION=0.05     share of the training subjects whose labels the probe may see"
	@echo "  PROBE=                  linear-probe: judge this fitted probe on DATASET, fit nothing"
	@echo "  SET=\"key=value ...\"     values over the yaml, e.g. SET=\"pretrain.epochs=3\""
	@echo "  SEED=0                  of everything random"
	@echo "  DEVICE=auto             auto, cpu or cuda"
	@echo "  DATA_ROOT=data          folder of data sets, looked in first"
	@echo "  DATA_MIRROR=            folder (read in place) or address, where DATA_ROOT has none"
	@echo "  ARTIFACTS=artifacts     folder that stages write to"
	@echo "  FORCE=1                 run the stage although it is up to date"
	@echo "  JSON=1                  one JSON object on the last line of standard output"
	@echo "  NPROC=1                 processes that pretrain and extract together"
	@echo "  PORT=5000               of make mlflow-ui"

setup: $(VENV)/.ready ## make .venv and install what the project needs

$(VENV)/.ready: pyproject.toml requirements.lock
	@command -v $(PYTHON) >/dev/null || \
		{ echo "medvq: $(PYTHON) is not installed; install Python 3.11 or set PYTHON=..." >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --requirement requirements.lock
	$(BIN)/pip install --quiet --no-deps --editable .
	@touch $@

demo: setup ## the whole flow on the built-in synthetic phantom set, offline
	$(call RUN,probe,phantom)

data: setup ## ingest: manifest, audit, alignment, cache
	$(call RUN,ingest,$(DATASET))

pretrain: setup ## train the VQ-VAE, without labels
	$(call RUN,pretrain,$(DATASET))

extract-features: setup ## codes, histograms and embeddings into the feature store
	$(call RUN,extract,$(DATASET))

linear-probe: setup ## classify with LABEL_FRACTION of the labels; judge on the test split
	$(call RUN,$(if $(PROBE),evaluate,probe),$(DATASET)) $(if $(PROBE),--probe "$(PROBE)")

prior: setup ## train the model of the codes (a Transformer, or prior.model=pixelcnn)
	$(call RUN,prior,$(DATASET))

sample: setup ## draw images: N=64 CLASS=PNEUMONIA TEMPERATURE=1 GUIDANCE=1 TOP_K=0 TOP_P=1
	$(call RUN,sample,$(DATASET)) $(if $(N),--set "sample.number=$(N)") \
		$(if $(CLASS),--set "sample.class_name=$(CLASS)") \
		$(if $(TEMPERATURE),--set "sample.temperature=$(TEMPERATURE)") \
		$(if $(GUIDANCE),--set "sample.guidance=$(GUIDANCE)") \
		$(if $(TOP_K),--set "sample.top_k=$(TOP_K)") $(if $(TOP_P),--set "sample.top_p=$(TOP_P)")

evaluate-prior: setup ## likelihood, samples, anomalies and the gate; writes docs/PRIOR-<data set>.md
	$(BIN)/python -m benchmarks.prior --config "$(DATASET)" --device "$(DEVICE)" \
		--data-root "$(DATA_ROOT)" $(if $(DATA_MIRROR),--data-mirror "$(DATA_MIRROR)") \
		--artifacts "$(ARTIFACTS)" $(foreach pair,$(SET),--set "$(pair)") $(if $(JSON),--json)

mlflow-ui: setup ## compare runs in the browser, on this machine only
	@echo "open http://127.0.0.1:$(PORT)/#/experiments"
	MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false $(BIN)/mlflow server --workers 1 \
		--host 127.0.0.1 --port $(PORT) \
		--backend-store-uri "$${MLFLOW_TRACKING_URI:-sqlite:///$(abspath $(ARTIFACTS))/mlflow.db}"

notebook: setup ## run notebooks/own_data.ipynb (a minute, offline) into ARTIFACTS/own_data.ipynb
	mkdir -p "$(ARTIFACTS)"
	$(BIN)/jupyter execute notebooks/own_data.ipynb --output="$(abspath $(ARTIFACTS))/own_data.ipynb"

benchmark: setup ## the README's table: 1 to 100% of the labels, and how far to trust it (hours)
	$(BIN)/python -m benchmarks.label_efficiency --config "$(DATASET)" --device "$(DEVICE)" \
		$(foreach pair,$(SET),--set "$(pair)")

benchmark-ablation: setup ## what each part of the recipe gains, paired (trains six more models)
	$(BIN)/python -m benchmarks.ablation --config "$(DATASET)" --device "$(DEVICE)" \
		$(foreach pair,$(SET),--set "$(pair)")

benchmark-alignment: setup ## what the alignment gains, paired (trains a second model)
	$(BIN)/python -m benchmarks.alignment --config "$(DATASET)" \
		$(foreach pair,$(SET),--set "$(pair)")

benchmark-calibration: setup ## which images calibrate, and a shifted prevalence, on validation
	$(BIN)/python -m benchmarks.calibration --config "$(DATASET)" --device "$(DEVICE)" \
		$(foreach pair,$(SET),--set "$(pair)") \
		$(if $(LABEL_FRACTION),--set "probe.label_fraction=$(LABEL_FRACTION)")

benchmark-ingest: setup ## how fast files are read, against MONAI and the bare decoder
	$(BIN)/python -m benchmarks.ingest

benchmark-learning-curve: setup ## what more unlabelled images gain, paired (trains two more models)
	$(BIN)/python -m benchmarks.learning_curve --config "$(DATASET)" --device "$(DEVICE)" \
		$(foreach pair,$(SET),--set "$(pair)")

benchmark-reconstruction: setup ## two levels of codes against one, at equal bits (needs a GPU)
	$(BIN)/python -m benchmarks.reconstruction --config kermany-reconstruction \
		$(foreach pair,$(SET),--set "$(pair)")

benchmark-scale: setup ## what ten million radiographs take; a made-up feature store of that size
	$(BIN)/python -m benchmarks.scale

benchmark-supervised: setup ## a ResNet-18 from scratch on the same draws of labels
	$(BIN)/python -m benchmarks.supervised --config "$(DATASET)" --device "$(DEVICE)" \
		$(foreach pair,$(SET),--set "$(pair)")

benchmark-speed: setup ## speed and memory against MONAI and others (QUICK=1: fewer rounds)
	$(BIN)/pip install --quiet --constraint requirements.lock "vector-quantize-pytorch>=1.32"
	$(BIN)/python -m benchmarks.speed --device "$(DEVICE)" $(if $(QUICK),--quick) \
		$(if $(JSON),--json)

benchmark-untrained: setup ## the best encoder that was never trained, on validation
	$(BIN)/python -m benchmarks.untrained --config "$(DATASET)" --device "$(DEVICE)" \
		$(foreach pair,$(SET),--set "$(pair)")

# SlipCover counts by instrumented bytecode: a tracer, such as coverage.py's on Python 3.11, makes
# Python code half as slow again. Its warning is that it does not count the tests' own branches.
test: setup ## all tests, doctests included, and what of the code they cover
	$(BIN)/python -W ignore::RuntimeWarning:slipcover.importer \
		-m slipcover --branch --source pipeline --skip-covered -m pytest

test-cuda: setup ## the tests that need a CUDA device
	$(BIN)/python -m pytest -rs tests/test_cuda.py

lint: setup ## ruff, mypy (strict), import-linter
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: setup ## let ruff format and mend
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lock: setup ## pin what is installed into requirements.lock
	# A build's local version (+cpu, +cu130) is left out: it is on no index that all can reach.
	$(BIN)/pip freeze --exclude-editable --exclude pip --exclude setuptools | \
		sed -E '/^nvidia|^triton|^cuda/d; s/\+[a-z0-9]+$$//' > requirements.lock

clean: ## remove artifacts (data and .venv stay)
	rm -rf "$(ARTIFACTS)"
