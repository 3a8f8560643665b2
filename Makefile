# Every target sets up what it needs by itself: see tests/setup.py. CHV_CACHE names a directory that may be shared by
# several checkouts (Python packages, the test guest); what belongs to this checkout alone is in .cache/ here.

PYTHON ?= python3
export CHV_CACHE ?= $(CURDIR)/.cache
SETUP = $(PYTHON) tests/setup.py
SOAK = tests/integration/test_kill_all.py tests/integration/test_power_loss.py
PY = .cache/venv/bin/python

.DEFAULT_GOAL := help
.PHONY: help run test soak lint types bench package proto guest cloud lab test-lab clean python

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: python ## boot the hello job: on a real Nomad agent when there is one, else on the embedded host
	@$(SETUP) venv qemu guest
	@$(PY) tests/run_demo.py

test: python ## all tests that can run here (CHV_TEST_REQUIRE=qemu,go,nomad,lab makes a missing one a failure)
	@$(SETUP) --lenient venv qemu network go guest cloud lab
	@$(PY) -m tests.run_tiers $(ARGS)

soak: python ## kill everything of ours while machines start and stop, ROUNDS (200) times; SEED repeats a run
	@$(SETUP) venv qemu network guest
	@CHV_SOAK_ROUNDS=$(or $(ROUNDS),200) CHV_SOAK_SEED=$(SEED) $(PY) -m pytest -s $(SOAK) $(ARGS)

lint: python types ## formatting, lint rules, types, who imports whom, driver/_pb against proto/, the agent's Python, what docs/ has of the code
	@$(PY) proto/generate.py --check
	@$(PY) -m tests.messages --check
	@$(PY) -m tests.reference --check
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@.cache/venv/bin/lint-imports --no-cache --no-logo
	@$(PY) -c 'from vmlib.guest.delivery import agent_source; print(agent_source())' >.cache/guest-agent.py
	@.cache/venv/bin/vermin --quiet --lint --eval-annotations -vvv --target=3.6- .cache/guest-agent.py

types: python ## mypy --strict
	@$(SETUP) venv
	@$(PY) -m mypy

bench: python ## ratios against a baseline measured in the same run
	@$(SETUP) venv qemu guest
	@$(PY) tests/bench/run.py $(ARGS)

package: python ## wheel, one-file executable and Debian package into dist/
	@$(SETUP) venv
	@$(PY) -m tests.package.build $(ARGS)

proto: python ## make driver/_pb from proto/
	@$(SETUP) venv
	@$(PY) proto/generate.py

guest: python ## build the test guest
	@$(SETUP) qemu guest

cloud: python ## build the Debian cloud image that tests boot
	@$(SETUP) qemu cloud

lab: python ## boot the lab node (cgroup v2, NUMA, SMT, KVM) and run COMMAND in a copy of this checkout
	@$(SETUP) venv qemu guest lab
	@$(PY) -m tests.lab.node $(if $(COMMAND),"$(COMMAND)")

test-lab: python ## the tests that need the lab node, a boot for each round
	@$(SETUP) venv qemu guest lab
	@CHV_TEST_REQUIRE=lab $(PY) -m pytest tests/lab $(ARGS)

clean: ## remove what the other targets made in this checkout
	rm -rf .cache build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find driver vmlib tests -name __pycache__ -prune -exec rm -rf {} +

python:
	@command -v $(PYTHON) >/dev/null || { apt-get update -qq && apt-get install -y -qq python3 python3-venv; }
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed" if sys.version_info < (3, 11) else 0)'
