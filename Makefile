# Every target sets up what it needs: Python >= 3.11, make and a package index are enough.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
WORKDIR ?= runs/demo

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow test-oldest lint format docs bench bench-accelerators clean \
  results-small-batches results-cifar10 results-sources results-autoattack results-joint \
  results-joint-margin results-adversarial results-hippocampus results-hippocampus-autoattack \
  results-camvid results-camvid-sea

help:  ## Show the targets.
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 33

# One stamp per set of extras, so that `make demo` does not install the test tools.
$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo 'steinnorm needs Python >= 3.11; name one with: make PYTHON=python3.12 ...' >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed-%: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[$(subst +,$(comma),$*)]'
	@touch $@

comma := ,
EXPERIMENTS := $(VENV)/.installed-experiments
TEST := $(VENV)/.installed-experiments+test
DEV := $(VENV)/.installed-experiments+test+dev
DOCS := $(VENV)/.installed-docs

demo: $(EXPERIMENTS)  ## Train and attack every norm on real digits; prints a table, writes plots.
	$(BIN)/python -m experiments demo --workdir $(WORKDIR)

test: $(TEST)  ## The test suite (two workers; skips are printed with their reasons).
	$(BIN)/python -m pytest -n 2 --dist worksteal -m 'not slow'

test-slow: $(TEST)  ## The tests that take minutes.
	$(BIN)/python -m pytest -n 2 --dist worksteal -m slow

# The oldest versions, from pyproject.toml: those of the Linen layer, the functions and the attacks,
# and those of the NNX layer. Tests of what a version does not have are skipped, with the reason.
# Left out: tests that need the experiments, compare with peers of today or build the package.
OLDEST := .venv-oldest
oldest-pair-linen := jax==0.6.2 jaxlib==0.6.2 flax==0.10.7 rich==13.0.0 matplotlib==3.9.0
oldest-pair-nnx := jax==0.8.1 jaxlib==0.8.1 flax==0.12.6 rich==13.0.0 matplotlib==3.9.0
NOT_OLDEST := $(foreach name,test_architecture test_documents test_examples test_install test_site,tests/$(name).py)
NOT_OLDEST += tests/experiments tests/attacks/test_peers.py tests/attacks/test_networks.py

$(OLDEST)-%/.installed: pyproject.toml Makefile
	$(PYTHON) -m venv $(OLDEST)-$*
	$(OLDEST)-$*/bin/python -m pip install --quiet --disable-pip-version-check $(oldest-pair-$*) \
	  pytest pytest-xdist chex hypothesis --editable .
	@touch $@

test-oldest: $(OLDEST)-linen/.installed $(OLDEST)-nnx/.installed  ## The library's tests on the oldest JAX and Flax.
	failed=; for pair in linen nnx; do $(OLDEST)-$$pair/bin/python -m pytest -n 2 --dist worksteal \
	  -m 'not slow' $(NOT_OLDEST:%=--ignore=%) || failed="$$failed $$pair"; done; \
	  test -z "$$failed" || { echo "failed on:$$failed" >&2; exit 1; }

lint: $(DEV)  ## Style, format and types.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(DEV)  ## Rewrite files in the project's format.
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(DOCS)  ## The documentation site, in site/; any warning is an error.
	$(BIN)/sphinx-build -E -W --keep-going -q -b html -c docs -d site/.doctrees . site
	@echo 'site/index.html'

# Tables that take hours. Each goes on where it was stopped, and finished runs stay: commit what is
# in RESULTS as it comes (weights and per-example files are ignored there). DATA holds the sets.
DATA    ?= $(STEINNORM_DATA)
RESULTS ?= docs/results/compared
SEEDS   ?= 5
COMPARE = $(BIN)/python -m experiments compare
has_data = @test -n "$(DATA)" || { echo 'name the folder of the data sets: make $@ DATA=...' >&2; exit 1; }

# The learning rates are batch norm's and group norm's best of 0.0025, 0.005, 0.01 and 0.02 with
# batches of 4 (seed 10, validation images), and half of them with batches of 2.
SMALL := cifar10 --preset ablation --data-dir $(DATA)/tfds --seeds $(SEEDS) --statistics running \
  --norms batch batch_renorm toward_running learnt_noise group --set data.train_examples=2000 \
  --set data.test_examples=null --set train.epochs=4 --set train.statistics_momentum=0.99

results-small-batches: $(EXPERIMENTS)  ## Training on batches of 2 and 4; an hour on 2 idle cores.
	$(has_data)
	$(COMPARE) $(SMALL) --workdir $(RESULTS)/batches-of-4 --set train.batch_size=4 \
	  --set train.learning_rate=0.01 --set group:train.learning_rate=0.005
	$(COMPARE) $(SMALL) --workdir $(RESULTS)/batches-of-2 --set train.batch_size=2 \
	  --set train.learning_rate=0.005 --set group:train.learning_rate=0.0025

