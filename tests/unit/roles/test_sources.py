# Copyright (c) 2026, mirrorfleet contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0
"""The rewrite front of a mirror host that has others to ask: a real HAProxy between clients, two mirror hosts and upstreams."""

from __future__ import annotations

import base64
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Iterator

import pytest

from ansible_collections.mirrorfleet.registry.plugins.module_utils.haproxy import SERVERS, ask, servers
from ansible_collections.mirrorfleet.registry.plugins.module_utils.upstreams import PORT_OFFSETS
from ansible_collections.mirrorfleet.registry.tests.unit.conftest import free_port, until
from ansible_collections.mirrorfleet.registry.tests.unit.roles.conftest import Answer, Render, Upstream, upstream_port
from ansible_collections.mirrorfleet.registry.tests.unit.roles.test_haproxy_front import Front, haproxy

BLOB = "/v2/team/app/blobs/sha256:" + "b" * 64
MANIFEST = "/v2/team/app/manifests/sha256:" + "a" * 64
TAG = "/v2/team/app/manifests/1.0"
LOGIN = "Basic " + base64.b64encode(b"fleet:only-for-this").decode()
CREDENTIAL = "Basic " + base64.b64encode(b"dc-reader:hidden").decode()
# central: TLS and Basic; hub: Bearer; plain: other mirror hosts without TLS, Bearer too.
NAMES = ("central", "hub", "plain")


@dataclass
class DataCenter:
    """The front of the third mirror host, with the edges of the first and of the second, and the upstream of all."""

    front: Front
    first: dict[str, Upstream]
    second: dict[str, Upstream]
    upstream: Upstream
    start: Callable[..., Upstream]
    certificate: Path

    def who(self) -> list[str]:
        """Who was asked since `fresh`, in an order of this list's own."""
        places = {"first": self.first.values(), "second": self.second.values(), "upstream": [self.upstream]}
        return [name for name, hosts in places.items() for host in hosts for _request in host.seen]

    def get(self, name: str, target: str, **headers: str) -> int:
        return self.front.request(name, target, **headers)[0]

    def up(self, source: str, name: str = "") -> bool:
        """Whether a source is healthy, for one upstream or for all of them."""
        return all(each["healthy"] for each in servers(ask(self.front.socket, SERVERS)) if each["source"] == source and each["name"].startswith(name))


@pytest.fixture(scope="module")
def data_center(render: Render, tmp_path_factory: pytest.TempPathFactory, certificate: Path, start_upstream: Callable[..., Upstream]) -> Iterator[DataCenter]:
    upstream = start_upstream(certificate)
    url = f"https://localhost:{upstream.port}"
    ca = certificate.read_text()
    ca = ca[ca.index("-----BEGIN CERTIFICATE"):]
    ports, stats_port = {name: upstream_port() for name in NAMES}, free_port()
    common: dict[str, dict[str, Any]] = {
        "central": {"username": "dc-reader", "password": "hidden", "path_prefix": "/artifactory"},
        "hub": {"auth": "bearer", "token_realm": url + "/token", "token_service": "hub.test"},
        "plain": {"auth": "bearer", "token_realm": url + "/token", "token_service": "hub.test"},
    }
    upstreams = [{"name": name, "url": url, "ca_cert": ca, "port": ports[name], "canary": "a:1", **common[name]} for name in NAMES]
    edges: dict[str, dict[str, Upstream]] = {
        address: {name: start_upstream(certificate if name != "plain" else None, ports[name], "::ffff:" + address) for name in NAMES}
        for address in ("127.0.0.2", "127.0.0.3")
    }
    sources = [{
        "name": host, "kind": "sibling", "address": address, "host": "localhost", "tls": tls, "ca_certificate": ca if tls else "",
        "login": tls and login, "upstreams": shared,
    } for host, address in (("mirror-1", "127.0.0.2"), ("mirror-2", "127.0.0.3"))
        for shared, tls, login in ((["central"], True, True), (["hub"], True, False), (["plain"], False, False))]
    directory = tmp_path_factory.mktemp("front")
    files, = render("haproxy_front", {
        "mirror_upstreams": upstreams, "haproxy_front_stats_bind": f"127.0.0.1:{stats_port}", "haproxy_front_resolve": "starting",
        "haproxy_front_sources": sources, "mirror_username": "fleet", "mirror_password": "only-for-this", "__haproxy_front_run": str(directory),
    })
    with haproxy(files, directory, {name: port + PORT_OFFSETS["front"] for name, port in ports.items()}, stats_port) as front:
        yield DataCenter(front, edges["127.0.0.2"], edges["127.0.0.3"], upstream, start_upstream, certificate)


