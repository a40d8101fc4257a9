# Everything a newcomer needs, from a machine that has Python 3.11 or newer and make.
# With uv installed these are `uv run cartok demo` and `uv run pytest`; without it, make puts uv
# into .uv/ first. The environment itself is .venv/.

UV := $(or $(shell command -v uv 2>/dev/null),.uv/bin/uv)

.PHONY: demo test lint lock

demo: $(UV)  ## the whole pipeline on embedded photographs; a second call goes on or shows the end
	$(UV) run cartok demo --resume

test: $(UV)  ## all tests
	$(UV) run pytest

lint: $(UV)  ## format, lint and types
	$(UV) run ruff format --check .
	$(UV) run ruff check .
	$(UV) run ty check src

lock: $(UV)  ## rewrites requirements.lock, hashes and no hosts, from pyproject.toml
	$(UV) export --quiet --all-extras --all-groups --format requirements.txt \
		--no-header --no-annotate --no-emit-project --output-file requirements.lock

.uv/bin/uv:
	@python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "cartok needs Python 3.11 or newer; python3 here is older" >&2; exit 1; }
	@echo "uv is not installed: putting it into .uv/"
	@python3 -m venv .uv
	@.uv/bin/python -m pip install --quiet --disable-pip-version-check uv
