# make test: create .venv (one to five minutes), then run the tests.  make slow: the full-size proofs.  make lint: ruff and mypy.
# make demo: the whole method on virtual people; SEEDS=3 runs three seeds, VIDEOS=DIR uses your own human-removed clips as scenes, OUT=DIR.
# make study: the small study, three seeds of eight methods, and its report; resumes after an interruption; VIDEOS=DIR adds your own clips.
# make bench: every way of reading clips, nine minutes on an idle machine: records the rows, writes README's and docs/loader.md's table and plot.
# PYTHON=python3.12 selects an interpreter; ARGS='-k manifest' goes to pytest; JOBS=1 runs one test at a time.
PYTHON ?=
ARGS ?=
JOBS ?= 3
SEEDS ?= 1
VIDEOS ?=
OUT ?= runs/demo
STAMP := .venv/.installed
# Container images often set it; then each of the hundreds of processes that tests start compiles every module that it imports.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: venv demo study bench test slow lint format clean
venv: $(STAMP)

$(STAMP): pyproject.toml constraints.txt .ci/venv
	@PYTHON="$(PYTHON)" .ci/venv
	@touch $@

demo: venv
	.venv/bin/ppma demo --seeds $(SEEDS) --out "$(OUT)" $(if $(VIDEOS),--videos "$(VIDEOS)")

study: venv
	.venv/bin/ppma study docs/small-study/spec.toml --out runs/small-study $(if $(VIDEOS),--videos "$(VIDEOS)")
	.venv/bin/ppma report runs/small-study --out runs/small-study/report

bench: venv
	.venv/bin/python benchmarks/loader_throughput.py --record --plot docs/loader_throughput.png --pages README.md docs/loader.md

test: venv
	.venv/bin/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder $(ARGS)

slow: venv
	.venv/bin/python -m pytest -m slow $(ARGS)

lint: venv
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/mypy

format: venv
	.venv/bin/ruff format
	.venv/bin/ruff check --fix

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
