# lesionseg: every command a user needs. `make help` lists them.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory

PYTHON ?= python3
BIN := .venv/bin
LESIONSEG := $(BIN)/lesionseg

# Set on make's command line; the environment does not count (some systems set NAME to that of the machine).
LITS :=
SLICES :=
# In place of SLICES: lesions implanted in the patients of LITS whom the pretraining has not seen; HOLD names cases that it
# leaves out for that, beside those of its test part.
IMPLANT :=
HOLD :=
EPOCHS :=
# Devices that one training takes on a machine, and machines that it takes. With NODES nothing is prepared, or each machine
# would do it: srun has started the ranks (experiments/slurm/train.sbatch), or torchrun does, and they meet at MEET=host:port.
DEVICES :=
NODES :=
MEET :=
# More options of `lesionseg prepare`, e.g. LITS_OPTIONS='--groups groups.csv' SLICES_OPTIONS='--labels cyst=3,metastasis=1'
LITS_OPTIONS :=
SLICES_OPTIONS :=
# More options of `lesionseg implant`, e.g. IMPLANT_OPTIONS='--slices 332 --seed 1'
IMPLANT_OPTIONS :=
ifeq ($(LITS)$(SLICES),)
NAME := phantom
else
NAME := $(notdir $(abspath $(if $(LITS),$(LITS),$(dir $(SLICES)))))$(if $(IMPLANT),-implants)
endif
# One word of a command line each; of NAME, targets are made too.
define UNFIT
" ' ` \ ( ) < > & | ; * ? [ ] { } ! #
endef
UNFIT_NAME = $(UNFIT) : = %
$(foreach name,LITS SLICES NAME,$(foreach unfit,$(or $(UNFIT_$(name)),$(UNFIT)),$(if $(findstring $(unfit),$($(name))),$(error \
  lesionseg: wrong input: $(name): expected no $(unfit); got $($(name)); rename it, or name a link to it)))$(if $(word 2,$($(name))),$(error \
  lesionseg: wrong input: $(name): expected no blanks; got $($(name)); rename it, or name a link to it)))
RUN := runs/$(NAME)
DATA := $(RUN)/data
# Stores of real CT that the run holds already: `make cell NAME=mine` need not name LITS and SLICES again.
PREPARED := $(shell grep -ls '"generated": false' $(DATA)/lits/manifest.json $(DATA)/slices/manifest.json)
PROFILE := $(if $(LITS)$(SLICES)$(PREPARED),paper,phantom)
# One schedule, where one is meant: of `cell`, or whose runs are exported (none: the best of the comparison).
SCHEDULE :=
SCHEDULES := baseline no_freezing hierarchical_freezing freeze_encoder hierarchical_unfreezing
FOLDS := 3
SEEDS := 0
# The row that the others are compared with; none: baseline (`make peers`: no_freezing).
AGAINST :=

TORCHRUN := $(BIN)/torchrun
# torchrun tells others where a machine is by its own name, which they need not know, and knows by that name that it is
# the one at MEET. The address on the way to MEET is what others reach (127.*: MEET is a name that leads to itself here).
MEET_HOST = $(firstword $(subst :, ,$(MEET)))
TOWARDS = $(filter-out 127.% None,$(shell $(BIN)/python -c \
  'from lesionseg.addresses import address_towards; print(address_towards("$(MEET_HOST)"))' 2>/dev/null))
MEETING = $(TORCHRUN) --nnodes $(or $(NODES),1) --nproc-per-node $(or $(DEVICES),$(if $(GPUS),gpu,1)) \
  --rdzv-backend c10d --rdzv-endpoint $(MEET) $(TOWARDS:%=--local-addr %) \
  $(if $(filter $(MEET_HOST),$(TOWARDS)),--rdzv-conf is_host=1) --rdzv-id=$(subst /,-,$(1)) \
  --signals-to-handle SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1