# AutoAttack where answers do not depend on the batch; elsewhere all other attacks.  Several commands
# in the order in which their tables are worth most, and several processes share the runs: on a
# machine with many cores start `make` several times (after `make demo`, which installs).
NOISES_AND_WEAK := gaussian,uniform,rademacher,truncated_gaussian,clipped_cauchy,fgsm,pgd-released
NOISES_AND_PGD := $(NOISES_AND_WEAK),pgd
TABLE_ATTACKS := $(NOISES_AND_PGD),pgd-margin

# The controls are batch norm at lower clean accuracies: a less accurate network looks more robust.
CIFAR10 := cifar10 --preset ablation --data-dir $(DATA)/tfds --seeds $(SEEDS) \
  --control model.width=12 --control train.epochs=5

results-cifar10: $(EXPERIMENTS)  ## Eight norms on CIFAR-10, attacked; days on 2 cores.
	$(has_data)
	$(COMPARE) $(CIFAR10) --workdir $(RESULTS)/cifar10 --statistics running,batch \
	  --attacks $(TABLE_ATTACKS)
	$(COMPARE) $(CIFAR10) --workdir $(RESULTS)/cifar10 --statistics running --attacks all
	$(COMPARE) $(CIFAR10) --workdir $(RESULTS)/cifar10 --statistics shrunk,calibrated \
	  --attacks $(TABLE_ATTACKS)

SOURCES := cifar10 --preset ablation --data-dir $(DATA)/tfds --seeds $(SEEDS) \
  --workdir $(RESULTS)/cifar10-sources
EVERY_SOURCE := --statistics running,batch,shrunk,calibrated
OTHER_RULES := --norms jsnorm toward_running stein_mean_only ridge lasso

results-sources: $(EXPERIMENTS)  ## Seven norms on CIFAR-10 with every source of statistics; most of a day on 2 cores.
	$(has_data)
	$(COMPARE) $(SOURCES) --norms batch stein $(EVERY_SOURCE) --attacks $(NOISES_AND_WEAK) --check-examples 0
	$(COMPARE) $(SOURCES) --norms batch stein $(EVERY_SOURCE) --attacks pgd-margin --epsilon 2/255
	$(COMPARE) $(SOURCES) $(OTHER_RULES) $(EVERY_SOURCE) --attacks $(NOISES_AND_WEAK) --check-examples 0
	$(COMPARE) $(SOURCES) $(OTHER_RULES) $(EVERY_SOURCE) \
	  --attacks pgd-margin --epsilon 2/255 --check-examples 0

# The same networks as of results-sources, and group norm.
AUTOATTACK := cifar10 --preset ablation --data-dir $(DATA)/tfds --seeds $(SEEDS) \
  --workdir $(RESULTS)/cifar10-autoattack --epsilon 2/255 --independent-batch-size 1000

results-autoattack: $(EXPERIMENTS)  ## Eight norms on CIFAR-10 under AutoAttack; a day on 2 cores.
	$(has_data)
	$(COMPARE) $(AUTOATTACK) --statistics running --attacks autoattack --check-examples 0
	$(COMPARE) $(AUTOATTACK) $(EVERY_SOURCE) --attacks pgd,pgd-margin

# The networks of results-sources, where the attacker owns the whole batch.
JOINT := cifar10 --preset ablation --data-dir $(DATA)/tfds --seeds $(SEEDS) \
  --norms batch stein $(wordlist 2,9,$(OTHER_RULES)) \
  --workdir $(RESULTS)/cifar10-joint --attacks apgd,apgd-t --epsilon 2/255 \
  --independent-batch-size 1000 --check-examples 0

results-joint: $(EXPERIMENTS)  ## Seven norms on CIFAR-10 under APGD on whole batches; a day on 2 cores.
	$(has_data)
	$(COMPARE) $(JOINT) --statistics calibrated
	$(COMPARE) $(JOINT) --statistics batch

results-joint-margin: $(EXPERIMENTS)  ## Two of them under PGD on the margin of whole batches; an hour on 2 cores.
	$(has_data)
	$(COMPARE) cifar10 --preset ablation --data-dir $(DATA)/tfds --seeds $(SEEDS) \
	  --workdir $(RESULTS)/cifar10-joint-margin --norms batch stein \
	  --statistics batch,shrunk,calibrated --attacks pgd-margin --epsilon 2/255 --check-examples 0

# After adversarial training (Madry et al. 2018) with PGD of three steps in a ball of 4/255.
ADVERSARIAL := cifar10 --preset ablation --data-dir $(DATA)/tfds --seeds 3 \
  --norms batch stein toward_running \
  --set 'train.adversary={"epsilon": 0.01568627450980392, "steps": 3}' \
  --workdir $(RESULTS)/cifar10-adversarial --independent-batch-size 1000

results-adversarial: $(EXPERIMENTS)  ## Three norms after adversarial training on CIFAR-10; hours on 2 cores.
	$(has_data)
	$(COMPARE) $(ADVERSARIAL) --statistics running --attacks $(TABLE_ATTACKS)
	$(COMPARE) $(ADVERSARIAL) --statistics batch --attacks $(TABLE_ATTACKS) --check-examples 0
	$(COMPARE) $(ADVERSARIAL) --statistics running --attacks autoattack --epsilon 8/255 --check-examples 0

