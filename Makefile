# make test: the two minutes to an environment, then the tests.  make slow: the full-size proofs.  make lint: ruff and mypy.
# PYTHON=python3.12 chooses an interpreter; ARGS='-k manifest' goes to pytest.
PYTHON ?=
ARGS ?=
STAMP := .venv/.installed

.PHONY: venv test slow lint format clean
venv: $(STAMP)

$(STAMP): pyproject.toml constraints.txt .ci/venv
	@PYTHON="$(PYTHON)" .ci/venv
	@touch $@

test: venv
	.venv/bin/python -m pytest $(ARGS)

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
