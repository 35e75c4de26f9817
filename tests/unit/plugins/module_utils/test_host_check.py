# Copyright (c) 2026, mirrorfleet contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0
"""The upstreams are real registries. Only the token server is a small one of our own: distribution brings none."""

from __future__ import annotations

import base64
import http.server
import os
import socket
import subprocess
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Callable, Iterator

import pytest

from ansible_collections.mirrorfleet.registry.plugins.module_utils import host_check
from ansible_collections.mirrorfleet.registry.plugins.module_utils.host_check import (
    Problem,
    Process,
    ask,
    ask_all,
    disk_problems,
    human,
    owner_of,
    port_problems,
)
from ansible_collections.mirrorfleet.registry.plugins.module_utils.upstreams import normalise
from ansible_collections.mirrorfleet.registry.tests.unit.conftest import StartRegistry, free_port

PASSWORD = "s3cret-pass"
HTPASSWD = "dc-reader:$2y$05$abcdefghijklmnopqrstuuV7fpPozvyqJfnY19y0802WTlXUm6Rjy\n"
CREDENTIALS = {"username": "dc-reader", "password": PASSWORD}
SECRETS = (PASSWORD, base64.b64encode(f"dc-reader:{PASSWORD}".encode()).decode())


def upstream(url: str, **keys: Any) -> Any:
    return normalise([{"name": "central", "url": url, "port": 5000, "canary": "library/small:1", **keys}])[0]


def told(problem: Problem | None, kind: str = "upstream") -> str:
    """The message of a problem, which there must be, and which must not hold a secret."""
    assert problem is not None
    assert (problem.kind, problem.subject) == (kind, "central")
    assert not any(secret in problem.message for secret in SECRETS)
    return problem.message


@pytest.fixture
def basic(start_registry: StartRegistry, tmp_path: Path) -> str:
    """The URL of a registry that asks for a password, as Artifactory does."""
    path = tmp_path / "htpasswd"
    path.write_text(HTPASSWD)
    return start_registry(auth={"htpasswd": {"realm": "central", "path": str(path)}}).url


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 that nobody has signed but its key."""
    key, cert = tmp_path / "key.pem", tmp_path / "cert.pem"
    words = f"openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=central -addext subjectAltName=IP:127.0.0.1 -keyout {key} -out {cert}"
    subprocess.run(words.split(), check=True, capture_output=True)
    return key, cert


Serve = Callable[..., str]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Start an HTTP server: `serve(answer)` is its URL; `answer(path, authorization)` gives status, headers and body."""
    servers = []

    def start(answer: Callable[[str, str], tuple[int, dict[str, str], str]]) -> str:
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                status, headers, body = answer(self.path, self.headers.get("Authorization", ""))
                self.send_response(status)
                for name, value in {"Content-Length": str(len(body.encode())), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body.encode())

            def log_message(self, *_unused: object) -> None:
                pass

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{server.server_address[1]}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def give_token(path: str, authorization: str) -> tuple[int, dict[str, str], str]:
    """A token server that knows dc-reader, and nobody without a password."""
    assert path == "/token?service=registry.example.com&scope=repository%3Alibrary%2Fsmall%3Apull"
    if authorization != "Basic " + SECRETS[1]:
        return 401, {"WWW-Authenticate": 'Basic realm="token"'}, f"unknown: {authorization}"
    return 200, {}, '{"token": "a-token"}'


@pytest.fixture
def token_registry(start_registry: StartRegistry, serve: Serve, certificate: tuple[Path, Path]) -> tuple[str, str]:
    """The URL of a registry that asks for a token, as the Docker Hub does, and the realm it names."""
    realm = serve(give_token) + "/token"
    token = {"realm": realm, "service": "registry.example.com", "issuer": "test", "rootcertbundle": str(certificate[1])}
    return start_registry(auth={"token": token}).url, realm


# --- upstreams


def test_an_open_registry(registry: Any) -> None:
    assert ask(upstream(registry.url)) is None


