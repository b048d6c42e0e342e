# make install  makes .venv with the tested versions;  make demo  runs the main job;  make test  the suite;
# make bench-data  compares the data layer with raw limits and peers;  make bench-privacy  what privacy costs;
# make bench-federation  a round over the network beside stock Flower and one process.
# make bench-ledger  charges beside bare durable writes, and how long 100,000 records take to verify.
# make utility  trains centralised, federated and alone, without and with privacy, and draws docs/utility.svg;
# make utility-trials  what else was tried.
PYTHON ?= python3.11
BIN := .venv/bin

.PHONY: install demo test bench-data bench-privacy bench-ledger bench-federation utility utility-trials lint types clean

install: .venv/.installed

.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[demo,hub,pacs,export,audit,pkcs11,dev]'
	touch $@

demo: install
	$(BIN)/cohortium demo

test: install
	$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder

bench-data: install
	$(BIN)/python -m tests.benchmarks.bench_data

bench-privacy: install
	$(BIN)/python -m tests.benchmarks.bench_privacy

bench-ledger: install
	$(BIN)/python -m tests.benchmarks.bench_ledger

bench-federation: install
	$(BIN)/python -m tests.benchmarks.bench_federation
	$(BIN)/python -m tests.benchmarks.soak_federation

UTILITY := $(BIN)/python -m tests.benchmarks.utility --out runs/utility --report docs
PNEUMONIA := --data ../shared/data/pneumoniamnist.npz

utility: install
	$(UTILITY) $(PNEUMONIA)
	$(UTILITY) --data-set hippocampus --data ../shared/data/hippocampus

utility-trials: install
	$(UTILITY) $(PNEUMONIA) --arrangements federated --levels 8 --seeds 1 \
		--variants augmentation "weight standardisation" dp_adam

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install
	$(BIN)/mypy

clean:
	rm -rf .venv cohortium-demo runs
