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
ACCEPT_CODE ?=
JSON ?=
QUICK ?=
ONLY ?=
ARMS ?=
SEEDS ?=
EPOCHS ?=
VALIDATION ?=
SETS ?=
STORES ?=
NPROC ?= 1
PROBE ?=
IN ?=
OUT ?=
IMAGE ?=
ALL ?=
N ?=
CLASS ?=
TEMPERATURE ?=
GUIDANCE ?=
TOP_K ?=
TOP_P ?=
STEPS ?=
DICOM_OUTPUT ?=
TYPICALITY ?=
PYTHON ?=
UPGRADE ?=
PORT ?=

VENV := .venv
BIN := $(VENV)/bin
TOOLS := build/tools
# Recipes take them from here ("$$ARTIFACTS"): their values may hold quotes.
export DATASET DATA_ROOT DATA_MIRROR ARTIFACTS IMAGE IN OUT PROBE STORES SET SEED LABEL_FRACTION \
	DEVICE NPROC N CLASS TEMPERATURE GUIDANCE TOP_K TOP_P STEPS DICOM_OUTPUT
# A misspelt variable would leave the default in place without a word. OTHERS are of the environment.
VARIABLES := $(shell sed -n 's/^\([A-Z_]*\) [?:]*=.*/\1/p' $(firstword $(MAKEFILE_LIST)))
OTHERS := TRACKING ARTIFACTS_MODE MEDVQ_% MLFLOW_% OMP_% MKL_% CUDA_% TORCH_% NCCL_% XDG_% PIP_% \
	PYTHON% TMPDIR HOME PATH SHELL %_proxy %_PROXY