def test_a_password_that_is_right_wrong_and_missing(basic: str) -> None:
    assert ask(upstream(basic, **CREDENTIALS)) is None
    wrong = told(ask(upstream(basic, username="dc-reader", password="wrong-" + PASSWORD)))
    assert f"GET {basic}/v2/ answers 401 Unauthorized" in wrong and "UNAUTHORIZED" in wrong and "correct username and password" in wrong
    assert "write username and password" in told(ask(upstream(basic)))
    bearer = {"auth": "bearer", "token_realm": "http://127.0.0.1:1/token", "token_service": "x"}
    assert "write auth: basic" in told(ask(upstream(basic, **CREDENTIALS, **bearer)))


def test_a_token_that_is_given_refused_and_asked_for_elsewhere(token_registry: tuple[str, str]) -> None:
    url, realm = token_registry
    right = {"token_realm": realm, "token_service": "registry.example.com"}
    assert ask(upstream(url, **CREDENTIALS, **right)) is None
    wrong = told(ask(upstream(url, username="dc-reader", password="wrong", **right)))
    assert f"GET {realm} answers 401 Unauthorized" in wrong and "correct them" in wrong
    assert base64.b64encode(b"dc-reader:wrong").decode() not in wrong, "what the server repeats is masked"
    assert "write username and password" in told(ask(upstream(url, **right)))
    other = told(ask(upstream(url, **CREDENTIALS, **{**right, "token_realm": "http://127.0.0.1:1/other"})))
    assert other.endswith(f"token_realm is http://127.0.0.1:1/other, and the upstream sends clients to {realm}: write that.")
    assert "clients to registry.example.com" in told(ask(upstream(url, **CREDENTIALS, **{**right, "token_service": "other"})))
    for keys in ({}, CREDENTIALS):
        message = told(ask(upstream(url, **keys)))
        assert f"write auth: bearer, token_realm: {realm} and token_service: registry.example.com" in message


def test_a_path_prefix_that_is_right_and_wrong(serve: Serve) -> None:
    def artifactory(path: str, authorization: str) -> tuple[int, dict[str, str], str]:
        return (200, {}, "{}") if path == "/artifactory/api/docker/docker-local/v2/" else (404, {"Content-Type": "text/html"}, "<h1>no such page</h1>")

    url = serve(artifactory)
    assert ask(upstream(url, path_prefix="/artifactory/api/docker/docker-local")) is None
    message = told(ask(upstream(url, path_prefix="/artifactory")))
    assert f"GET {url}/artifactory/v2/ answers 404" in message and "no such page" in message and "check url and path_prefix" in message


def test_what_is_no_registry(serve: Serve) -> None:
    page = serve(lambda path, authorization: (200, {"Content-Type": "text/html"}, "<h1>Welcome</h1>"))
    assert "is no registry" in told(ask(upstream(page)))
    moved = serve(lambda path, authorization: (302, {"Location": "https://sso.example.com/login?state=secret"}, ""))
    message = told(ask(upstream(moved)))
    assert "sends to https://sso.example.com/login" in message and "state=secret" not in message
    forbidden = serve(lambda path, authorization: (403, {}, f"{authorization} {'x' * 1000}"))
    message = told(ask(upstream(forbidden, **CREDENTIALS)))
    assert "403 Forbidden" in message and "x" * 201 not in message


def test_an_upstream_that_is_not_there_is_apart(serve: Serve) -> None:
    for status in (502, 503, 429):
        busy = serve(lambda path, authorization, status=status: (status, {}, "come back later"))
        message = told(ask(upstream(busy)), "unreachable")
        assert f"answers {status}" in message and "come back later" in message
    assert "connection refused" in told(ask(upstream(f"http://127.0.0.1:{free_port()}")), "unreachable")
    assert "its name has no address" in told(ask(upstream("https://registry.invalid")), "unreachable")