# $(1): the run folder.
FIT = $(if $(MEET),$(MEETING) -m lesionseg.cli,$(LESIONSEG)) fit --trainer.default_root_dir $(1)
PROFILE_FILE := experiments/profiles/$(PROFILE).yaml
# More options of `lesionseg fit` for the cells of the grid, e.g. FIT_OPTIONS='--model.init_args.loss weighted_ce'
FIT_OPTIONS :=
# The same for the pretraining, e.g. PRETRAIN_OPTIONS='--data.folds 1' where HOLD leaves it too few patients for folds
PRETRAIN_OPTIONS :=
# Told at once, as both also say how many trainings run side by side.
$(foreach name,DEVICES NODES,$(if $($(name)),$(if $(shell grep -xE '[1-9][0-9]*' <<< '$($(name))'),,$(error \
  lesionseg: wrong input: $(name): expected a whole number from 1 on; got $($(name)); leave it out for the default))))
STEER = $(if $(EPOCHS),--trainer.max_epochs $(EPOCHS)) $(SPREAD)
# Of the pretraining, which fine-tunings of any length begin with: its own length.
PRETRAIN_STEER = $(if $(PRETRAIN_EPOCHS),--trainer.max_epochs $(PRETRAIN_EPOCHS)) $(SPREAD)
SPREAD = $(if $(DEVICES)$(NODES)$(MEET),--trainer.devices $(or $(DEVICES),auto)) \
  $(if $(NODES),--trainer.num_nodes $(NODES))

# Trainings run side by side: as many as there are GPUs for, DEVICES each (none said: one); on the CPU two, of one rank
# each, which share its cores. `make -j N` says otherwise. CUDA_VISIBLE_DEVICES says which of the GPUs are there. With NODES
# a training takes all that is there, if DEVICES does not say otherwise.
# The CPUs of this job; nproc by itself takes OMP_NUM_THREADS for them, which is said for one process.
NPROC := $(shell env -u OMP_NUM_THREADS -u OMP_THREAD_LIMIT nproc 2>/dev/null || getconf _NPROCESSORS_ONLN)
# Of the CPU time of a container: as many as it is worth (`machine.cores`, before there is a Python).
CPU_GROUP := /sys/fs/cgroup
QUOTA := $(shell (cat $(CPU_GROUP)/cpu.max || paste -d ' ' $(CPU_GROUP)/cpu/cpu.cfs_quota_us $(CPU_GROUP)/cpu/cpu.cfs_period_us) \
  2>/dev/null | awk '$$1 + 0 > 0 && $$2 > 0 { n = int($$1 / $$2); print (n > 1 ? n : 1) }')
CORES := $(shell echo $$(( $(or $(QUOTA),$(NPROC)) < $(NPROC) ? $(QUOTA) + 0 : $(NPROC) )))
COMMA := ,
# A container may have no nvidia-smi: the driver's files tell how many GPUs there are.
GPU_FILES := /dev/nvidia[0-9]*
MACHINE_GPUS := $(shell if command -v nvidia-smi >/dev/null; then nvidia-smi -L 2>/dev/null | sed -nE 's/^GPU ([0-9]+):.*/\1/p'; \
  else ls -d $(GPU_FILES) 2>/dev/null | awk '{ print NR - 1 }'; fi)
VISIBLE := $(filter-out -1,$(subst $(COMMA), ,$(CUDA_VISIBLE_DEVICES)))
GPUS := $(if $(filter undefined,$(origin CUDA_VISIBLE_DEVICES)),$(MACHINE_GPUS),$(if $(MACHINE_GPUS),$(VISIBLE)))
EACH := $(or $(DEVICES),$(if $(NODES)$(MEET),$(if $(GPUS),$(words $(GPUS)))),1)
FITTING := $(shell n=$$(( $(or $(if $(GPUS),$(words $(GPUS))),2) / $(EACH) )); echo $$(( n > 1 ? n : 1 )))
SIDE_BY_SIDE := $(if $(NODES)$(MEET),1,$(FITTING))
ifeq ($(filter -j% --jobserver%,$(MAKEFLAGS)),)
MAKEFLAGS += -j$(SIDE_BY_SIDE)
endif
JOBS = $(or $(patsubst -j%,%,$(filter -j%,$(MAKEFLAGS))),$(CORES))
THREADS = $$(( $(CORES) / $(JOBS) / $(EACH) > 1 ? $(CORES) / $(JOBS) / $(EACH) : 1 ))
# What stands before a training: its threads and, where the machine has more GPUs than it takes, GPUs of its own, also
# beside the trainings of another make.
MORE_GPUS := $(if $(GPUS),$(if $(NODES),,$(word 2,$(wordlist $(EACH),$(words $(GPUS)),$(GPUS)))))
GPU_LOCKS := runs/.gpus
PLACED = $(if $(MORE_GPUS),bash experiments/on_free_gpus.sh $(GPU_LOCKS) $(EACH) '$(GPUS)')
BESIDE = OMP_NUM_THREADS=$(if $(NODES),$(GIVEN_THREADS),$(THREADS)) $(PLACED)
# Where make starts one training, whoever starts make may know the threads of it: train.sbatch, grid.sbatch, an agent.
GIVEN_THREADS = $${OMP_NUM_THREADS:-$(THREADS)}