@pytest.fixture(autouse=True)
def fresh(data_center: DataCenter) -> None:
    until(lambda: data_center.up("sibling-mirror-1") and data_center.up("sibling-mirror-2") and data_center.up("upstream"), 10)
    for each in (*data_center.first.values(), *data_center.second.values(), data_center.upstream):
        each.seen.clear()
        each.answers.clear()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("target", [BLOB, MANIFEST, TAG, "/v2/team/app/tags/list?n=5"])
def test_the_first_is_asked_as_docker_hosts_ask(data_center: DataCenter, name: str, target: str) -> None:
    assert data_center.get(name, target, Accept="a/b", Range="bytes=0-1") == 200
    assert data_center.who() == ["first"]
    seen, = data_center.first[name].seen
    assert seen.target == target and (seen.headers["accept"], seen.headers["range"]) == ("a/b", "bytes=0-1")


def test_it_gets_its_login_and_no_credential_of_the_upstream(data_center: DataCenter) -> None:
    assert data_center.get("central", BLOB) == 200
    assert data_center.first["central"].seen[0].headers["authorization"] == LOGIN
    data_center.first["central"].answers[BLOB] = Answer(503)
    assert data_center.get("central", BLOB) == 200
    assert data_center.upstream.seen[0].headers["authorization"] == CREDENTIAL
    assert CREDENTIAL not in json.dumps([seen.headers for seen in data_center.first["central"].seen])


def test_a_token_goes_to_it_only_where_nobody_can_read_it(data_center: DataCenter) -> None:
    for name in ("hub", "plain"):
        assert data_center.get(name, BLOB, Authorization="Bearer abc") == 200
    assert data_center.first["hub"].seen[0].headers["authorization"] == "Bearer abc"
    assert "authorization" not in data_center.first["plain"].seen[0].headers
    data_center.first["hub"].answers[BLOB] = Answer(503)
    assert data_center.get("hub", BLOB, Authorization="Bearer abc") == 200
    assert data_center.upstream.seen[0].headers["authorization"] == "Bearer abc"
    data_center.first["plain"].answers[BLOB] = Answer(503)
    assert data_center.get("plain", BLOB, Authorization="Bearer abc") == 503


@pytest.mark.parametrize("status", [401, 403, 500, 502, 503, 504])
@pytest.mark.parametrize("target", [BLOB, MANIFEST, TAG])
def test_what_it_can_not_give_is_asked_of_the_upstream(data_center: DataCenter, status: int, target: str) -> None:
    data_center.first["central"].answers[target] = Answer(status)
    data_center.upstream.answers["/artifactory" + target] = Answer(body=b"from the upstream")
    assert data_center.front.request("central", target)[::2] == (200, b"from the upstream")
    assert data_center.who() == ["first", "upstream"]


@pytest.mark.parametrize("status", [206, 304, 404, 416, 429])
def test_other_answers_stand(data_center: DataCenter, status: int) -> None:
    data_center.first["central"].answers[BLOB] = Answer(status, body=b"")
    assert data_center.get("central", BLOB) == status
    assert data_center.who() == ["first"]


def test_what_neither_has_says_the_upstream(data_center: DataCenter) -> None:
    data_center.first["central"].answers[TAG] = Answer(502)
    data_center.upstream.answers["/artifactory" + TAG] = Answer(401)
    status, _headers, body = data_center.front.request("central", TAG, X_Mirror_Why="true")
    assert status == 502 and "refused this mirror host with 401" in json.loads(body)["errors"][0]["message"]


def test_a_mirror_host_that_hangs_costs_a_tag_two_seconds(data_center: DataCenter) -> None:
    data_center.first["central"].answers[TAG] = Answer(seconds=4)
    start = time.monotonic()
    assert data_center.get("central", TAG) == 200
    assert 1 < time.monotonic() - start < 3
    assert data_center.who() == ["first", "upstream"]