def test_a_certificate_is_verified(start_registry: StartRegistry, certificate: tuple[Path, Path]) -> None:
    key, cert = certificate
    url = start_registry(tls={"certificate": str(cert), "key": str(key)}).url
    assert "certificate is not trusted" in told(ask(upstream(url)))
    assert ask(upstream(url, ca_cert=cert.read_text())) is None
    assert ask(upstream(url, validate_certs=False)) is None


def test_upstreams_that_hang_are_asked_together_and_not_waited_for(monkeypatch: pytest.MonkeyPatch, registry: Any) -> None:
    monkeypatch.setattr(host_check, "TIMEOUT", 3.0)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        began = time.monotonic()
        answers = ask_all([upstream(url), upstream(url), upstream(registry.url), upstream(url)])
    assert time.monotonic() - began < 8
    assert [answer and answer.kind for answer in answers] == ["unreachable", "unreachable", None, "unreachable"]


def test_an_answer_that_drips_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_check, "DEADLINE", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as server:
        def drip() -> None:
            connection = server.accept()[0]
            with connection:
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
                for _second in range(8):
                    time.sleep(0.3)
                    connection.sendall(b"x")

        thread = threading.Thread(target=drip, daemon=True)
        thread.start()
        answers = ask_all([upstream(f"http://127.0.0.1:{server.getsockname()[1]}")])
        assert "no answer within 1 seconds" in told(answers[0], "unreachable")
        thread.join()


# --- ports


def test_a_free_port_and_one_in_use() -> None:
    assert port_problems("127.0.0.1", free_port(), "", "the edge") == []
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        for address in ("127.0.0.1", "0.0.0.0"):
            (problem,) = port_problems(address, port, "mirrorfleet-edge.service", "the edge")
            assert (problem.kind, problem.subject) == ("port", f"{address}:{port}")
            assert f"needed for the edge and in use by {Path('/proc/self/comm').read_text().strip()} (pid {os.getpid()}" in problem.message
        assert port_problems("127.0.0.2", port, "", "the edge") == []


def test_a_listener_on_every_address_is_in_the_way_of_one() -> None:
    for everywhere, family in (("0.0.0.0", socket.AF_INET), ("::", socket.AF_INET6)):
        if family == socket.AF_INET6 and not os.path.exists("/proc/net/if_inet6"):
            continue
        with socket.create_server((everywhere, 0), family=family, dualstack_ipv6=family == socket.AF_INET6) as server:
            (problem,) = port_problems("127.0.0.1", server.getsockname()[1], "", "the edge")
            assert f"pid {os.getpid()}" in problem.message


def test_a_port_that_only_closed_connections_linger_on_is_free() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        where = server.getsockname()
        client = socket.create_connection(where)
        server.accept()[0].close()  # the server closes first, so its side lingers in TIME_WAIT
        client.close()
    assert port_problems("127.0.0.1", where[1], "", "the edge") == []


def test_an_address_of_another_host() -> None:
    (problem,) = port_problems("192.0.2.1", 80, "", "the edge")
    assert problem.message == "192.0.2.1, where the edge is to listen, is no address of this host: write one of its addresses."
    (problem,) = port_problems("no.such.host.invalid", 80, "", "the edge")
    assert "is no address to listen on" in problem.message


def test_whose_process_it_is() -> None:
    container = "0123456789abcdef" * 4
    for cgroup, owner in (
        ("0::/system.slice/mirrorfleet-front.service", ("mirrorfleet-front.service", False)),
        ("0::/system.slice/system-x.slice/mirrorfleet-cache@central.service", ("mirrorfleet-cache@central.service", False)),
        ("0::/system.slice/nginx.service/worker", ("nginx.service", False)),
        (f"0::/system.slice/docker-{container}.scope", (container, True)),
        (f"0::/docker/{container}", (container, True)),
        (f"0::/docker/{container}/system.slice/nginx.service", ("nginx.service", False)),
        (f"4:memory:/\n1:name=systemd:/docker/{container}/init.scope\n", (container, True)),
        ("0::/user.slice/user-0.slice/session-1.scope", ("", False)),
        ("", ("", False)),
    ):
        assert owner_of(cgroup) == owner, cgroup
    assert Process(1, "nginx", "mirrorfleet-edge.service").belongs_to("mirrorfleet-edge.service")
    assert Process(1, "registry", "mirrorfleet-cache-central", container=True).belongs_to("mirrorfleet-cache@central.service")
    assert not Process(1, "registry", "mirrorfleet-cache-central", container=True).belongs_to("mirrorfleet-edge.service")
    assert not Process(1, "nginx", "nginx.service").belongs_to("mirrorfleet-edge.service")
    assert not Process(1, "nginx", "").belongs_to("")