given = $(if $(filter command,$(firstword $(origin $(1)))),$(1))
UNKNOWN := $(filter-out $(VARIABLES) $(OTHERS),$(foreach name,$(.VARIABLES),$(call given,$(name))))
$(if $(UNKNOWN),$(error No variable is called $(UNKNOWN): `make` prints those that there are, and \
	another program's stands before make, $(firstword $(UNKNOWN))=... make))
# A switch is on at 1 and off at 0.
$(foreach switch,ALL FORCE ACCEPT_CODE JSON QUICK VALIDATION UPGRADE TYPICALITY,\
	$(if $(filter-out 0 1,$($(switch))),$(error $(switch)=$($(switch)): give 1 or 0))\
	$(if $(filter-out TYPICALITY,$(if $(filter 0,$($(switch))),$(switch))),\
	$(eval override $(switch) :=)))

# Several processes are started by torchrun; each runs the same program, and they share the cores.
ifneq ($(filter-out 1,$(NPROC)),)
ifeq ($(shell expr "$(NPROC)" : '[1-9][0-9]*$$'),0)
$(error NPROC is no number of processes: give 1 or more)
endif
CORES := $(shell getconf _NPROCESSORS_ONLN)
export OMP_NUM_THREADS ?= $(shell expr $(CORES) / $(NPROC) '|' 1)
LAUNCH = $(BIN)/python -m medvq.launch --standalone --nproc-per-node "$$NPROC"
else
LAUNCH = $(BIN)/python
endif
OVERRIDES = $(if $(SET),--settings "$$SET") $(if $(SEED),--set "seed=$$SEED") \
	$(if $(LABEL_FRACTION),--set "probe.label_fraction=$$LABEL_FRACTION")
# Command lines from the variables above: $(call RUN,stage) and $(call STUDY,module).
RUN = $(LAUNCH) -m medvq $(1) --config "$$DATASET" --device "$$DEVICE" $(OVERRIDES) \
	$(if $(FORCE),--force) $(if $(ACCEPT_CODE),--accept-code) $(if $(JSON),--json)
EXPORT = $(if $(PROBE),--probe "$$PROBE",--config "$$DATASET") $(if $(OUT),--out "$$OUT") \
	--artifacts "$$ARTIFACTS" $(if $(JSON),--json)
STUDY = $(BIN)/python -m benchmarks.$(1) --config "$$DATASET" --device "$$DEVICE" $(OVERRIDES) \
	$(if $(ACCEPT_CODE),--accept-code) $(if $(JSON),--json) $(if $(ONLY),--only $(ONLY))
FEW_LABELS = $(BIN)/python -m benchmarks.few_labels --only $(1) --device "$$DEVICE" $(OVERRIDES) \
	$(if $(SETS),--sets $(SETS)) $(if $(STORES),--stores "$$STORES") $(if $(ACCEPT_CODE),--accept-code) \
	$(if $(JSON),--json)

# What mypy does not ask of the tests: types of stub-less calls, and of arguments, which numpy's stubs
# and **settings get wrong.
RELAXED = --cache-dir .mypy_cache/tests --follow-imports silent --allow-untyped-calls \
	$(patsubst %,--disable-error-code %,\
	arg-type call-overload index no-any-return operator type-arg union-attr)

.DEFAULT_GOAL := help
# Every target that `make help` shows.
.PHONY: $(shell sed -n "s/^\([a-z-]*\):.*\#\#.*/\1/p" $(firstword $(MAKEFILE_LIST)))

help: ## this text
	@echo "MedVQ: features from unlabelled medical images that need few labels."
	@echo
	@echo "Targets (each runs what it needs; what is up to date is not run again):"
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/:.*## /\t/' | expand -t 26 | sed 's/^/  /'
	@echo
	@echo "Variables:"
	@echo "  DATASET=kermany         a name in configs/, or a path to your own yaml"
	@echo "  LABEL_FRACTION=0.05     share of the training subjects whose labels the probe may see"
	@echo "  IN= OUT=                preview: the files to show, and the folder for their pictures"
	@echo "                          predict: a file or folder of new images, and the table to write"
	@echo "  IMAGE=                  explain, similar: the file in question"
	@echo "  PROBE=                  linear-probe: judge this fitted probe on DATASET, fit nothing;"
	@echo "                          explain, similar, predict: this one, and not the last one of DATASET"
	@echo "  DICOM_OUTPUT=sr         predict: of each DICOM image a structured report; sc: its evidence map"
	@echo "  SETS=a,b STORES=        benchmark-label-curve, -suggestions: data sets; artifacts to read as they are"
	@echo "  ALL=1                   suggest-labels: among all training patients, those with a label too"
	@echo "  TYPICALITY=0            predict: do not say how typical images are"
	@echo "  SET=\"key=value ...\"     values over the yaml, e.g. SET=\"pretrain.epochs=3\""
	@echo "  SEED=0                  seed of everything random"
	@echo "  DEVICE=auto             auto, cpu or cuda"
	@echo "  DATA_ROOT=data          folder of data sets, searched first"
	@echo "  DATA_MIRROR=            folder (read in place) or address, where DATA_ROOT has none"
	@echo "  ARTIFACTS=artifacts     folder that stages write to"
	@echo "  FORCE=1                 run the stage although it is up to date"
	@echo "  ACCEPT_CODE=1           reuse artifacts of other code; the result records it"
	@echo "  JSON=1                  one JSON object on the last line of standard output"
	@echo "  NPROC=1                 processes that ingest, pretrain and extract together, by torchrun"
	@echo "  PYTHON=                 setup: the interpreter, instead of the newest of 3.11 to 3.13"
	@echo "  PORT=                   mlflow-ui: the port, instead of the first free one from 5000 on"

setup: $(VENV)/.ready ## make .venv and install what the project needs

$(VENV)/.ready: pyproject.toml requirements.lock
	@PYTHON="$(PYTHON)" scripts/setup.sh $(VENV)
	@touch $@

demo: override DATASET := phantom
demo: setup ## the whole flow on the built-in synthetic phantom set, offline
	$(call RUN,probe)

data: setup ## ingest: manifest, audit, alignment, cache
	$(call RUN,ingest)

preview: OUT := $(or $(OUT),$(ARTIFACTS)/preview)
preview: setup ## files as they are read: IN="FILE ..." OUT=folder
	@if [ -e "$$IN" ]; then set -- "$$IN"; else eval "set -- $$IN"; fi; \
	$(BIN)/python -m medvq preview $(if $(JSON),--json) --out "$$OUT" -- "$$@"

pretrain: setup ## train the VQ-VAE, without labels
	$(call RUN,pretrain)

extract-features: setup ## codes, histograms and embeddings into the feature store
	$(call RUN,extract)

linear-probe: setup ## classify with LABEL_FRACTION of the labels; judge on the test split
	$(call RUN,$(if $(PROBE),evaluate,probe)) $(if $(PROBE),--probe "$$PROBE")

explain: OUT := $(or $(OUT),$(ARTIFACTS)/explain)
explain: setup ## what in IMAGE=file speaks for and against what a linear probe says
	@$(BIN)/python -m medvq explain $(if $(JSON),--json) --out "$$OUT" -- "$$IMAGE"

similar: OUT := $(or $(OUT),$(ARTIFACTS)/similar)
similar: setup ## training images of other patients that are most like IMAGE=file (N=11)
	@$(BIN)/python -m medvq similar $(if $(JSON),--json) $(if $(N),--number "$$N") \
		--out "$$OUT" -- "$$IMAGE"

suggest-labels: OUT := $(or $(OUT),$(ARTIFACTS)/to-label)
suggest-labels: setup ## N=40 typical and diverse patients to label first, chosen without labels
	@$(BIN)/python -m medvq suggest-labels $(if $(JSON),--json) $(if $(ALL),--all) $(if $(N),--number "$$N") \
		--dataset "$$DATASET" --out "$$OUT"

predict: OUT := $(or $(OUT),$(ARTIFACTS)/predictions.csv)
predict: setup ## what PROBE says of new images: IN=file-or-folder OUT=file.csv
	@$(BIN)/python -m medvq predict --device "$$DEVICE" --in "$$IN" --out "$$OUT" \
		$(if $(JSON),--json) $(if $(DICOM_OUTPUT),--dicom-output "$$DICOM_OUTPUT") \
		$(if $(filter 0,$(TYPICALITY)),--no-typicality)

report: setup ## one page: the result, what to distrust, and where it comes from
	@$(BIN)/python -m medvq report $(if $(JSON),--json) --dataset "$$DATASET" \
		$(if $(PROBE),--probe "$$PROBE")

prior: setup ## train the model of the codes (a Transformer, or prior.model=pixelcnn, masked)
	$(call RUN,prior)

sample: setup ## draw images: N=64 CLASS=PNEUMONIA TEMPERATURE=1 GUIDANCE=1 TOP_K=0 TOP_P=1 STEPS=64
	$(call RUN,sample) $(if $(N),--set "sample.number=$$N") \
		$(if $(CLASS),--set "sample.class_name=\"$$CLASS\"") \
		$(if $(TEMPERATURE),--set "sample.temperature=$$TEMPERATURE") \
		$(if $(GUIDANCE),--set "sample.guidance=$$GUIDANCE") \
		$(if $(TOP_K),--set "sample.top_k=$$TOP_K") $(if $(TOP_P),--set "sample.top_p=$$TOP_P") \
		$(if $(STEPS),--set "sample.steps=$$STEPS")

onnx: setup ## DATASET's encoder with its preprocessing as ONNX, with PROBE=... its prediction (OUT=file)
	$(BIN)/python -m medvq onnx $(EXPORT)

bundle: setup ## DATASET's encoder, and PROBE=..., as a MONAI bundle (OUT=folder)
	$(BIN)/python -m medvq bundle --zip $(EXPORT)

# DATASET has a default for all other targets; here that is the data set of the newest run.
mlflow-ui: setup ## compare runs in the browser, on this machine only (DATASET= PORT=)
	@$(BIN)/python -m medvq mlflow-ui $(if $(filter-out file,$(origin DATASET)),--config "$$DATASET") \
		$(if $(PORT),--port "$(PORT)")

mlflow-sync: setup ## send what MLflow could not take when it was reported
	$(BIN)/python -m medvq mlflow-sync

notebooks: demo ## run the notebooks on the demo, offline, into ARTIFACTS/notebooks
	mkdir -p -- "$$ARTIFACTS/notebooks"
	$(BIN)/jupyter execute notebooks/*.ipynb \
		--output="$$(cd -- "$$ARTIFACTS/notebooks" && pwd)/{notebook_name}"

base: setup ## make the base model anew, of public radiographs, and put it into the package
	$(BIN)/python -m benchmarks.base --config base --device "$$DEVICE" $(OVERRIDES)

# Studies: each writes a page into docs/results/.
benchmark: setup ## AUROC at 1 to 100% of the labels, and how far to trust it (hours)
	$(call STUDY,label_efficiency)

benchmark-suite: setup ## MedVQ and its rivals on all data sets (a day; ONLY=a,b ARMS=a,b SEEDS=3 VALIDATION=1)
	$(BIN)/python -m benchmarks.suite --device "$$DEVICE" $(OVERRIDES) \
		$(if $(ACCEPT_CODE),--accept-code) $(if $(JSON),--json) $(if $(ONLY),--only $(ONLY)) \
		$(if $(ARMS),--arms $(ARMS)) $(if $(SEEDS),--seeds $(SEEDS)) \
		$(if $(VALIDATION),--validation)

benchmark-supervised: setup ## networks trained on the same label subsets (a day)
	$(call STUDY,supervised)

benchmark-ablation: setup ## what each part gains, paired (hours; ONLY=parts, preparation, images, untrained SEEDS=5)
	$(call STUDY,ablation) $(if $(SEEDS),--seeds $(SEEDS))

benchmark-masked-code: setup ## whether hidden states of a model of the codes exceed the codes
	$(call STUDY,masked_code)

benchmark-anomalies: setup ## findings told from normal images, by these alone (STORES=extract,extract)
	$(call STUDY,anomalies) $(if $(STORES),--stores "$$STORES")

benchmark-codec: setup ## PSNR, SSIM and detail at equal bits: four kinds of codes, JPEG 2000, WebP
	$(call STUDY,codec)

benchmark-reconstructions: setup ## what codes keep of digits, photographs and radiographs (an hour)
	$(BIN)/python -m benchmarks.reconstructions --device "$$DEVICE" $(OVERRIDES) $(if $(JSON),--json)

benchmark-coverage: setup ## how often 95% intervals hold the truth, simulated (minutes)
	$(BIN)/python -m benchmarks.coverage $(if $(N),--number "$$N") $(if $(JSON),--json)

benchmark-codes: setup ## AUROC against bytes of an image: codes, product quantization, PCA (ONLY=a,b)
	$(BIN)/python -m benchmarks.codes --device "$$DEVICE" $(OVERRIDES) \
		$(if $(ACCEPT_CODE),--accept-code) $(if $(JSON),--json) $(if $(ONLY),--only $(ONLY))

benchmark-multiplicity: setup ## what is learnt from who has several images, 20 trainings (hours)
	$(call STUDY,multiplicity)

benchmark-speed: setup ## speed and memory against MONAI and others (QUICK=1: fewer rounds)
	@mkdir -p build
	@sed -En 's/^([a-z0-9._-]+==[^ ;]+).*/\1/p' requirements.lock > build/pins.txt
	$(BIN)/pip install --quiet --constraint build/pins.txt "vector-quantize-pytorch>=1.32"
	$(BIN)/python -m benchmarks.speed --device "$$DEVICE" $(if $(QUICK),--quick) \
		$(if $(JSON),--json) $(if $(ONLY),--only $(ONLY))

benchmark-peers: setup ## AUROC against minutes, MedVQ and what others would use (hours; ONLY=a ARMS=a,b EPOCHS=18)
	$(BIN)/python -m benchmarks.peers --device "$$DEVICE" $(OVERRIDES) \
		$(if $(ACCEPT_CODE),--accept-code) $(if $(JSON),--json) $(if $(ONLY),--only $(ONLY)) \
		$(if $(ARMS),--arms $(ARMS)) $(if $(EPOCHS),--epochs $(EPOCHS))

benchmark-evidence: setup ## whether evidence maps show what the probe looks at, by deletion (minutes)
	$(call STUDY,evidence_maps)

benchmark-similar: setup ## how often look-alikes share a class (ONLY=million N=: how fast so many answer)
	$(call STUDY,look_alikes) $(if $(N),--vectors $(N))

benchmark-label-curve: setup ## AUROC at all labels, foretold from 20% of them (SETS=kermany,phantom)
	$(call FEW_LABELS,curve)

benchmark-suggestions: setup ## suggested against random labels, 30 repeats (an hour; SETS=kermany,phantom)
	$(call FEW_LABELS,suggestions)

benchmark-faults: setup ## kills, full disks, poisoned files (an hour; N=20: a tenth of it)
	$(BIN)/python -m benchmarks.faults --artifacts "$$ARTIFACTS" $(if $(N),--number "$$N") \
		$(if $(JSON),--json) $(if $(ONLY),--only $(ONLY))

evaluate-prior: setup ## likelihood, samples, anomalies and typicality of the model of the codes
	$(call STUDY,prior)

# SlipCover counts by instrumented bytecode: a tracer, such as coverage.py's on Python 3.11, makes
# Python code half as slow again. Its warning is that it does not count the tests' own branches. The
# tests of a file share what its fixtures make; tests/conftest.py has files that take long first.
test: setup ## all tests, doctests included, and the share of the code that they cover
	$(BIN)/python -W ignore::RuntimeWarning:slipcover.importer -m slipcover --branch \
		--source pipeline/medvq --skip-covered -m pytest \
		--numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

test-cuda: setup ## the tests that need a CUDA device
	$(BIN)/python -m pytest -rs tests/test_cuda.py

lint: setup ## ruff, mypy (strict), import-linter
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	MYPYPATH=tests $(BIN)/mypy $(RELAXED) tests
	$(BIN)/lint-imports

format: setup ## let ruff format and mend
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: setup ## build this project's documentation into build/docs; a warning is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "open $(abspath build/docs/index.html)"

# Tools of maintainers, in an environment of their own.
$(TOOLS)/bin/uv $(TOOLS)/bin/pip-audit:
	$(BIN)/python -m venv $(TOOLS)
	$(TOOLS)/bin/pip install --quiet uv pip-audit

lock: setup $(TOOLS)/bin/uv ## pin packages and hashes into requirements.lock (UPGRADE=1: newer versions)
	$(BIN)/python scripts/lock.py $(TOOLS)/bin/uv $(if $(UPGRADE),--upgrade)

licences: setup ## write docs/licences.md, the licence of every package of requirements.lock
	$(BIN)/python scripts/licences.py

audit: setup $(TOOLS)/bin/pip-audit ## look for known vulnerabilities of what requirements.lock pins
	@scripts/audit.sh $(TOOLS)/bin/pip-audit

clean: ## remove artifacts (data and .venv stay)
	@case "$$PWD/" in "$$(cd -- "$$ARTIFACTS" 2>/dev/null && pwd || echo none)"/*) \
	echo "ARTIFACTS=$$ARTIFACTS holds this project and is not removed" >&2; exit 2;; esac
	rm -rf -- "$$ARTIFACTS"