def test_the_second_comes_when_the_first_is_gone_and_the_first_comes_back(data_center: DataCenter) -> None:
    port = data_center.first["central"].port
    data_center.first["central"].stop()
    # Nobody has noticed yet: the upstream answers within the same request.
    assert data_center.get("central", BLOB) == 200
    assert data_center.who() == ["upstream"]
    until(lambda: not data_center.up("sibling-mirror-1"), 5)
    assert data_center.get("central", BLOB) == data_center.get("central", TAG) == 200
    assert data_center.who() == ["second", "second", "upstream"]
    # Every upstream is judged by itself.
    assert data_center.get("hub", BLOB) == 200 and len(data_center.first["hub"].seen) == 1
    data_center.first["central"] = data_center.start(data_center.certificate, port, "::ffff:127.0.0.2")
    until(lambda: data_center.up("sibling-mirror-1"), 5)
    assert data_center.get("central", BLOB) == 200
    assert len(data_center.first["central"].seen) == 1


def test_a_first_one_that_is_drained_is_passed_over_until_it_is_back(data_center: DataCenter) -> None:
    """As its guard does before its disk is full: its edge answers /v2/ of that upstream with 503, and goes on serving who is there."""
    try:
        data_center.first["central"].answers["/v2/"] = Answer(503)
        until(lambda: not data_center.up("sibling-mirror-1", "central"))
        assert data_center.get("central", BLOB) == data_center.get("central", TAG) == data_center.get("hub", BLOB) == 200
        assert data_center.who() == ["first", "second", "second"] and len(data_center.first["hub"].seen) == 1
        # Both: the upstream itself.
        data_center.second["central"].answers["/v2/"] = Answer(503)
        until(lambda: not data_center.up("sibling-mirror-2", "central"))
        assert data_center.get("central", BLOB) == 200 and len(data_center.upstream.seen) == 1
    finally:
        for each in (data_center.first, data_center.second):
            each["central"].answers.clear()
    until(lambda: data_center.up("sibling-mirror-1", "central"))
    assert data_center.get("central", BLOB) == 200 and len(data_center.first["central"].seen) == 1


def test_without_an_upstream_there_is_no_token_and_none_is_needed(data_center: DataCenter) -> None:
    data_center.upstream.answers["/token"] = Answer(body=b'{"token":"real"}')
    token = "/token?service=hub.test&scope=repository:team/app:pull"
    assert json.loads(data_center.front.request("hub", token)[2]) == {"token": "real"}
    data_center.upstream.hanging.set()
    try:
        until(lambda: not data_center.up("upstream", "hub"), 10)
        assert json.loads(data_center.front.request("hub", token)[2]) == {"token": "none"}
        assert data_center.get("hub", BLOB, Authorization="Bearer none") == 200
    finally:
        data_center.upstream.hanging.clear()


def test_bytes_of_a_sibling_are_no_wan_bytes(data_center: DataCenter) -> None:
    def counted() -> tuple[int, int]:
        figures = servers(ask(data_center.front.socket, SERVERS))
        return sum(each["wan_bytes"] for each in figures), sum(each["lan_bytes"] for each in figures)

    before = counted()
    data_center.first["central"].answers[BLOB] = Answer(body=b"l" * 10_000)
    assert data_center.get("central", BLOB) == 200
    # HAProxy counts when all is over, which is after the client has it all.
    until(lambda: counted()[1] - before[1] > 10_000, 5)
    middle = counted()
    assert middle[0] == before[0] and 10_000 < middle[1] - before[1] < 11_000
    data_center.first["central"].answers[BLOB] = Answer(503)
    data_center.upstream.answers["/artifactory" + BLOB] = Answer(body=b"w" * 10_000)
    assert data_center.get("central", BLOB) == 200
    until(lambda: counted()[0] - middle[0] > 10_000, 5)
    after = counted()
    assert 10_000 < after[0] - middle[0] < 11_000 and after[1] - middle[1] < 1_000


def test_nobody_else_comes_in_by_the_second_door(data_center: DataCenter) -> None:
    doors = sorted(data_center.front.directory.glob("*.sock"))
    assert [door.name for door in doors] == ["admin.sock", "central.sock", "hub.sock", "plain.sock"]
    assert {door.stat().st_mode & 0o777 for door in doors} == {0o600}