# Each seed splits the subjects anew: 52 test volumes decide little.
HIPPOCAMPUS := volumes --preset hippocampus --data-dir $(DATA)/hippocampus --seeds $(SEEDS) \
  --split-per-seed --independent-batch-size 52

HIPPOCAMPUS_TABLE := $(HIPPOCAMPUS) --workdir $(RESULTS)/hippocampus --check-examples 0
HIPPOCAMPUS_CONTROLS := --control model.channels=[12,24,48] --control train.epochs=15

results-hippocampus: $(EXPERIMENTS)  ## Eight norms on hippocampus volumes with every source; hours on 2 cores.
	$(has_data)
	$(COMPARE) $(HIPPOCAMPUS_TABLE) --norms batch group --statistics running \
	  --attacks pgd --epsilon 0.01
	$(COMPARE) $(HIPPOCAMPUS_TABLE) $(HIPPOCAMPUS_CONTROLS) $(EVERY_SOURCE) \
	  --attacks $(NOISES_AND_WEAK)
	$(COMPARE) $(HIPPOCAMPUS_TABLE) $(HIPPOCAMPUS_CONTROLS) $(EVERY_SOURCE) \
	  --attacks pgd --epsilon 0.003

# The same networks as of results-hippocampus.
HIPPOCAMPUS_AUTOATTACK := $(HIPPOCAMPUS) --workdir $(RESULTS)/hippocampus-autoattack --epsilon 0.003

results-hippocampus-autoattack: $(EXPERIMENTS)  ## The same under AutoAttack, and all checks; most of a day on 2 cores.
	$(has_data)
	$(COMPARE) $(HIPPOCAMPUS_AUTOATTACK) --statistics running --attacks autoattack --check-examples 0
	$(COMPARE) $(HIPPOCAMPUS_AUTOATTACK) $(EVERY_SOURCE) --attacks pgd

# At a size that fits two cores; `make results-camvid CAMVID_SIZE=` is that of the preset, 192x256.
CAMVID_SIZE ?= --set data.shape=[96,128] --set train.epochs=8 --test-examples 64
CAMVID := cityscapes --preset camvid --data-dir $(DATA)/camvid --seeds 3 $(CAMVID_SIZE) \
  --norms batch stein jsnorm toward_running group
CAMVID_ATTACKS := $(NOISES_AND_WEAK),segpgd
CAMVID_TABLE := $(CAMVID) --workdir $(RESULTS)/camvid --attacks $(CAMVID_ATTACKS)

results-camvid: $(EXPERIMENTS)  ## Five norms on street scenes, attacked; hours on 2 cores.
	$(has_data)
	$(COMPARE) $(CAMVID_TABLE) --statistics shrunk,calibrated
	$(COMPARE) $(CAMVID_TABLE) --statistics running,batch \
	  --control train.epochs=6 --control train.epochs=4

# The same networks as of results-camvid; SEA of one takes a minute or two of a GPU.
CAMVID_SEA := $(CAMVID) --workdir $(RESULTS)/camvid-sea --attacks segpgd,sea --epsilon 0.003 \
  --independent-batch-size 64 --check-examples 0

results-camvid-sea: $(EXPERIMENTS)  ## The same under SEA; for a GPU.
	$(has_data)
	$(COMPARE) $(CAMVID_SEA) --statistics running
	$(COMPARE) $(CAMVID_SEA) --statistics batch

bench: $(TEST)  ## Time, memory and compile time of SteinBatchNorm against Flax and PyTorch.
	$(BIN)/python -m benchmarks.step_time

# An environment of its own: the compilers of accelerators (libtpu, CUDA) are large, and for one
# benchmark only. Its JAX and Flax are those of the main environment.
ACCELERATORS := .venv-accelerators
version_of = $$($(BIN)/python -c 'from importlib.metadata import version; print(version("$(1)"))')

$(ACCELERATORS)/.installed: $(EXPERIMENTS)
	$(PYTHON) -m venv $(ACCELERATORS)
	$(ACCELERATORS)/bin/python -m pip install --quiet --disable-pip-version-check \
	  --editable '.[experiments]' "jax[tpu]==$(call version_of,jax)" "flax==$(call version_of,flax)"
	$(ACCELERATORS)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps \
	  "jax-cuda12-plugin==$(call version_of,jax)" "jax-cuda12-pjrt==$(call version_of,jax)" \
	  nvidia-cuda-nvcc-cu12
	@touch $@

bench-accelerators: $(ACCELERATORS)/.installed  ## What programs compiled for a TPU and an H100 do.
	$(ACCELERATORS)/bin/python -m benchmarks.accelerators

clean:  ## Remove the virtual environment and the caches.
	rm -rf $(VENV) $(ACCELERATORS) $(OLDEST)-* build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