.PHONY: help
help: ## list the targets
	@echo "make TARGET [LITS=/path/to/LiTS] [SLICES=/path/to/slices.csv] [PROFILE=phantom|paper|real_cpu] [NAME=...]"
	@echo "            [SCHEDULES='a b'] [FOLDS=3] [SEEDS='0 1'] [AGAINST=row] [DEVICES=n] [-j N]"
	@echo "            [EPOCHS=n] of the fine-tunings [PRETRAIN_EPOCHS=n] [NODES=n] [MEET=host:port]"
	@echo "            [SCHEDULE=a] [FOLD=0] [SEED=0] [INPUT=/path/to/study] [OUT=folder] [IMPLANT=1] [HOLD='case case']"
	@echo "            [LITS_OPTIONS=...] [SLICES_OPTIONS=...] [IMPLANT_OPTIONS=...] of lesionseg prepare and implant"
	@echo "            [PRETRAIN_OPTIONS=...] [FIT_OPTIONS=...] of lesionseg fit [SEGMENT_OPTIONS=...] of lesionseg segment"
	@echo "            [NEIGHBOURS='a b'] [PYTHON=python3.12]"
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  \1\t\2/' | expand -t 16

# ---- set-up: an environment of its own, from pinned and hashed packages ----
.PHONY: setup
setup: .venv/.ready ## make .venv with everything (once)

.venv/.ready: requirements.lock requirements-uv.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "lesionseg needs Python 3.11 or newer; name one: make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-uv.lock
	$(BIN)/uv pip sync --quiet --compile-bytecode --python $(BIN)/python --require-hashes requirements.lock requirements-uv.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	@touch $@

.PHONY: lock
LOCK = $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --upgrade \
  --no-emit-index-url --no-header --no-annotate pyproject.toml
lock: setup ## resolve the newest versions again
	$(LOCK) --extra dev --extra dashboard --extra dask -o requirements.lock
	$(LOCK) --extra peers --constraint requirements.lock -o requirements-peers.lock
	$(LOCK) --extra mutants --constraint requirements.lock -o requirements-mutants.lock

# ---- data ----
.PHONY: phantom data-lits data-slices
ifneq ($(PREPARED),)
phantom:
	@echo "lesionseg: wrong input: LITS, SLICES: expected what $(RUN) was made from, as it holds real CT; got none;" \
	  "add them, or another NAME= for the phantom" >&2; exit 2
else ifneq ($(if $(wildcard $(DATA)/source),,$(wildcard $(DATA)/lits/manifest.json $(DATA)/slices/manifest.json)),)
phantom:
	@echo "lesionseg: wrong input: LITS, SLICES: expected what $(RUN) was made from, as it holds no phantom of make's own; got" \
	  "none; add them, or another NAME= for the phantom" >&2; exit 2
else
phantom: setup
	@$(LESIONSEG) phantom $(DATA)/source
endif

ifneq ($(LITS),)
data-lits: setup ## the store of LITS, or of the phantom
	@$(LESIONSEG) prepare lits $(LITS) $(LITS_OPTIONS) $(if $(HOLD),--exclude $(HOLD)) --output $(DATA)/lits
else ifneq ($(SLICES),)
data-lits: setup
	@test -e $(DATA)/lits/manifest.json || { echo "lesionseg: wrong input: LITS: expected the LiTS folder, as nothing is" \
	  "pretrained in $(RUN) yet; got none; add LITS=/path/to/LiTS, or NAME= of an earlier make pretrain" >&2; exit 2; }
else
data-lits: phantom
	@$(LESIONSEG) prepare lits $(DATA)/source/lits --output $(DATA)/lits
endif

