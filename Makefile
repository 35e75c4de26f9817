# Copyright (c) 2026, mirrorfleet contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0

PYTHON ?= python3
VENV := .venv
# The lab's shape: a fleet, or LAB=organisation.
LAB ?=
LAB_INVENTORY := $(if $(LAB),inventories/lab-$(LAB),.lab/inventory)
# The fleet's size, in each data center.
LAB_MIRRORS ?= 1
LAB_DOCKER_HOSTS ?= 2

.PHONY: help prepare venv test bench lab lab-destroy
.DEFAULT_GOAL := help

help:
	@echo 'make test                  run every test; ONLY=unit runs one stage, ONLY=molecule/NAME one scenario'
	@echo 'make bench                 measure pulls against rivals: a quarter of an hour, root, an idle machine; BENCH=--quick for two minutes, BENCH="--only warm" for a part'
	@echo 'make lab                   run the fleet in containers on this machine; LAB_DOCKER_HOSTS=4 LAB_MIRRORS=1 for its size'
	@echo 'make lab LAB=organisation  the other lab: registries by scope, CI, promotion with a key, replicas, and the mirrors behind them'
	@echo 'make lab-destroy           remove them'
	@echo 'make venv                  only install the tools: Debian packages, .venv'
	@echo
	@echo 'Stages: unit sanity lint docs build molecule. Logs: .lab/logs'

prepare:
	@lab/prepare

venv: $(VENV)/ready $(VENV)/galaxy-importer/ready

test: venv
	@$(VENV)/bin/python tests/run.py $(ONLY)

bench: $(VENV)/bench/ready
	@$(VENV)/bench/bin/python benchmarks/pull.py $(BENCH)

# The fleet's inventory, at the size asked for.
.PHONY: lab-inventory
lab-inventory:
	@mkdir -p .lab/inventory && ln -sfn ../../inventories/lab/group_vars .lab/inventory/group_vars
	@sed 's/\(mirror-.*\)\[1:1\]/\1[1:$(LAB_MIRRORS)]/; s/\(docker-.*\)\[1:2\]/\1[1:$(LAB_DOCKER_HOSTS)]/' inventories/lab/hosts.yml >.lab/inventory/hosts.yml

lab: $(VENV)/ready lab-inventory
	@test -e lab/up$(LAB:%=-%).yml || { echo 'LAB=$(LAB): there is no such lab. Write LAB=organisation, or nothing for the fleet.'; exit 2; }
	@ANSIBLE_DISPLAY_OK_HOSTS=no ANSIBLE_DISPLAY_SKIPPED_HOSTS=no $(VENV)/bin/ansible-playbook -i $(LAB_INVENTORY) lab/up$(LAB:%=-%).yml
	@cat .lab/lab$(LAB:%=-%)/result.txt

lab-destroy: $(VENV)/ready lab-inventory
	@for inventory in .lab/inventory inventories/lab-*; do $(VENV)/bin/ansible-playbook -i "$$inventory" lab/destroy.yml || exit 1; done
	@for image in $$(cat .lab/images/host-* 2>/dev/null); do \
	    if docker image inspect "$$image" >/dev/null 2>&1; then docker image rm "$$image" >/dev/null || echo "$$image is in use elsewhere, and stays"; fi; done
	@if [ -e .lab/dockerd.pid ]; then echo 'Docker: stopping the daemon that make started'; kill "$$(cat .lab/dockerd.pid)" || true; fi
	@rm -rf .lab

# An environment of its own, with what the first prerequisite lists.
define environment
@$(PYTHON) -m venv --clear $(@D)
@$(@D)/bin/pip --disable-pip-version-check install -qq --requirement $<
@touch $@
endef

# A stamp is newer than its requirements when everything in them is installed.
$(VENV)/ready: requirements-dev.txt | prepare
	@echo 'Python: installing requirements-dev.txt into $(VENV) (a minute or two)'
	$(environment)

# galaxy-importer asks for other versions of some packages than ansible does.
$(VENV)/galaxy-importer/ready: tests/requirements-importer.txt $(VENV)/ready
	@echo 'Python: installing galaxy-importer into $(VENV)/galaxy-importer'
	$(environment)

# Only the benchmark needs these.
$(VENV)/bench/ready: benchmarks/requirements.txt $(VENV)/ready
	@echo 'Python: installing what the benchmark needs into $(VENV)/bench'
	$(environment)
