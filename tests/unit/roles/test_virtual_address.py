# Copyright (c) 2026, mirrorfleet contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0
"""The virtual address: what decides whether a host may have it, what is refused before anything is touched, what keepalived is told.
That it moves is proven by the Molecule scenario virtual_address."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Callable

import pytest

from ansible_collections.mirrorfleet.registry.tests.unit.conftest import ansible, free_port
from ansible_collections.mirrorfleet.registry.tests.unit.roles.conftest import ROLES, Answer, Render, Upstream

PROGRAM = ROLES / "virtual_address/templates/check.py"
Start = Callable[..., Upstream]


def check(port: int, scheme: str = "http", drained: str = "/nonexistent/drained") -> int:
    """The exit status of the check, run as keepalived does."""
    return subprocess.run(
        [sys.executable, "-I", "-S", str(PROGRAM), drained, "127.0.0.1", str(port), scheme], check=False, timeout=10, capture_output=True,
    ).returncode


@pytest.mark.parametrize(("status", "verdict"), [(200, 0), (401, 0), (403, 0), (500, 1), (503, 1)])
def test_an_edge_that_answers_for_itself_is_well(start_upstream: Start, status: int, verdict: int) -> None:
    edge = start_upstream()
    edge.answers["/v2/"] = Answer(status)
    assert check(edge.port) == verdict
    assert {each.target for each in edge.seen} == {"/v2/"}


def test_the_certificate_is_not_judged(start_upstream: Start, certificate: Path) -> None:
    edge = start_upstream(certificate)
    assert check(edge.port, "https") == 0
    assert check(edge.port, "http") == 1


def test_an_edge_that_is_away_is_not_well(start_upstream: Start) -> None:
    assert check(free_port()) == 1


def test_an_edge_that_hangs_is_given_up(start_upstream: Start) -> None:
    with socket.create_server(("127.0.0.1", 0)) as hanging:
        for scheme in ("http", "https"):
            started = time.monotonic()
            assert check(hanging.getsockname()[1], scheme) == 1
            # keepalived gives it 5 s.
            assert time.monotonic() - started < 4.5


def test_an_edge_that_is_back_at_the_second_try_was_never_away(start_upstream: Start) -> None:
    edge = start_upstream()
    edge.answers["/v2/"] = Answer(502, then=Answer())
    assert check(edge.port) == 0
    assert len(edge.seen) == 2


def test_a_host_that_is_out_of_service_asks_nobody(start_upstream: Start, tmp_path: Path) -> None:
    edge = start_upstream()
    drained = tmp_path / "drained"
    assert check(edge.port, drained=str(drained)) == 0
    edge.seen.clear()
    drained.touch()
    assert check(edge.port, drained=str(drained)) == 1
    assert edge.seen == []


# case -> what its host has besides, and words of what is said; none where nothing is wrong.
CASES: dict[str, tuple[dict[str, Any], list[str]]] = {
    "right": ({}, []),
    "named": ({"virtual_address_interface": "lo", "mirror_virtual_address": "10.255.7.7/24"}, []),
    "peers": ({"virtual_address_peers": ["127.0.0.1", "127.0.0.2"]}, []),
    "everywhere": ({"mirror_edge_bind": "0.0.0.0"}, []),
    "bare": ({"mirror_virtual_address": "10.20.0.10"}, ["mirror_virtual_address: '10.20.0.10' is no address with the prefix length"]),
    "bare6": ({"mirror_virtual_address": "fd00:20::10"}, ["'fd00:20::10' is no address with the prefix length", "mirror_edge_bind"]),
    "single": ({"mirror_virtual_address": "10.20.0.10/32"}, ["'10.20.0.10/32' is no address with the prefix length"]),
    "byte": ({"mirror_virtual_address": "10.20.0.256/24"}, ["'10.20.0.256/24' is no address"]),
    "name": ({"mirror_virtual_address": "mirror.example.test"}, ["'mirror.example.test' is no address"]),
    "colons": ({"mirror_virtual_address": "1:2:3/64", "mirror_edge_bind": "::"}, ["'1:2:3/64': no interface", "is expected rather than"]),
    "elsewhere": ({"mirror_virtual_address": "203.0.113.5/24"}, ["'203.0.113.5/24': no interface of the host has an address in this network"]),
    "own": ({"mirror_virtual_address": "127.0.0.1/8"}, ["'127.0.0.1/8' is the host's own address"]),
    "nowhere": ({"virtual_address_interface": "wrong0"}, ["virtual_address_interface: 'wrong0': the host has no such interface", '"wrong0" does not exist']),
    "zero": ({"virtual_address_router_id": 0}, ["virtual_address_router_id: '0': write a number from 1 to 255"]),
    "large": ({"virtual_address_router_id": 256}, ["virtual_address_router_id: '256': write a number from 1 to 255"]),
    "foreign": ({"virtual_address_peers": ["127.0.0.2", "127.0.0.3"]}, ["127.0.0.2, 127.0.0.3: none of them is this host's on lo (127.0.0.1)"]),
    "named-peer": ({"virtual_address_peers": ["127.0.0.1", "mirror2"]}, ["virtual_address_peers: 'mirror2' is no address"]),
    "alone": ({"virtual_address_hosts": ["alone"]}, ["the data center has one mirror host, alone"]),
    "missing": ({"virtual_address_hosts": ["right", "alone"]}, ["virtual_address_hosts: missing is not among right, alone"]),
    "bound": ({"mirror_edge_bind": "10.20.0.11"}, ["mirror_edge_bind: '10.20.0.11': there the edge does not listen on 127.0.0.9. Leave it empty."]),
    "several": ({"mirror_virtual_address": "10.20.0.10", "virtual_address_router_id": 300}, ["'10.20.0.10' is no address", "'300'"]),
}
UPSTREAMS = [{"name": "central", "url": "https://central.example.test", "port": 5000, "canary": "library/busybox:1"}]


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What the role's check says on a host for each case: the loopback interface is its network."""
    directory = tmp_path_factory.mktemp("check")
    (directory / "inventory.json").write_text(json.dumps({"mirrors": {
        "hosts": {case: variables for case, (variables, _words) in CASES.items()},
        "vars": {
            "mirror_virtual_address": "127.0.0.9/8", "mirror_upstreams": UPSTREAMS, "ansible_connection": "local",
            "ansible_python_interpreter": sys.executable,
        },
    }, "dc_test": {"children": {"mirrors": {}}}}))
    (directory / "play.yml").write_text(json.dumps([{
        "hosts": "all", "gather_facts": False,
        "tasks": [{
            "block": [{"ansible.builtin.import_role": {"name": "mirrorfleet.registry.virtual_address", "tasks_from": "check"}}],
            "rescue": [{
                "ansible.builtin.copy": {"content": "{{ ansible_failed_result.msg }}", "dest": f"{directory}/{{{{ inventory_hostname }}}}", "mode": "0600"},
            }],
        }],
    }]))
    done = ansible("ansible-playbook", "--inventory", "inventory.json", "play.yml", directory=directory)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(re.findall(r"failed=0", done.stdout)) == len(CASES), done.stdout
    return {case: (directory / case).read_text() if (directory / case).exists() else "" for case in CASES}


