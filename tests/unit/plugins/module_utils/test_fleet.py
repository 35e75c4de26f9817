# Copyright (c) 2026, mirrorfleet contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0
"""Which hosts a problem is said of, and which names are slips. The rest of fleet.py is proven by tests of the action plugin."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ansible_collections.mirrorfleet.registry.plugins.module_utils import fleet, upstreams

ROOT = Path(fleet.__file__).resolve().parents[2]
GROUPS = {
    "all": ["m1", "m2", "d1", "d2", "elsewhere"],
    "mirrors": ["m1", "m2"],
    "docker_hosts": ["d1", "d2"],
    "dc_a": ["d1", "m1"],
    "dc_b": ["m2", "d2"],
    "web": ["d1", "m1"],
}
KNOWN = {"mirror_upstreams", "mirror_runtime", "mirror_name", "haproxy_front_stats_bind", "docker_mirror_restart", "mirror_edge_tls"}
ROLES = ["haproxy_front", "docker_mirror", "mirror_edge"]


@pytest.mark.parametrize(("hosts", "place"), [
    (["m1", "m2", "d1", "d2"], "group all"),
    (["d1", "m1"], "group dc_a"),
    (["m1", "m2"], "group mirrors"),
    (["m2"], "host m2"),
    (["m1", "d2"], "hosts m1, d2"),
])
def test_a_problem_is_said_once_with_its_place(hosts: list[str], place: str) -> None:
    report = fleet.Report(GROUPS, ["m1", "m2", "d1", "d2"])
    for host in hosts:
        report.add("x: is wrong.", host)
    assert report.lines() == [f"{place}: x: is wrong."]


def test_with_a_limit_the_data_center_is_named() -> None:
    report = fleet.Report(GROUPS, ["m1", "d1"])
    for host in ("m1", "d1"):
        report.add("x: is wrong.", host)
    assert report.lines() == ["group dc_a: x: is wrong."]


def test_a_long_list_of_hosts_is_cut() -> None:
    hosts = [f"d{number}" for number in range(300)]
    report = fleet.Report({"all": [*hosts, "m"], "mirrors": ["m"]}, [*hosts, "m"])
    for host in hosts:
        report.add("x: is wrong.", host)
    assert report.lines() == ["hosts d0, d1, d2 and 297 more: x: is wrong."]


def test_hosts_of_a_data_center_stay_in_the_inventory_s_order() -> None:
    groups = {"mirrors": ["b", "a"], "docker_hosts": ["d"], "dc_x": ["d", "a", "b"]}
    assert fleet.data_centers(groups) == {"x": {"mirrors": ["a", "b"], "docker_hosts": ["d"], "level": 0}}


@pytest.mark.parametrize(("name", "meant"), [
    ("mirror_upstream", "mirror_upstreams"),
    ("miror_upstreams", "mirror_upstreams"),
    ("mirror_run_time", "mirror_runtime"),
    ("haproxy_front_stat_bind", "haproxy_front_stats_bind"),
    ("docker_mirror_restrat", "docker_mirror_restart"),
    ("mirror_tls", None),
    ("haproxy_front_weather", None),
    ("mirror_vault_password", None),
    ("vault_mirror_name", None),
    ("__mirror_upstream", None),
    ("ansible_user", None),
])
def test_a_slip_is_a_name_like_one_that_is_known(name: str, meant: str | None) -> None:
    problems, _warnings = fleet.name_problems(GROUPS, {name: ["m1"]}, KNOWN, ROLES)
    assert problems == ([f"host m1: {name}: is no variable of this collection. Write {meant}."] if meant else [])


def test_a_role_s_unknown_variable_gets_a_warning() -> None:
    names = {"haproxy_front_weather": ["m1"], "mirror_vault_password": ["m1"], "mirror_name": ["m1"]}
    assert fleet.name_problems(GROUPS, names, KNOWN, ROLES) == ([], ["host m1: haproxy_front_weather: no role of this collection reads it."])


def test_every_variable_of_the_fleet_is_known_and_documented() -> None:
    """Playbooks and roles read a fleet's variable with a default; what they read, an operator must be able to look up."""
    read = {"mirror_upstreams"}
    for path in [*ROOT.glob("playbooks/**/*"), *ROOT.glob("roles/**/*")]:
        if path.is_file():
            read.update(re.findall(r"\b((?:mirror|docker_host)_\w+) \| default\(", path.read_text()))
    roles = tuple(f"{path.name}_" for path in ROOT.glob("roles/*"))
    assert {name for name in read if not name.startswith(roles)} == set(fleet.VARIABLES)
    page = (ROOT / "docs/variables.md").read_text()
    assert set(re.findall(r"^\| `((?:mirror|docker_host)_\w+)`", page, re.MULTILINE)) == {*fleet.VARIABLES, "mirror_edge_tls"}
    keys = page[page.index("## An upstream"):]
    assert {key for row in re.findall(r"^\| (`.*?) \|", keys, re.MULTILINE) for key in re.findall(r"`(\w+)`", row)} == set(upstreams.KEYS)
