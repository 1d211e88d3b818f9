# Two commands on a fresh machine: `make demo` and `make test`. Each does its own set-up.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
TORCH_PIN := $(shell sed -n 's/^torch==/torch==/p' constraints.txt)

.PHONY: demo test fuzz soak zoo numbers site micro lint format install install-test browser clean

demo: install
	$(BIN)/mixerzoo run quick --out runs/quick
	$(BIN)/mixerzoo report runs/quick

# Their clusters take the whole machine, and one must not end another's.
ALONE := tests/benchmarks/test_ray.py tests/benchmarks/test_slurm.py

test: install-test browser
	$(BIN)/python -m pytest -n 2 --dist worksteal $(addprefix --ignore=,$(ALONE))
	$(BIN)/python -m pytest -n 0 $(ALONE)

# The fuzz tests with many times as many examples, new ones each time: about an hour at 100.
FUZZ := 100
fuzz: install-test
	FUZZ=$(FUZZ) $(BIN)/python -m pytest -q -x tests/fuzz

# Kills runners of fake cases a thousand times: about twenty minutes. What is broken keeps its folder, and fails.
soak: install
	mkdir -p build
	$(BIN)/python -m mixerzoo.benchmarks.soak --kills 1000 --out build/soak.json

# The pages of docs/zoo: what mixers are compared with, the bytes of their states, and the rest from their cards.
zoo: install-test
	$(BIN)/python -m pytest -q tests/mixers --oracles docs/zoo/oracles.csv
	$(BIN)/python docs/build_zoo.py

# The numbers of published runs in README.md and docs/; a test fails where a page and its run have parted.
numbers: install
	$(BIN)/python docs/build_numbers.py

# The documentation and the published runs as one static site, build/site/index.html, with its links checked.
site: $(VENV)/installed-site
	rm -rf build/site
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet
	rm -rf build/site/reports
	$(BIN)/mixerzoo publish reports/published/* --to build/site/reports --docs ../index.html --micro benchmarks/micro/history.jsonl
	$(BIN)/python docs/check_site.py build/site

# Micro benchmarks of every op and backend, appended to benchmarks/micro/history.jsonl after a clean end, which the site
# plots across commits; `make micro MICRO="-k attention"` runs and appends some of them.
micro: install-test
	mkdir -p build
	$(BIN)/python -m pytest benchmarks/micro --benchmark-json=build/micro.json --benchmark-columns=median,iqr,min,rounds --benchmark-sort=fullname $(MICRO)
	$(BIN)/python -m mixerzoo.benchmarks.micro_history build/micro.json benchmarks/micro/history.jsonl

lint: install-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	mkdir -p build/typing/mixerzoo
	for package in mixers models benchmarks reports; do ln -sfn ../../../$$package build/typing/mixerzoo/$$package; done
	cd build/typing && MYPYPATH=. ../../$(BIN)/mypy --config-file ../../pyproject.toml

format: install-test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

install: $(VENV)/installed
install-test: $(VENV)/installed-test

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# torch first and pinned: a range would let pip take the newest build and gigabytes of CUDA packages with it.
$(VENV)/installed: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/pip install -q $(TORCH_PIN) -c constraints.txt
	$(BIN)/pip install -q -c constraints.txt -e .
	touch $@

$(VENV)/installed-test: $(VENV)/installed
	$(BIN)/pip install -q -c constraints.txt -e '.[test,lint,site]'
	touch $@

$(VENV)/installed-site: $(VENV)/installed
	$(BIN)/pip install -q -c constraints.txt -e '.[site]'
	touch $@

# The page tests need Debian's Chromium, and axe-core to find faults of accessibility; what cannot be had they skip and
# say so.
AXE_CORE := 4.14.1
browser: build/axe-$(AXE_CORE)/package/axe.min.js
	@command -v chromium >/dev/null && command -v chromedriver >/dev/null \
	  || { command -v apt-get >/dev/null && [ "$$(id -u)" = 0 ] \
	       && apt-get update -qq && apt-get install -y -qq chromium chromium-driver >/dev/null; } \
	  || echo "chromium and chromium-driver are not installed: the page tests will be skipped"

build/axe-$(AXE_CORE)/package/axe.min.js:
	@mkdir -p $(dir $(@D))
	@cd $(dir $(@D)) && npm pack --silent axe-core@$(AXE_CORE) >/dev/null && tar xzf axe-core-$(AXE_CORE).tgz \
	  || echo "axe-core could not be fetched with npm: the test of accessibility will be skipped"

clean:
	rm -rf $(VENV) build dist *.egg-info runs