# A table without liver masks takes the liver of the net that `pretrain` trains.
LIVER := $(if $(SLICES),$(if $(findstring liver_mask,$(shell head -n 1 $(SLICES) 2>/dev/null)),,$(RUN)/pretrain/liver))

ifneq ($(IMPLANT),)
ifeq ($(and $(LITS),$(if $(SLICES),,none)),)
data-slices:
	@echo "lesionseg: wrong input: IMPLANT: expected LITS, whose slices get the lesions, and no SLICES; got" \
	  "LITS=$(LITS) SLICES=$(SLICES); add or remove them" >&2; exit 2
else
# With HOLD, a store of all cases tells which patients the pretraining has seen in other scans.
HOSTS := $(DATA)/$(if $(HOLD),whole,lits)
data-slices: pretrain-lesion ## the store to fine-tune on: SLICES, IMPLANT=1, or the slices of the phantom
	$(if $(HOLD),@$(LESIONSEG) prepare lits $(LITS) $(LITS_OPTIONS) --output $(HOSTS))
	@$(LESIONSEG) implant $(HOSTS) $(IMPLANT_OPTIONS) --exclude-trained $(RUN)/pretrain/lesion --output $(DATA)/slices
endif
else ifneq ($(SLICES),)
data-slices: setup $(if $(LIVER),pretrain-liver)
	@$(LESIONSEG) prepare slices $(SLICES) $(SLICES_OPTIONS) $(if $(LIVER),--liver $(LIVER)) --output $(DATA)/slices
else ifneq ($(LITS),)
data-slices:
	@echo "lesionseg: wrong input: SLICES: expected a table of slices to fine-tune on, as LITS is given; got none;" \
	  "add SLICES=/path/to/slices.csv, or IMPLANT=1 (make pretrain needs LITS alone)" >&2; exit 2
else
data-slices: phantom
	@$(LESIONSEG) prepare slices $(DATA)/source/slices/slices.csv --output $(DATA)/slices
endif

# ---- training ----
.PHONY: pretrain pretrain-liver pretrain-lesion
pretrain: pretrain-liver pretrain-lesion ## train the liver net and the lesion net on LiTS (pretrain-liver, pretrain-lesion: one of them)

# Before hours of pretraining, what would stop the grid after them. Slices that need no net of it are prepared first.
FIRST := $(if $(NODES)$(IMPLANT)$(LIVER)$(if $(SLICES),,$(PREPARED)),,data-slices)
COUNTED := $(or $(FIRST),$(if $(LITS)$(SLICES),,$(and $(PREPARED),$(wildcard $(DATA)/slices/manifest.json))))
# $(1): schedules, $(2): more of what they are checked against.
PLAN = $(BIN)/python experiments/planned.py '$(1)' $(2) $(if $(LIVER),--table '$(SLICES) $(SLICES_OPTIONS)') \
  --config experiments/finetune/lesion.yaml \
  --config $(PROFILE_FILE) --data.folds $(FOLDS) $(if $(COUNTED),--data.store $(DATA)/slices) $(STEER) $(FIT_OPTIONS)
.PHONY: planned peers-planned
planned: setup $(FIRST) ## can the schedules be trained in EPOCHS, and their FOLDS be made? (make finetune asks first)
	@$(call PLAN,$(SCHEDULES),--grid $(RUN)/finetune --seeds '$(SEEDS)' $(if $(AGAINST),--against $(AGAINST)))

peers-planned: setup $(FIRST)
	@$(call PLAN,$(PEER_SCHEDULES))
	@$(call PEERS,$(RUN)) --schedules $(PEER_SCHEDULES) --check

# Where machines meet, looked at before torchrun tries.
.PHONY: meeting
meeting: $(if $(NODES),,setup)
	@$(BIN)/python experiments/meeting.py '$(MEET)' $(or $(NODES),1)
TOGETHER := $(if $(MEET),meeting)

ASKED_FIRST := $(if $(filter finetune planned,$(MAKECMDGOALS)),planned) $(if $(filter peers,$(MAKECMDGOALS)),peers-planned)
pretrain-liver pretrain-lesion: pretrain-%: $(ASKED_FIRST) $(if $(NODES),,data-lits) $(TOGETHER)
	@$(BESIDE) $(call FIT,$(RUN)/pretrain/$*) --config experiments/pretrain/$*.yaml --config $(PROFILE_FILE) \
	  --data.store $(DATA)/lits $(PRETRAIN_STEER) $(PRETRAIN_OPTIONS)

