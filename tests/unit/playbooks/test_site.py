# Copyright (c) 2026, mirrorfleet contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0
"""In which order site.yml takes the mirror hosts: its own plays, with tasks in the roles' place that say whose turn it is."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from ansible_collections.mirrorfleet.registry.tests.unit.conftest import ansible

PLAYBOOKS = Path(__file__).resolve().parents[3] / "playbooks"
INVENTORY = {
    "mirrors": {"hosts": dict.fromkeys(["b1", "a1", "a2", "b2", "a3"])},
    "dc_a": {"hosts": dict.fromkeys(["a1", "a2", "a3", "d1"])},
    "dc_b": {"hosts": dict.fromkeys(["b1", "b2"])},
}


def turns(directory: Path, *arguments: str) -> tuple[list[set[str]], str]:
    """The mirror hosts that were done together, and what Ansible said."""
    plays: list[dict[str, Any]] = [play for play in yaml.safe_load((PLAYBOOKS / "site.yml").read_text()) if play["name"].startswith("The mirror hosts ")]
    assert len(plays) == 2
    for play in plays:
        play.update(connection="local", vars_files=[str(PLAYBOOKS / each) for each in play["vars_files"]])
    plays[1].update(roles=[], post_tasks=[], pre_tasks=plays[1]["pre_tasks"][:1], tasks=[
        {"ansible.builtin.debug": {"msg": "turn of {{ inventory_hostname }} with {{ ansible_play_batch | sort | join(' ') }}"}},
        {"ansible.builtin.fail": {}, "when": "inventory_hostname == bad | default('')"},
    ])
    gone = {"ansible.builtin.fail": {}, "when": "inventory_hostname == gone | default('')"}
    check = {"hosts": "all", "gather_facts": False, "connection": "local", "tasks": [gone]}
    (directory / "site.yml").write_text(json.dumps([check, *plays]))
    (directory / "inventory.yml").write_text(json.dumps(INVENTORY))
    done = ansible("ansible-playbook", "-i", "inventory.yml", "site.yml", *arguments, directory=directory)
    together = [set(each.split()) for each in dict.fromkeys(re.findall(r"turn of \S+ with ([^\"\n]+)", done.stdout))]
    return together, done.stdout + done.stderr


@pytest.mark.parametrize(("arguments", "together"), [
    ([], [{"a1", "b1"}, {"a2", "b2"}, {"a3"}]),
    (["--limit", "dc_a"], [{"a1"}, {"a2"}, {"a3"}]),
    (["--limit", "a2,b1,d1"], [{"a2", "b1"}]),
    (["--limit", "d1"], []),
    # A hub before those who ask it.
    (["--extra-vars", '{"__fleet": {"data_centers": {"a": {"level": 1}, "b": {"level": 0}}}}'], [{"b1"}, {"b2"}, {"a1"}, {"a2"}, {"a3"}]),
    (["--extra-vars", "mirror_serial=1"], [{"a1"}, {"b1"}, {"a2"}, {"b2"}, {"a3"}]),
    (["--extra-vars", "mirror_serial=100%"], [{"a1", "a2", "a3", "b1", "b2"}]),
])
def test_one_mirror_host_of_each_data_center_at_a_time(tmp_path: Path, arguments: list[str], together: list[set[str]]) -> None:
    found, said = turns(tmp_path, *arguments)
    assert sorted(map(sorted, found)) == sorted(map(sorted, together)), said
    if "mirror_serial" not in str(arguments):
        assert found == together


def test_a_mirror_host_that_is_out_of_reach_counts_as_failed(tmp_path: Path) -> None:
    found, said = turns(tmp_path, "--extra-vars", "gone=a1")
    assert found == [{"b1"}, {"b2"}], said
    assert "a1 failed, so this one stays as it is" in said


def test_a_failure_leaves_the_other_mirror_hosts_of_its_data_center_alone(tmp_path: Path) -> None:
    found, said = turns(tmp_path, "--extra-vars", "bad=a1")
    assert found[0] == {"a1", "b1"}
    assert "a1 failed, so this one stays as it is" in said
    assert set(re.findall(r"turn of (\S+)", said)) == {"a1", "b1", "b2"}
