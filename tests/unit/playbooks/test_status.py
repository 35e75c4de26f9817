# Copyright (c) 2026, mirrorfleet contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0
"""The table of status.yml: hosts that can't be asked are lines of it, and it fits a terminal. A whole fleet's is made by Molecule."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from ansible_collections.mirrorfleet.registry.tests.unit.conftest import ansible, free_port

PLAYBOOKS = Path(__file__).resolve().parents[3] / "playbooks"
UPSTREAMS = [
    {"name": "central", "url": "https://central.test", "port": 5000, "canary": "a:1"},
    {"name": "dockerhub", "url": "https://hub.test", "port": 5001, "docker_hub": True},
]


def lines_of(done: subprocess.CompletedProcess[str]) -> list[str]:
    """What the last debug task said."""
    assert done.returncode == 0, done.stdout + done.stderr
    return list(json.loads("{" + done.stdout.rpartition(" => {")[2].partition("\n}")[0] + "}")["msg"])


def inventory(directory: Path, mirrors: dict[str, Any], docker_hosts: dict[str, Any], dcs: dict[str, list[str]]) -> None:
    (directory / "inventory.json").write_text(json.dumps({
        "all": {"vars": {"mirror_upstreams": UPSTREAMS, "mirror_edge_tls": "none", "ansible_python_interpreter": sys.executable}},
        "mirrors": {"hosts": mirrors}, "docker_hosts": {"hosts": docker_hosts},
        **{f"dc_{name}": {"hosts": dict.fromkeys(hosts, {})} for name, hosts in dcs.items()},
    }))


@pytest.mark.parametrize("arguments", [[], ["--check"], ["--limit", "dc_a"], ["--extra-vars", "status_probe=false"]])
def test_hosts_that_cannot_be_asked_are_lines(tmp_path: Path, arguments: list[str]) -> None:
    """One is this machine, where nothing of a mirror host runs; the other refuses SSH."""
    gone = {"ansible_connection": "ssh", "ansible_host": "127.0.0.1", "ansible_port": free_port()}
    here = {"ansible_connection": "local", "mirror_name": "127.0.0.1"}
    dcs = {"a": ["mirror1.a.test", "app1.a.test"], "b": ["mirror1.b.test", "mirror2.b.test", "app1.b.test"]}
    inventory(tmp_path, {"mirror1.a.test": gone, "mirror1.b.test": gone, "mirror2.b.test": here}, {"app1.a.test": gone, "app1.b.test": here}, dcs)
    done = ansible("ansible-playbook", "-i", "inventory.json", str(PLAYBOOKS / "status.yml"), *arguments, directory=tmp_path)
    lines = lines_of(done)
    table = [re.split(r"  +", line) for line in lines]
    assert table[0] == ["DC", "mirror host", "cache", "images", "size", "free", "hits", "WAN", "LAN", "saved", "over", "health"]
    assert table[1] == ["a", "mirror1", *["-"] * 9, "can't be reached"]
    limited, probed = "--limit" in arguments, "status_probe=false" not in arguments
    rows = [row for row in table if row[0] == "b"]
    assert [(row[1], row[2], row[-1]) for row in rows] == ([] if limited else [
        ("mirror1", "-", "can't be reached"), ("mirror2", "central", "edge down, front down"), ("mirror2", "dockerhub", "edge down, front down"),
    ])
    assert any(line.startswith("mirror1.a.test can't be reached: ") for line in lines)
    assert any(line.startswith("mirror2.b.test, rewrite front: ") and "HAProxy does not answer" in line for line in lines) is not limited
    assert any(line.startswith("mirror2.b.test, edge: ") and "connection refused" in line for line in lines) is not limited
    assert ("a, 0 of 1 docker hosts use their mirrors" in lines) is probed
    assert any(line.startswith("app1.a.test: can't be reached: ") for line in lines) is probed
    assert any(line.startswith("app1.b.test: ") for line in lines) is (probed and not limited)


def report(directory: Path, **hosts: dict[str, Any]) -> list[str]:
    """The lines of the report alone, of what the modules returned; whatever the form of results, they are printed as they are."""
    mirrors = {name: each for name, each in hosts.items() if "mirror" in name}
    dcs: dict[str, list[str]] = {}
    for name in hosts:
        dcs.setdefault(name.split(".")[1], []).append(name)
    inventory(directory, mirrors, {name: each for name, each in hosts.items() if name not in mirrors}, dcs)
    play = yaml.safe_load((PLAYBOOKS / "status.yml").read_text())[-1]
    assert play["name"] == "The report"
    (directory / "report.yml").write_text(json.dumps([{**play, "connection": "local"}]))
    (directory / "templates").symlink_to(PLAYBOOKS / "templates")
    lines = lines_of(ansible("ansible-playbook", "-i", "inventory.json", "report.yml", directory=directory))
    printed = ansible("ansible-playbook", "-i", "inventory.json", "report.yml", directory=directory, ANSIBLE_CALLBACK_RESULT_FORMAT="yaml").stdout
    assert "\n".join(" " * 8 + line for line in lines) in printed, printed
    return lines


def mirror(seconds: int = 90000, **saved: int | None) -> dict[str, Any]:
    """A mirror host that is well, with large figures. In the form that the modules document."""
    names = [each["name"] for each in UPSTREAMS]
    return {
        "__status_front": {
            "counting_seconds": seconds, "edge_unknown": "",
            "upstreams": [{"name": name, "source": "upstream", "healthy": True, "status": "UP", "since_seconds": 9, "check": None} for name in names],
            "edge": {"upstreams": [{"name": name, "hit_ratio": 0.987} for name in names]},
            "saved": {"upstreams": [
                {"name": name, "wan_bytes": 123_400_000_000, "lan_bytes": 987_600_000_000, "bytes": 864_200_000_000, **saved} for name in names
            ]},
        },
        "__status_caches": {"caches": [
            {"name": name, "counts": {"tags": 12345}, "bytes": 456_700_000_000, "disk": {"free": 789_000_000_000}, "drained": False, "proxy_unknown": ""}
            for name in names
        ]},
        "__status_drained": {"stat": {"exists": False}},
        "__status_edge": {"digest": "sha256:0"},
    }


def test_the_table_of_a_fleet_that_is_well(tmp_path: Path) -> None:
    using = {"__status_probe": {"uses_mirror": True, "why_not": ""}}
    kinds = {"mirror1": mirror(), "mirror2": mirror(), "app01": using}
    lines = report(tmp_path, **{f"{kind}.{dc}.example.com": each for dc in ("zagreb", "saopaulo") for kind, each in kinds.items()})
    row = re.split(r"  +", lines[1])
    assert row == ["saopaulo", "mirror1", "central", "12345", "456.7 GB", "789.0 GB", "99 %", "123.4 GB", "987.6 GB", "864.2 GB", "25 h", "well"]
    assert lines[9:] == [
        "all of it, WAN 987.2 GB, LAN 7.9 TB, saved 6.9 TB", "saopaulo, 1 of 1 docker hosts use their mirrors", "zagreb, 1 of 1 docker hosts use their mirrors",
    ]
    # With what Ansible puts before a line.
    assert max(map(len, lines)) + 8 <= 120


def test_what_is_wrong_is_named(tmp_path: Path) -> None:
    bad = mirror(100, lan_bytes=None, bytes=None)
    away = mirror()
    away["__status_drained"]["stat"]["exists"] = True
    bad["__status_caches"]["caches"][0]["drained"] = True
    bad["__status_caches"]["caches"][1]["proxy_unknown"] = "connection refused"
    central, hub = bad["__status_front"]["upstreams"]
    central.update(healthy=False, status="DOWN", since_seconds=7300, check={"text": "Layer4 timeout"})
    bad["__status_front"]["upstreams"] += [
        {**hub, "name": "dockerhub_sources", "source": "sibling-mirror1", "healthy": False, "status": "MAINT (resolution)"},
        {**hub, "name": "central_tags", "healthy": False, "status": "DOWN"},
    ]
    del bad["__status_edge"]["digest"]
    bad["__status_edge"]["msg"] = "mirrorfleet-edge/canary:1 can't be pulled.\nmore"
    app = {"__status_probe": {"uses_mirror": False, "why_not": "docker.io: no mirror."}}
    lines = report(tmp_path, **{"mirror2.zagreb": bad, "mirror3.zagreb": away, "app1.zagreb": app})
    first, second, third, fourth = (re.split(r"  +", line) for line in lines[1:5])
    assert first[7:] == ["123.4 GB", "-", "-", "2 min", "out of service, edge down, upstream down"]
    assert second[-1] == "edge down, cache down, mirror1 down"
    assert third[-1] == fourth[-1] == "out of service"
    assert lines[5:] == [
        "all of it, WAN 493.6 GB, LAN 2.0 TB, saved 1.7 TB",
        "mirror2.zagreb, edge: mirrorfleet-edge/canary:1 can't be pulled.",
        "mirror2.zagreb, cache central: the guard has taken it out of service, because its disk is filling",
        "mirror2.zagreb, central from upstream, down for 2 h: Layer4 timeout",
        "mirror2.zagreb, cache dockerhub: connection refused",
        "mirror2.zagreb, dockerhub from sibling-mirror1, down for 0 min: MAINT (resolution)",
        "zagreb, 0 of 1 docker hosts use their mirrors", "app1.zagreb: docker.io: no mirror.",
    ]