# What a cell of the grid runs: $(1) schedule, $(2) fold, $(3) seed.
FIT_CELL = $(call FIT,$(RUN)/finetune/$(1)/fold$(2)-seed$(3)) --config experiments/finetune/lesion.yaml \
  --config experiments/schedules/$(1).yaml --config $(PROFILE_FILE) --seed_everything $(3) \
  --data.store $(DATA)/slices --data.folds $(FOLDS) --data.fold $(2) \
  --model.init_args.weights $(RUN)/pretrain/lesion $(STEER) $(FIT_OPTIONS)

CELLS :=
define CELL
CELLS += $(RUN)/finetune/$(1)/fold$(2)-seed$(3)
CELL_LINES += 'SCHEDULE=$(1) FOLD=$(2) SEED=$(3)'
INDEX := $$(words $$(CELLS))
.PHONY: $(RUN)/finetune/$(1)/fold$(2)-seed$(3)
$(RUN)/finetune/$(1)/fold$(2)-seed$(3): CELL_INDEX := $$(INDEX)
$(RUN)/finetune/$(1)/fold$(2)-seed$(3): grid
	@$$(BESIDE) $$(call FIT_CELL,$(1),$(2),$(3)) --cell $$(CELL_INDEX)/$$(words $$(CELLS))@$$(JOBS)
endef
FOLD_NUMBERS := $(shell seq 0 $$(( $(FOLDS) - 1 )))
$(foreach s,$(SCHEDULES),$(foreach k,$(FOLD_NUMBERS),$(foreach e,$(SEEDS),$(eval $(call CELL,$(s),$(k),$(e))))))

.PHONY: grid finetune compare
grid: $(if $(NODES),,pretrain-lesion data-slices) $(TOGETHER)
	@echo "grid: $(words $(SCHEDULES)) schedules x $(FOLDS) folds x $(words $(SEEDS)) seeds = $(words $(CELLS)) cells in $(RUN)/finetune"

COMPARE = $(LESIONSEG) compare $(RUN)/finetune $(if $(AGAINST),--against $(AGAINST)) --output $(RUN)/compare

finetune: $(CELLS) $(if $(NODES),,pretrain) ## pretrain where needed, fine-tune under every schedule, compare
	@$(COMPARE)

compare: setup $(filter $(CELLS) finetune,$(MAKECMDGOALS)) ## compare the finished runs again, AGAINST=row in the place of baseline
	@$(COMPARE)

# The grid on many machines (experiments/sweeps, experiments/slurm). Nothing is prepared here, or they would all do it
# at once: `make planned pretrain data-slices` comes first.
FOLD :=
SEED :=

.PHONY: cells cell
cells: ## the cells of the grid, one a line, as `make cell` takes them
	@printf '%s\n' $(CELL_LINES)

ifneq ($(and $(SCHEDULE),$(FOLD),$(SEED)),)
cell: JOBS = $(if $(GPUS),$(SIDE_BY_SIDE),1)
cell: $(TOGETHER) ## one cell of the grid, for a sweep or a cluster: SCHEDULE=a FOLD=0 SEED=0
	@OMP_NUM_THREADS=$(GIVEN_THREADS) $(PLACED) $(call FIT_CELL,$(SCHEDULE),$(FOLD),$(SEED))
else
cell:
	@echo "lesionseg: wrong input: cell: expected SCHEDULE=, FOLD= and SEED=; got $(or $(strip $(SCHEDULE) $(FOLD) $(SEED)),none);" \
	  "take a line of make cells" >&2; exit 2
endif

.PHONY: dashboard
dashboard: setup $(filter finetune compare,$(MAKECMDGOALS)) ## a W&B workspace and report of the comparison: written to a file, and published where you are logged in
	@$(BIN)/python experiments/dashboard.py $(RUN)/finetune $(RUN)/compare

