# Copyright (c) 2026, mirrorfleet contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0
"""front_info asks a real HAProxy."""

from __future__ import annotations

import http.client
import subprocess
from pathlib import Path
from typing import Iterator

import pytest

from ansible_collections.mirrorfleet.registry.plugins.module_utils.haproxy import SERVERS, ask, servers
from ansible_collections.mirrorfleet.registry.plugins.modules import front_info
from ansible_collections.mirrorfleet.registry.tests.unit.conftest import Registry, RunModule, digest_of, free_port, listens, until


@pytest.fixture
def front(tmp_path: Path, registry: Registry) -> Iterator[tuple[int, str]]:
    """The port and the runtime socket of a HAProxy with two servers: a registry, and a port where nobody listens."""
    port, path = free_port(), str(tmp_path / "admin.sock")
    (tmp_path / "haproxy.cfg").write_text(f"""
global
    stats socket {path} mode 600 level admin
defaults
    mode http
    timeout connect 2s
    timeout client 5s
    timeout server 5s
frontend central
    bind 127.0.0.1:{port}
    default_backend central
backend central
    option httpchk GET /v2/
    server upstream 127.0.0.1:{registry.port} check inter 100ms
backend dead
    option httpchk GET /v2/
    server upstream 127.0.0.1:9 check inter 100ms fall 1
""")
    with open(tmp_path / "log", "wb") as log:
        process = subprocess.Popen(["haproxy", "-db", "-f", str(tmp_path / "haproxy.cfg")], stdout=log, stderr=log)
    until(lambda: listens(port))
    # A server is up until its first check has failed.
    until(lambda: all(each["check"] and each["check"]["result"] in ("L7OK", "L4CON") for each in servers(ask(path, SERVERS))))
    yield port, path
    process.terminate()
    process.wait(10)


def test_figures_of_a_running_front(front: tuple[int, str], registry: Registry, run_module: RunModule) -> None:
    blob = b"x" * 300_000
    _status, location, _body = registry.request("POST", "/v2/a/blobs/uploads/")
    registry.request("PUT", f"{location.split(f':{registry.port}', 1)[1]}&digest={digest_of(blob)}", blob)
    port, path = front
    for target in (f"/v2/a/blobs/{digest_of(blob)}", "/v2/a/manifests/none"):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        connection.request("GET", target)
        connection.getresponse().read()
        connection.close()
    result = run_module(front_info.main, socket=path, _ansible_check_mode=True)
    assert not result.get("failed") and result["changed"] is False
    assert 0 <= result["counting_seconds"] < 60
    central, dead = result["upstreams"]
    assert (central["name"], central["source"], central["healthy"]) == ("central", "upstream", True)
    assert (central["check"]["result"], central["check"]["status"]) == ("L7OK", 200)
    assert central["requests"] == 2 and central["responses"]["2xx"] == central["responses"]["4xx"] == 1
    assert 300_000 < central["wan_bytes"] < 302_000 and result["wan_bytes"] == central["wan_bytes"]
    assert (dead["healthy"], dead["status"], dead["check"]["result"]) == (False, "DOWN", "L4CON")
    assert "Connection refused" in dead["check"]["text"]
    assert 0 <= dead["since_seconds"] < 60


def test_no_front(tmp_path: Path, run_module: RunModule) -> None:
    result = run_module(front_info.main, socket=str(tmp_path / "none.sock"))
    assert result["failed"]
    assert "none.sock: HAProxy does not answer" in result["msg"] and "mirrorfleet-front.service" in result["msg"]