@pytest.mark.parametrize("case", CASES)
def test_what_is_wrong_is_said_before_anything_is_touched(said: dict[str, str], case: str) -> None:
    words = CASES[case][1]
    assert [each for each in words if each not in said[case]] == [], said[case]
    assert bool(said[case]) == bool(words), said[case]


def found(*own: str) -> dict[str, Any]:
    """What check.yml leaves: what `ip` says of the interface that has these addresses."""
    addresses = [{}, *({"local": each, "prefixlen": 24} for each in own)]
    return {"__virtual_address_found": {"stdout": json.dumps([{}, {"ifname": "lan0", "addr_info": addresses}])}}


def test_what_keepalived_is_told(render: Render) -> None:
    common = {"mirror_upstreams": UPSTREAMS, "mirror_virtual_address": "10.20.0.10/24"}
    first, second, six, plain = render(
        "virtual_address",
        {**common, **found("10.20.0.11"), "virtual_address_hosts": ["localhost", "other"]},
        {**common, **found("10.20.0.12", "10.20.0.10"), "virtual_address_hosts": ["other", "localhost"], "virtual_address_peers": ["10.20.0.11", "10.20.0.12"]},
        {**common, **found("fd00:20::11"), "virtual_address_hosts": ["localhost", "other"], "mirror_virtual_address": "fd00:20::10/64"},
        {**common, **found("10.20.0.11"), "virtual_address_hosts": ["localhost", "other"], "mirror_edge_tls": "none", "virtual_address_router_id": 7},
    )
    files = [{Path(each["path"]).name: each for each in rendered} for rendered in (first, second, six, plain)]
    one, two, three, four = (re.sub(r"\s+", " ", each["keepalived.conf"]["content"]) for each in files)
    assert "interface lan0 virtual_router_id 51 priority 250 " in one
    assert "unicast" not in one
    assert "check.py /etc/mirrorfleet/drained 127.0.0.1 5000 https\"" in one
    assert "virtual_ipaddress { 10.20.0.10/32 dev lan0 }" in one
    # The address itself is no sender's, although the host has it.
    assert "priority 240 " in two
    assert "unicast_src_ip 10.20.0.12 unicast_peer { 10.20.0.11 }" in two
    assert "virtual_ipaddress { fd00:20::10/128 dev lan0 }" in three
    assert "/drained ::1 5000 https\"" in three
    assert "127.0.0.1 5000 http\"" in four
    assert "virtual_router_id 7 " in four
    # Another order of the hosts, or another way to them, moves nothing: the unit is the same, and reads its configuration again.
    assert files[0]["mirrorfleet-address.service"] == files[1]["mirrorfleet-address.service"]
    assert files[0]["keepalived.conf"]["needs"] == "reload"