# ---- against the neighbours: what a user could take in our place (experiments/peers) ----
# The five rows, and the best of the others: by the inner validation, and by the test (docs/results.md).
PEER_SCHEDULES := $(SCHEDULES) l2_sp crop_classifier
# Fewer of them, e.g. NEIGHBOURS='finetuning_scheduler nnunet'
NEIGHBOURS :=
PEERS = $(BIN)/python experiments/peers/run.py $(1)/peers --pretraining $(1)/pretrain/lesion --jobs $(JOBS) \
  $(if $(PLACED),--placed "$(PLACED)") \
  $(if $(NEIGHBOURS),--neighbours $(NEIGHBOURS)) $(if $(AGAINST),--against $(AGAINST)) --folds $(FOLDS) --seeds $(SEEDS)

.venv/.%: .venv/.ready requirements-%.lock
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python --require-hashes -r requirements-$*.lock
	@touch $@

.PHONY: peers peers-real
peers: .venv/.peers pretrain-lesion data-slices ## ours beside Lightning, finetuning-scheduler, fastai's way and nnU-Net
	@$(call PEERS,$(RUN)) --schedules $(PEER_SCHEDULES) -- --config $(PROFILE_FILE) --data.store $(DATA)/slices \
	  $(STEER) $(FIT_OPTIONS)

# ---- a model to share, and its use ----
INPUT :=
OUT := $(RUN)/segmented
# More options of `lesionseg segment`, e.g. SEGMENT_OPTIONS='--tta --probabilities'
SEGMENT_OPTIONS :=

.PHONY: export segment
export: setup $(filter pretrain finetune,$(MAKECMDGOALS)) ## a model folder of the trained runs: SCHEDULE=name, or the best of the comparison
	@$(LESIONSEG) export --liver $(RUN)/pretrain/liver \
	  $(if $(SCHEDULE),--lesion $(RUN)/finetune/$(SCHEDULE)/fold*-seed*,--best-of $(RUN)/finetune) --output $(RUN)/model

ifneq ($(INPUT),)
segment: setup $(filter export,$(MAKECMDGOALS)) ## find the lesions of INPUT=study (DICOM or NIfTI) with the exported model, into OUT=folder
	@$(LESIONSEG) segment "$(INPUT)" --model $(RUN)/model --output "$(OUT)" $(SEGMENT_OPTIONS)
else
segment:
	@echo "lesionseg: wrong input: INPUT: expected a study, DICOM or NIfTI; got none; add INPUT=/path/to/study" >&2; exit 2
endif

# ---- for developers ----
.PHONY: tools test lint check-real
tools: ## programs that some tests compare with (Debian, as root); without them those tests are skipped
	apt-get update -qq && apt-get install -y -qq --no-install-recommends dicom3tools chromium

test: setup ## run tests and notebooks, count the covered lines
	$(BIN)/python -m pytest -n 2 --nbmake tests notebooks \
	  --cov=lesionseg --cov-report=term-missing:skip-covered --cov-fail-under=90

lint: setup ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

BENCHMARKS := prepare random_slice augmentation training_step saving freeze_states frozen_prefix settings segment_peers \
  startup gpu
MEASURED := runs/benchmark

.PHONY: benchmark
benchmark: .venv/.peers ## our speed against limits and rivals, as one table (`make finetune export` first)
	@for name in $(BENCHMARKS); do echo "== $$name"; rm -f $(MEASURED)/$$name.json; \
	  $(BIN)/python experiments/benchmarks/$$name.py --output $(MEASURED)/$$name.json || exit; done
	@$(BIN)/python experiments/benchmarks/scaling.py $(MEASURED)
	@$(BIN)/python experiments/benchmarks/joined_table.py $(MEASURED) $(BENCHMARKS)

TRUSTS := exactness fuzz kills grid mishaps full_disk leakage privacy
TRIED := runs/trust

.PHONY: trust soak mutants floors
floors: setup ## the small chain on the oldest versions that are allowed; `make trust` puts it on the page
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python .venv/floors
	$(BIN)/uv pip install --quiet --python .venv/floors/bin/python --resolution lowest-direct .
	@.venv/floors/bin/python experiments/trust/floors.py --output $(TRIED)/floors.json

mutants: .venv/.mutants ## do the tests notice small changes of the code that decides? half an hour; `make trust` puts it on the page
	@$(BIN)/python experiments/trust/mutants.py --output $(TRIED)/mutants.json