# --- disks


def test_disk_space_of_a_directory_that_is_yet_to_be_made(tmp_path: Path) -> None:
    path = str(tmp_path / "not" / "yet")
    assert disk_problems([{"path": path, "free_bytes": 1, "purpose": "the caches"}]) == []
    (problem,) = disk_problems([{"path": path, "free_bytes": 2**60, "purpose": "the caches"}])
    assert (problem.kind, problem.subject) == ("disk", path)
    assert problem.message.startswith(f"{path}, for the caches: ") and "1048576.0 TiB are needed" in problem.message
    assert not (tmp_path / "not").exists()


def test_disk_space_is_added_up_by_file_system(tmp_path: Path) -> None:
    status = os.statvfs(tmp_path)
    most = status.f_bavail * status.f_frsize * 2 // 3
    one, two = ({"path": str(tmp_path / name), "free_bytes": most, "purpose": name} for name in ("caches", "coalescers"))
    elsewhere = {"path": "/proc", "free_bytes": 0, "purpose": "nothing"}
    assert disk_problems([one, elsewhere]) == disk_problems([two]) == []
    (problem,) = disk_problems([one, elsewhere, two])
    assert problem.message.startswith(f"{one['path']} and {two['path']}, for caches and coalescers: ")


def test_what_a_file_takes_already_need_not_be_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = tmp_path / "store"
    with open(store, "wb") as file:
        os.posix_fallocate(file.fileno(), 0, 2**20)
    monkeypatch.setattr(os, "statvfs", lambda _path: SimpleNamespace(f_bavail=0, f_frsize=4096))
    assert disk_problems([{"path": str(store), "free_bytes": 2**20, "purpose": "a coalescer"}]) == []
    assert len(disk_problems([{"path": str(store), "free_bytes": 2**20 + 4096, "purpose": "a coalescer"}])) == 1


def test_bytes_to_read() -> None:
    assert [human(count) for count in (0, 1023, 1024, 1536, 5 * 2**30, 3 * 2**40)] == ["0 bytes", "1023 bytes", "1.0 KiB", "1.5 KiB", "5.0 GiB", "3.0 TiB"]


# --- all of it


def test_everything_is_said_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", "unix:///nowhere.sock")
    findings = host_check.check({
        "platforms": ["debian 1"],
        "systemd": not os.path.isdir("/run/systemd/system"),
        "docker": True,
        "programs": ["sh", "no-such-program"],
        "ports": [{"address": "192.0.2.1", "port": 80, "unit": None, "purpose": None}],
        "disk": [{"path": "/nowhere", "free_bytes": 2**60, "purpose": None}],
        "upstreams": [upstream(f"http://127.0.0.1:{free_port()}", **CREDENTIALS)],
        "allow_unreachable": True,
    })
    kinds = [problem.kind for problem in findings.problems]
    assert [kind for kind in kinds if kind != "systemd"] == ["platform", "docker", "program", "port", "disk"]
    assert ("systemd" in kinds) == (not os.path.isdir("/run/systemd/system"))
    assert [problem.kind for problem in findings.tolerated] == ["unreachable"]
    assert set(findings.facts) == {"platform", "architecture", "docker_version", "python", "systemd_version"}
    assert findings.facts["docker_version"] == ""
    assert not any(secret in str(findings.as_dict()) for secret in SECRETS)
