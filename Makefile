# make quickstart, make test: everything a fresh machine needs (Python 3.11 and access to PyPI).
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
export HF_HUB_DISABLE_TELEMETRY := 1
export TOKENIZERS_PARALLELISM := false
# two threads on shared cores were measured 3 to 8 times slower than one (docs/experiments.md); override on cores of your own
export OMP_NUM_THREADS ?= 1

.PHONY: install quickstart quickstart-short test test-all lint attack bench docs models clean
# processes that share the tests, whole files at a time (a file's fixtures are made once); each computes on one thread
WORKERS ?= 2
PYTEST = $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile
install: $(STAMP)

# torch goes first and by its exact pin: that is what selects the CPU build on a machine without a GPU
$(STAMP): setup.py constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || python3 -m venv $(VENV)
	$(BIN)/python -m pip install --quiet "$$(grep '^torch==' constraints.txt)"
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@

quickstart: $(STAMP)
	$(BIN)/python scripts/fetch_assets.py
	$(BIN)/bigrec-hf run --config recipes/quickstart/movielens_dense.yaml

# the same job on a few examples: shows that every stage works, not how good the result is
quickstart-short: $(STAMP)
	$(BIN)/python scripts/fetch_assets.py
	$(BIN)/bigrec-hf run --config recipes/quickstart/movielens_dense.yaml --run_dir runs/quickstart-short \
	  --sample 8 --epochs 0.1 --validation_sample 8 --eval_sample 8
	$(BIN)/bigrec-hf run --config recipes/quickstart/movielens_smollm2.yaml --run_dir runs/quickstart-short-pairs \
	  --sample 16 --validation_sample 8 --eval_sample 8

# the tests without those marked slow; ARGS='-k trie -x' and the like
test: $(STAMP)
	$(PYTEST) -m 'not slow' $(ARGS)

test-all: $(STAMP)
	$(PYTEST) $(ARGS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/python -m mypy

# kills, full disks and hostile inputs for ten minutes; ATTACK='--seed 3 --seconds 60' and the like
attack: $(STAMP)
	$(BIN)/python -m tests.faults $(ATTACK)

# BENCH='--only sft --full' and the like
bench: $(STAMP)
	$(BIN)/python scripts/fetch_assets.py
	$(BIN)/python -m benchmarks $(BENCH)

# the documentation as a site, every link checked
docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "open build/site/index.html"

# docs/models.md, measured anew
models: $(STAMP)
	$(BIN)/python -m tests.models.matrix

clean:
	rm -rf $(VENV) .assets build *.egg-info src/*.egg-info