soak: setup ## the whole chain again and again for 20 minutes, with kills in between; `make trust` puts it on the page
	@$(BIN)/python experiments/trust/soak.py --output $(TRIED)/soak.json

trust: setup ## try what can go wrong, a thousand times and more, and write docs/reliability.md
	@failed=0; for name in $(TRUSTS); do echo "== $$name"; \
	  $(BIN)/python experiments/trust/$$name.py --output $(TRIED)/$$name.json || failed=1; done; \
	$(BIN)/python experiments/trust/reliability.py $(TRIED) docs/reliability.md && exit $$failed

# The whole chain on real CT: every folder of REAL is read, then fold 3 of its LiTS patients (REAL_FOLDS='0 1 2 3': each) is trained for minutes.
REAL := ../shared/data
REAL_RUN := runs/check-real
REAL_FOLDS := 3
REAL_FITS := $(foreach k,$(REAL_FOLDS),$(REAL_RUN)/fold$(k)/liver $(REAL_RUN)/fold$(k)/lesion)

check-real: $(REAL_FITS) real-files ## the whole chain on real CT, REAL=folder (lits/ with volumes 0 1 2 5 6 8), one fold of its patients tested
	@for k in $(REAL_FOLDS); do fold=$(REAL_RUN)/fold$$k; \
	  $(LESIONSEG) export --liver $$fold/liver --lesion $$fold/lesion --output $$fold/model && \
	  $(LESIONSEG) evaluate $(REAL_RUN)/data/lits --model $$fold/model --exclude-trained --output $$fold/evaluation || exit; \
	done
	$(BIN)/python experiments/check_real.py $(REAL_RUN)

.PHONY: real-files real-data $(REAL_FITS)
real-files: setup # beside the trainings, where one ends before the others
	LESIONSEG_REAL=$(REAL) $(BIN)/python -m pytest -p no:cacheprovider tests/real

real-data: setup
	@mkdir -p $(REAL_RUN)
	@printf 'case,patient\nvolume-0,A\nvolume-1,A\nvolume-2,B\nvolume-5,C\nvolume-6,D\nvolume-8,D\n' > $(REAL_RUN)/groups.csv
	@$(LESIONSEG) prepare lits $(REAL)/lits --groups $(REAL_RUN)/groups.csv --output $(REAL_RUN)/data/lits

# Lesion or none on the real CT: one patient pretrains, each of the other three is tested once.
PEERS_REAL := runs/peers-real
PEERS_REAL_FIT = --config experiments/profiles/real_cpu.yaml --data.target lesion --trainer.limit_train_batches 10 \
  --trainer.max_epochs $(or $(EPOCHS),12)
peers-real: .venv/.peers real-data ## `make peers` for lesion or none on real CT, REAL=folder (lits/ with volumes 0 1 2 5 6 8)
	@$(call PEERS,$(PEERS_REAL)) --schedules $(SCHEDULES) l2_sp --check
	@for part in 'lits volume-0 volume-1 volume-2 volume-5' 'cells volume-6 volume-8'; do set -- $$part; \
	  $(LESIONSEG) prepare lits $(REAL)/lits --groups $(REAL_RUN)/groups.csv --exclude "$${@:2}" \
	    --output $(PEERS_REAL)/data/$$1 || exit; done
	@$(call FIT,$(PEERS_REAL)/pretrain/lesion) --config experiments/pretrain/lesion.yaml $(PEERS_REAL_FIT) \
	  --data.store $(PEERS_REAL)/data/lits --data.folds 1
	@$(call PEERS,$(PEERS_REAL)) --schedules $(SCHEDULES) l2_sp -- $(PEERS_REAL_FIT) \
	  --data.store $(PEERS_REAL)/data/cells $(FIT_OPTIONS)

# The whole slice needs more pixels than the box of the liver (128): chosen on patients A and B, docs/results.md.
$(REAL_FITS): real-data
	@$(BESIDE) $(call FIT,$@) --config experiments/pretrain/$(notdir $@).yaml \
	  --config experiments/profiles/real_cpu.yaml $(if $(filter liver,$(notdir $@)),--data.input.size_px 160) \
	  --data.store $(REAL_RUN)/data/lits \
	  --data.folds 4 --data.fold $(subst fold,,$(notdir $(patsubst %/,%,$(dir $@)))) $(STEER)
