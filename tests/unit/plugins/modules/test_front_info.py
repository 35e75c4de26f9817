# Copyright (c) 2026, mirrorfleet contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0
"""front_info asks a real HAProxy."""

from __future__ import annotations

import http.client
import json
import re
import subprocess
import time
from pathlib import Path
from typing import Any, Iterator

import pytest
import yaml
from ansible_collections.community.general.plugins.filter.json_query import json_query

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
    # Else the interval, within which a busy machine may not answer.
    timeout check 5s
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
    # The socket gets its name when all else listens.
    until(lambda: listens(port) and (tmp_path / "admin.sock").exists())
    # A server is up until its first check has failed.
    until(lambda: all(each["check"] and each["check"]["result"] in ("L7OK", "L4CON") for each in servers(ask(path, SERVERS))))
    yield port, path
    process.terminate()
    process.wait(10)


def has_counted(server: Any) -> bool:
    """The blob of 300,000 bytes: the client may have all of it a moment earlier."""
    return bool(server["wan_bytes"] > 300_000)


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
    results: list[dict[str, Any]] = []

    def is_between_checks() -> bool:
        results.append(run_module(front_info.main, socket=path, _ansible_check_mode=True))
        central = results[-1]["upstreams"][0]
        return bool(central["check"]["status"]) and has_counted(central) and central["responses"]["4xx"] > 0

    until(is_between_checks)
    result = results[-1]
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
    # No edge runs here.
    assert (result["edge"], result["saved"]) == (None, None) and "access.log is not there" in result["edge_unknown"]


def log_line(upstream: str, size: int, status: int = 200, source: str = "store") -> str:
    """As tests/unit/roles/test_mirror_edge.py sees nginx write it."""
    return json.dumps({
        "time": time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime(time.time() + 5)), "client": "10.0.0.1", "user": "", "upstream": upstream, "method": "GET",
        "path": "/v2/a/blobs/sha256:0", "status": status, "bytes": size, "seconds": 0.1, "source": source, "agent": "docker/28",
    }, separators=(",", ":")) + "\n"


@pytest.fixture
def fleet(front: tuple[int, str], registry: Registry, tmp_path: Path) -> dict[str, str]:
    """The options for a front that fetched 300,000 bytes, and an edge that sent them to three docker hosts."""
    blob = b"x" * 300_000
    _status, location, _body = registry.request("POST", "/v2/a/blobs/uploads/")
    registry.request("PUT", f"{location.split(f':{registry.port}', 1)[1]}&digest={digest_of(blob)}", blob)
    port, path = front
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    connection.request("GET", f"/v2/a/blobs/{digest_of(blob)}")
    assert connection.getresponse().read() == blob
    connection.close()
    until(lambda: has_counted(servers(ask(path, SERVERS))[0]))
    (tmp_path / "access.log").write_text(
        log_line("central", 300_000, source="cache") + log_line("central", 300_000) * 2
        + log_line("central", 40, 404, "edge") + log_line("dead", 90, 502, "cache")
    )
    return {"socket": path, "access_log": str(tmp_path / "access.log"), "memory": str(tmp_path / "memory")}


def test_what_was_saved(fleet: dict[str, str], run_module: RunModule, tmp_path: Path) -> None:
    for _again in range(2):
        result = run_module(front_info.main, **fleet, _ansible_check_mode=True)
        assert not (tmp_path / "memory").exists() and result["edge_unknown"] == ""
    for _again in range(2):
        result = run_module(front_info.main, **fleet)
    assert result["changed"] is False and (tmp_path / "memory").stat().st_mode & 0o777 == 0o600
    edge, saved = result["edge"], result["saved"]
    assert (edge["lan_bytes"], edge["sibling_bytes"], edge["unreadable_lines"]) == (900_130, 0, 0)
    central, dead = edge["upstreams"]
    assert (central["name"], central["requests"], central["lan_bytes"], central["hits"], central["misses"]) == ("central", 4, 900_040, 2, 1)
    assert (central["hit_ratio"], central["responses"]["2xx"], central["responses"]["4xx"]) == (0.6667, 3, 1)
    assert (dead["name"], dead["hit_ratio"], dead["responses"]["5xx"]) == ("dead", None, 1)
    wan = result["wan_bytes"]
    assert 300_000 < wan < 301_000
    assert (saved["lan_bytes"], saved["wan_bytes"], saved["bytes"]) == (900_130, wan, 900_130 - wan) and 2.98 < saved["ratio"] < 3.01
    assert saved["upstreams"][1] == {"name": "dead", "lan_bytes": 90, "wan_bytes": 0, "bytes": 90, "ratio": None}


def test_the_documented_queries_work_as_written(fleet: dict[str, str], run_module: RunModule) -> None:
    documented = json.dumps(yaml.safe_load(front_info.EXAMPLES))
    queries = [json.loads(f'"{each}"') for each in re.findall(r"front \| community\.general\.json_query\('([^']+)'\)", documented)]
    result = run_module(front_info.main, **fleet)
    down, saved, broken = (json_query(result, query) for query in queries)
    assert [(each["name"], each["source"]) for each in down] == [("dead", "upstream")] and "Connection refused" in down[0]["why"]
    assert [each["name"] for each in saved] == ["central", "dead"] and saved[0]["bytes"] > 590_000
    assert broken == ["dead"]


def test_no_front(tmp_path: Path, run_module: RunModule) -> None:
    result = run_module(front_info.main, socket=str(tmp_path / "none.sock"))
    assert result["failed"]
    assert "none.sock: HAProxy does not answer" in result["msg"] and "mirrorfleet-front.service" in result["msg"]
