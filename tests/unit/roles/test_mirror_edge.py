# Copyright (c) 2026, mirrorfleet contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0
"""The edge: its configuration, rendered by Ansible, run by nginx, between real clients and distribution as the role sets it up."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import time
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Callable, Iterator

import pytest

from ansible_collections.mirrorfleet.registry.plugins.module_utils.upstreams import HIGHEST_EDGE_PORT, PORT_OFFSETS
from ansible_collections.mirrorfleet.registry.plugins.modules import mirror_pull
from ansible_collections.mirrorfleet.registry.tests.unit.conftest import (
    Authority,
    Image,
    Registry,
    RunModule,
    digest_of,
    image_of,
    layer_of,
    listens,
    until,
)
from ansible_collections.mirrorfleet.registry.tests.unit.roles.conftest import Answer, Render, Upstream, cache_configuration, is_free, unprivileged
from ansible_collections.mirrorfleet.registry.tests.unit.roles.test_haproxy_front import ATTACKS as FRONT_ATTACKS
from ansible_collections.mirrorfleet.registry.tests.unit.roles.test_haproxy_front import DIGEST, MANIFEST, SMUGGLED, get

# The first has distribution behind it, the second a server that notes what it gets, the third nothing.
NAMES = ("hub", "noted", "dead")
LAYER = layer_of({"app": os.urandom(1_000_000)})
IMAGE = image_of(LAYER)
BLOB = digest_of(LAYER)
PASSWORD = "wander3r-in-the-fog"
# Who may log in where a login is asked for. apr1 of openssl passwd -salt mirror; bcrypt of Openwall's test vectors for crypt_blowfish.
LOGINS = {"plain": PASSWORD, "apr1": PASSWORD, "bcrypt": "U*U"}
LOG_KEYS = {"time", "client", "user", "upstream", "method", "path", "status", "bytes", "seconds", "source", "agent"}
FORBIDDEN_CLIENT, ALLOWED_CLIENT = "127.0.0.1", "127.0.0.9"


def basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


@dataclass
class Edge:
    """A running nginx. `ports` are the ports of the upstreams, the same for each edge of the tests; they differ in their addresses."""

    directory: Path
    address: str
    ports: dict[str, int]
    process: subprocess.Popen[bytes]
    tls: ssl.SSLContext | None = None

    def request(
        self, name: str, target: str, method: str = "GET", body: bytes | None = None, client: str = "127.0.0.1", **headers: str,
    ) -> tuple[int, http.client.HTTPMessage, bytes]:
        """The answer to a request that http.client finds well-formed. A `_` in a header's name stands for `-`."""
        where: dict[str, Any] = {"host": self.address, "port": self.ports[name], "timeout": 15, "source_address": (client, 0)}
        connection = http.client.HTTPSConnection(**where, context=self.tls) if self.tls else http.client.HTTPConnection(**where)
        with contextlib.closing(connection):
            connection.request(method, target, body, {key.replace("_", "-"): value for key, value in headers.items()})
            answer = connection.getresponse()
            return answer.status, answer.headers, answer.read()

    def raw(self, name: str, request: bytes) -> bytes:
        """What comes back for bytes as they are: the first answer, and what follows it at once."""
        with socket.create_connection((self.address, self.ports[name]), 5) as connection:
            connection.sendall(request)
            answer = b""
            with contextlib.suppress(TimeoutError, ConnectionResetError):
                while part := connection.recv(65536):
                    answer += part
                    head, _blank, body = answer.partition(b"\r\n\r\n")
                    length = re.search(rb"(?im)^content-length: (\d+)", head)
                    connection.settimeout(0.03 if request.startswith(b"HEAD") or length and len(body) >= int(length.group(1)) else 1)
            return answer

    @property
    def url(self) -> str:
        return f"{'https' if self.tls else 'http'}://{self.address}:{self.ports['hub']}"

    def log(self) -> bytes:
        """The access log. nginx holds a line back for a second at most."""
        return (self.directory / "logs/access.log").read_bytes()

    def lines(self) -> list[dict[str, Any]]:
        """The access log. Fails when a line is no JSON."""
        return [json.loads(line) for line in self.log().decode().splitlines()]

    def line(self, agent: str) -> dict[str, Any]:
        """The line of the request whose User-Agent this is."""
        found: list[bytes] = []
        quoted = json.dumps(agent).encode()
        until(lambda: bool(found.extend(line for line in self.log().splitlines() if line.endswith(b'"agent":' + quoted + b"}")) or found), 5)
        return dict(json.loads(found[0]))

    def told(self) -> str:
        """What nginx itself had to say."""
        return (self.directory / "stderr").read_text(errors="replace")


def write(directory: Path, files: list[dict[str, Any]]) -> Path:
    """Write the files that belong below this directory, and return the one that is nginx's. Who may read them is as on a host."""
    for each in files:
        path = Path(each["path"])
        if directory in path.parents:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(each["content"])
            path.chmod(int(each.get("mode", "0644"), 8))
            if os.geteuid() == 0 and each.get("owner"):
                shutil.chown(path, "nobody")
    for name in ("work", "logs"):
        (directory / name).mkdir()
        if os.geteuid() == 0:
            shutil.chown(directory / name, "nobody")
    return directory / "etc/nginx.conf"


def directories(directory: Path) -> dict[str, str]:
    return {
        "__mirror_edge_config": str(directory / "etc"), "__mirror_edge_work": str(directory / "work"), "__mirror_edge_logs": str(directory / "logs"),
        "mirror_edge_storage": str(directory.parent / "store"), "mirror_edge_ca_directory": str(directory / "pki"),
    }


def start_nginx(directory: Path, files: list[dict[str, Any]], address: str, ports: dict[str, int], tls: ssl.SSLContext | None = None) -> Edge:
    configuration = write(directory, files)
    with open(directory / "stderr", "wb") as said:
        command = ["nginx", "-e", "stderr", "-g", "daemon off;", "-c", str(configuration)]
        process = subprocess.Popen(command, stdout=said, stderr=said, cwd="/", **unprivileged())
    return Edge(directory, address, ports, process, tls)


def listen(edge: Edge) -> None:
    until(lambda: all(listens(port, edge.address) for port in edge.ports.values()) or edge.process.poll() is not None)
    if edge.process.poll() is not None:
        pytest.fail(edge.told())


@dataclass
class Cache:
    """Distribution as pull_through_cache sets it up, and the registry that is its upstream."""

    hub: Registry
    registry: Registry

    def fill(self, edge: Edge, repository: str, image: Image) -> None:
        """Pull an image by its digest, and wait until it is in the store: distribution commits behind the client's back."""
        for kind, digest in [("manifests", image.digest), *(("blobs", each) for each in image.blobs)]:
            status, _headers, body = edge.request("hub", f"/v2/{repository}/{kind}/{digest}", Accept=image.media_type)
            assert (status, digest_of(body)) == (200, digest)
            self.registry.until_stored(digest)

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        self.registry.stop()
        try:
            yield
        finally:
            self.registry.start()


@dataclass
class Lab:
    """`open`: no TLS and no login; `locked`: TLS and a login; `narrow`: no TLS, for one client. `shapes`: the files of SHAPES.

    `noted` stands where a cache is, `asked` where its coalescer is.
    """

    open: Edge
    locked: Edge
    narrow: Edge
    noted: Upstream
    asked: Upstream
    cache: Cache
    shapes: dict[str, list[dict[str, Any]]]


ONE = [{"name": "one", "url": "https://a.example:8443", "port": 5000, "canary": "a:1", "username": "u", "password": "not-for-the-edge"}]
MANY = [{"name": f"u{number}-{'x' * 40}", "url": "https://[2001:db8::1]:8443", "port": 20000 + number, "canary": "a:1"} for number in range(12)]
SHAPES: dict[str, dict[str, Any]] = {
    "no-upstream": {"mirror_upstreams": [], "mirror_edge_tls": "none"},
    "many-upstreams": {"mirror_upstreams": MANY},
    "many-upstreams-without-tls": {"mirror_upstreams": MANY, "mirror_edge_tls": "none"},
    "all-addresses-nobody": {"mirror_upstreams": ONE, "mirror_edge_tls": "none", "mirror_edge_allowed_networks": []},
    "an-ipv6-address": {"mirror_upstreams": ONE, "mirror_edge_bind": "::1"},
    "an-ipv6-address-in-brackets": {"mirror_upstreams": ONE, "mirror_edge_bind": "[::1]"},
    "secrets": {
        "mirror_upstreams": ONE, "mirror_edge_certificate": "CERTIFICATE", "mirror_edge_private_key": "SECRET-KEY",
        "mirror_edge_htpasswd": "u:{PLAIN}SECRET-LOGIN",
    },
}


@pytest.fixture(scope="module")
def lab(render: Render, base: Path, start_upstream: Callable[..., Upstream], authority: Authority) -> Iterator[Lab]:
    for program in ("nginx", "openssl"):
        if shutil.which(program) is None:
            pytest.fail(f"{program} is missing; these tests run a real one: apt-get install {program}")
    # In a row, so that no port of one upstream is one of another.
    while True:
        noted = start_upstream()
        ports = {name: noted.port - PORT_OFFSETS["cache"] + number for number, name in enumerate(NAMES, -1)}
        taken = {port + offset for port in ports.values() for offset in PORT_OFFSETS.values()} - {noted.port}
        if min(ports.values()) > 1024 and max(ports.values()) <= HIGHEST_EDGE_PORT and all(map(is_free, taken)):
            break
        noted.stop()
    shared = {
        "mirror_upstreams": [{"name": name, "url": f"http://{name}.test", "port": port, "canary": "svc/app:1"} for name, port in ports.items()],
        "pull_through_cache_storage": str(base / "store"),
    }
    apr1 = subprocess.run(["openssl", "passwd", "-apr1", "-salt", "mirror", PASSWORD], capture_output=True, text=True, check=True).stdout
    bcrypt = "$2a$05$CCCCCCCCCCCCCCCCCCCCC.E5YPO9kmyuRGyh0XouQYb4YMJKvyOeW"
    given = {
        "mirror_edge_tls": "given", "mirror_edge_certificate": authority.server_certificate.read_text(),
        "mirror_edge_private_key": authority.server_key.read_text(), "mirror_edge_htpasswd": f"plain:{{PLAIN}}{PASSWORD}\napr1:{apr1}bcrypt:{bcrypt}\n",
    }
    edges = {
        "open": {"mirror_edge_tls": "none", "mirror_edge_bind": "127.0.0.2"},
        "locked": {**given, "mirror_edge_bind": "127.0.0.1"},
        "narrow": {
            "mirror_edge_tls": "none", "mirror_edge_bind": "127.0.0.3", "mirror_edge_allowed_networks": [f"{ALLOWED_CLIENT}/32", "10.0.0.0/8", "fc00::/7"],
        },
    }
    sets = {**{name: {**shared, **each} for name, each in edges.items()}, **{name: {**given, **each} for name, each in SHAPES.items()}}
    # At once, because it is Ansible's start that takes time.
    rendered = dict(zip(sets, render("mirror_edge", *({**directories(base / name), **each} for name, each in sets.items()))))
    (cache_files,) = render("pull_through_cache", shared)
    hub = Registry(ports["hub"] + PORT_OFFSETS["coalescer"], ports["hub"] + PORT_OFFSETS["front"], base / "upstream")
    asked = start_upstream(port=ports["noted"] + PORT_OFFSETS["coalescer"])
    cache = Registry(ports["hub"] + PORT_OFFSETS["cache"], ports["hub"] + PORT_OFFSETS["debug"], base / "store/hub")
    trusted = ssl.create_default_context(cafile=str(authority.certificate))
    running: dict[str, Edge] = {}
    try:
        hub.start()
        hub.push("svc/app", "1", IMAGE)
        (base / "store").mkdir()
        cache.start(cache_configuration(cache_files, "hub"))
        for name in edges:
            running[name] = start_nginx(base / name, rendered[name], sets[name]["mirror_edge_bind"], ports, trusted if name == "locked" else None)
        for edge in running.values():
            listen(edge)
        yield Lab(**running, noted=noted, asked=asked, cache=Cache(hub, cache), shapes={name: rendered[name] for name in SHAPES})
    finally:
        for edge in running.values():
            edge.process.send_signal(signal.SIGQUIT)
        for edge in running.values():
            try:
                edge.process.wait(5)
            except subprocess.TimeoutExpired:
                edge.process.terminate()
                edge.process.wait(5)
        cache.stop()
        hub.stop()


@pytest.fixture(autouse=True)
def fresh(lab: Lab) -> None:
    for each in (lab.noted, lab.asked):
        each.seen.clear()
        each.answers.clear()


def error_of(headers: http.client.HTTPMessage, body: bytes) -> dict[str, str]:
    """The one error of a body as registries write it (OCI distribution specification, "Error Codes")."""
    assert (headers["Content-Type"], headers["X-Content-Type-Options"]) == ("application/json", "nosniff")
    assert body.endswith(b"}\n")
    error, = json.loads(body)["errors"]
    return dict(error)


# ---- a pull

def test_an_image_is_pulled(lab: Lab, run_module: RunModule) -> None:
    for _cold_then_warm in range(2):
        pulled = run_module(mirror_pull.main, image="svc/app:1", url=lab.open.url)
        assert (pulled["digest"], pulled["bytes"]) == (IMAGE.digest, IMAGE.size)
        lab.cache.registry.until_stored(IMAGE.digest, *IMAGE.blobs)
    assert pulled["bytes_cached"] == IMAGE.size - len(IMAGE.manifest)


def test_an_image_that_is_not_stored_is_told_of(lab: Lab, run_module: RunModule) -> None:
    image = image_of(layer_of({"fresh": os.urandom(1000)}))
    lab.cache.hub.push("svc/fresh", "1", image)
    pulled = run_module(mirror_pull.main, image="svc/fresh:1", url=lab.open.url)
    assert (pulled["bytes_cached"], [each["cached"] for each in pulled["blobs"]]) == (0, [False, False])


def test_an_image_is_pulled_with_tls_and_login(lab: Lab, run_module: RunModule, authority: Authority) -> None:
    pulled = run_module(
        mirror_pull.main, image=f"svc/app@{IMAGE.digest}", url=lab.locked.url, ca_certificate=str(authority.certificate), username="apr1", password=PASSWORD,
    )
    assert pulled.get("digest") == IMAGE.digest, pulled
    assert "digest" not in run_module(mirror_pull.main, image="svc/app:1", url=lab.locked.url, username="apr1", password=PASSWORD)


def test_a_stored_blob_is_served_without_the_cache(lab: Lab) -> None:
    """To whatever repository asks for it, as registries serve blobs."""
    lab.cache.fill(lab.open, "svc/app", IMAGE)
    headers_of: dict[str, Any] = {}
    with lab.cache.stopped():
        for repository in ("svc/app", "svc/other", "a", "blobs/manifests/tags", "a__b.c--d/" * 20 + "x"):
            for method, body in (("GET", LAYER), ("HEAD", b"")):
                status, headers, got = lab.open.request("hub", f"/v2/{repository}/blobs/{BLOB}", method)
                assert (status, got == body, headers["Content-Length"]) == (200, True, str(len(LAYER)))
                headers_of[method] = {name.lower(): value for name, value in headers.items() if name != "Date"}
        assert headers_of["GET"] == headers_of["HEAD"]
        assert headers_of["GET"]["content-type"] == "application/octet-stream"
        assert headers_of["GET"]["docker-content-digest"] == BLOB
        assert headers_of["GET"]["docker-distribution-api-version"] == "registry/2.0"
        assert headers_of["GET"]["x-content-type-options"] == "nosniff"
        assert headers_of["GET"]["cache-control"] == "max-age=31536000, immutable"
        assert headers_of["GET"]["accept-ranges"] == "bytes"
        # The image's manifest is no blob that the edge serves: it has a type, and it is asked for in one repository.
        manifest = f"/v2/svc/app/manifests/{IMAGE.digest}"
        assert lab.open.request("hub", manifest, Accept=IMAGE.media_type)[0] == 502
    assert lab.open.request("hub", manifest, Accept=IMAGE.media_type)[2] == IMAGE.manifest


@pytest.mark.parametrize("wanted, first, behind_last", [("0-9", 0, 10), ("999000-", 999000, None), ("-7", -7, None), ("5-5", 5, 6)])
def test_a_part_of_a_stored_blob(lab: Lab, wanted: str, first: int, behind_last: int | None) -> None:
    """A docker host goes on where a broken pull ended."""
    lab.cache.fill(lab.open, "svc/app", IMAGE)
    status, headers, body = lab.open.request("hub", f"/v2/svc/app/blobs/{BLOB}", Range=f"bytes={wanted}")
    assert (status, body == LAYER[first:behind_last], headers["Docker-Content-Digest"]) == (206, True, BLOB)
    assert headers["Content-Range"].endswith(f"/{len(LAYER)}")
    assert lab.open.request("hub", f"/v2/svc/app/blobs/{BLOB}", Range=f"bytes={len(LAYER)}-")[0] == 416


def test_a_blob_of_another_upstream_is_not_there(lab: Lab) -> None:
    """Each upstream has its own store."""
    lab.cache.fill(lab.open, "svc/app", IMAGE)
    lab.open.request("noted", f"/v2/svc/app/blobs/{BLOB}")
    assert [seen.target for seen in lab.noted.seen] == [f"/v2/svc/app/blobs/{BLOB}"]


def test_what_the_upstream_does_not_have(lab: Lab) -> None:
    """Distribution's own words pass."""
    status, _headers, body = lab.open.request("hub", "/v2/svc/none/manifests/1")
    assert (status, json.loads(body)["errors"][0]["code"]) == (404, "MANIFEST_UNKNOWN")


# ---- what reaches the cache

@pytest.mark.parametrize("target", [
    "/v2/a/manifests/latest", f"/v2/a/manifests/{DIGEST}", f"/v2/a/b/c/blobs/{DIGEST}", "/v2/a/tags/list", "/v2/a__b.c--d/x/manifests/V1.0_rc-2",
    "/v2/manifests/blobs/manifests/latest", f"/v2/{'a' * 255}/manifests/{'t' * 128}", f"/v2/{'a/' * 127}b/manifests/1", "/v2/a/tags/list?n=100&last=v1.2",
    # containerd names the registry that it means, and writes the colon before a port as net/url does.
    f"/v2/a/blobs/{DIGEST}?ns=docker.io", "/v2/a/manifests/latest?ns=registry.example.com%3A5000",
])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_a_valid_pull_passes_as_it_is(lab: Lab, method: str, target: str) -> None:
    status, _headers, body = lab.open.request("noted", target, method)
    assert (status, body) == (200, b"" if method == "HEAD" else b"{}")
    assert [(seen.method, seen.target) for seen in lab.noted.seen] == [(method, target)]


@pytest.mark.parametrize("name", ["open", "locked"])
def test_what_the_docker_host_knows_of_itself_ends_at_the_edge(lab: Lab, name: str) -> None:
    """Its login above all; but not what it accepts, which Docker writes in several lines."""
    edge: Edge = getattr(lab, name)
    edge.request(
        "noted", MANIFEST, Authorization=basic("plain", PASSWORD), Cookie="session=1", X_Forwarded_For="10.1.2.3", X_Forwarded_Proto="gopher",
        X_Forwarded_Host="evil.example", Forwarded="for=10.1.2.3", X_HTTP_Method_Override="DELETE", X_Original_URL="/metrics", User_Agent="docker/28.1",
    )
    seen, = lab.noted.seen
    assert (seen.headers["x-forwarded-for"], seen.headers["x-forwarded-proto"]) == ("127.0.0.1", "https" if edge.tls else "http")
    assert (seen.headers["host"], seen.headers["user-agent"]) == (f"{edge.address}:{edge.ports['noted']}", "docker/28.1")
    passed = set(seen.headers) - {"host", "user-agent", "connection", "accept-encoding", "accept"}
    assert passed == {"x-forwarded-for", "x-forwarded-proto"}


def test_what_is_accepted_arrives(lab: Lab) -> None:
    lab.open.raw("noted", get(MANIFEST, "Accept: text/plain", "Accept: application/vnd.oci.image.index.v1+json", "If-None-Match: x", "Range: bytes=0-1"))
    seen, = lab.noted.seen
    # The note keeps the last line of a name.
    assert seen.headers["accept"].endswith("application/vnd.oci.image.index.v1+json")
    assert (seen.headers["if-none-match"], seen.headers["range"]) == ("x", "bytes=0-1")


def test_a_cookie_of_the_cache_does_not_leave(lab: Lab) -> None:
    lab.noted.answers[MANIFEST] = Answer(headers={"Set-Cookie": "a=b", "X-Content-Type-Options": "nosniff", "Docker-Content-Digest": DIGEST})
    _status, headers, _body = lab.open.request("noted", MANIFEST)
    assert (headers["Set-Cookie"], headers.get_all("X-Content-Type-Options"), headers["Docker-Content-Digest"]) == (None, ["nosniff"], DIGEST)


@pytest.mark.parametrize("status", [401, 403, 429])
def test_answers_of_the_cache_pass(lab: Lab, status: int) -> None:
    lab.noted.answers[MANIFEST] = Answer(status, {"Retry-After": "7", "Content-Type": "application/json"}, b'{"errors":[]}')
    got, headers, body = lab.open.request("noted", MANIFEST)
    assert (got, headers["Retry-After"], headers["Content-Type"], body) == (status, "7", "application/json", b'{"errors":[]}')
    assert lab.asked.seen == []


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("status", [200, 404, 429, 502, 503])
@pytest.mark.parametrize("of_the_cache", [404, 500])
def test_what_the_cache_does_not_have_the_upstream_says(lab: Lab, of_the_cache: int, status: int, method: str) -> None:
    """Distribution says 404 when the upstream has no such tag, and when it could not be asked."""
    lab.noted.answers[MANIFEST] = Answer(of_the_cache, {"Content-Type": "application/json"}, b'{"errors":["of the cache"]}')
    lab.asked.answers[MANIFEST] = Answer(status, {"Retry-After": "7", "Content-Type": "application/json"}, b'{"errors":["of the upstream"]}')
    got, headers, body = lab.open.request("noted", MANIFEST, method, Authorization=basic("plain", PASSWORD))
    assert (got, headers["Retry-After"], headers["Content-Type"]) == (status, "7", "application/json")
    assert body == (b'{"errors":["of the upstream"]}' if method == "GET" else b"")
    seen, = lab.asked.seen
    assert (seen.method, seen.target, seen.headers["x-mirror-why"]) == (method, MANIFEST, "true") and "authorization" not in seen.headers
    assert "x-mirror-why" not in lab.noted.seen[0].headers


@pytest.mark.parametrize("of_the_cache", [404, 500])
def test_a_blob_that_the_cache_can_not_get_is_asked_about(lab: Lab, of_the_cache: int) -> None:
    target = f"/v2/svc/app/blobs/{DIGEST}"
    lab.noted.answers[target] = Answer(of_the_cache, {}, b"of the cache")
    lab.asked.answers[target] = Answer(503, {"Content-Type": "application/json"}, b'{"errors":["why"]}')
    assert lab.open.request("noted", target)[::2] == (503, b'{"errors":["why"]}')
    assert [seen.headers["x-mirror-why"] for seen in lab.asked.seen] == ["true"]


def test_a_challenge_does_not_reach_a_docker_host(lab: Lab) -> None:
    lab.noted.answers[MANIFEST] = Answer(401, {"WWW-Authenticate": 'Bearer realm="http://127.0.0.1:1/token"'})
    assert lab.open.request("noted", MANIFEST)[1]["WWW-Authenticate"] is None


def test_a_coalescer_that_is_gone_is_told(lab: Lab) -> None:
    target = "/v2/svc/none/manifests/1"
    lab.cache.hub.stop()
    try:
        status, headers, body = lab.open.request("hub", target)
        assert (status, error_of(headers, body)["code"]) == (502, "UNAVAILABLE")
    finally:
        lab.cache.hub.start()


def test_a_cache_that_is_broken_is_named(lab: Lab) -> None:
    lab.noted.answers[MANIFEST] = Answer(503, {}, b"storage")
    status, headers, body = lab.open.request("noted", MANIFEST)
    assert status == 502 and "mirrorfleet-cache@noted" in error_of(headers, body)["message"]
    assert lab.asked.seen == []


def test_the_api_version_is_answered_by_the_edge(lab: Lab) -> None:
    for name in NAMES:
        for target in ("/v2/", "/v2/?ns=docker.io"):
            status, headers, body = lab.open.request(name, target)
            assert (status, json.loads(body)) == (200, {})
            assert (headers["Content-Type"], headers["Docker-Distribution-Api-Version"]) == ("application/json", "registry/2.0")
            assert headers.get_all("X-Content-Type-Options") == ["nosniff"]
    assert lab.noted.seen == []


# ---- who is let in

def test_a_login_is_asked_for(lab: Lab) -> None:
    lab.cache.fill(lab.open, "svc/app", IMAGE)
    targets = ["/v2/", "/v2/svc/app/manifests/1", f"/v2/svc/app/blobs/{BLOB}"]
    for target in targets:
        for headers in ({}, {"Authorization": basic("plain", "wrong")}, {"Authorization": basic("nobody", PASSWORD)}, {"Authorization": f"Bearer {PASSWORD}"}):
            status, answered, body = lab.locked.request("hub", target, **headers)
            assert (status, answered["WWW-Authenticate"]) == (401, 'Basic realm="mirror"')
            assert LAYER[:100] not in body
        for user, password in LOGINS.items():
            status, _headers, _body = lab.locked.request("hub", target, Authorization=basic(user, password), Accept=IMAGE.media_type)
            assert (target, user, status) == (target, user, 200)
    assert lab.locked.request("noted", MANIFEST)[0] == 401
    assert lab.noted.seen == []


def test_plain_http_is_refused_where_tls_is_spoken(lab: Lab) -> None:
    assert lab.locked.raw("noted", get(MANIFEST, f"Authorization: {basic('plain', PASSWORD)}")).startswith(b"HTTP/1.1 400 ")
    assert lab.noted.seen == []


def test_tls_is_the_given_certificate_and_no_old_version(lab: Lab, authority: Authority) -> None:
    address = (lab.locked.address, lab.locked.ports["hub"])
    assert ssl.get_server_certificate(address).strip() == authority.server_certificate.read_text().strip()
    old = ssl.create_default_context(cafile=str(authority.certificate))
    with pytest.warns(DeprecationWarning):
        old.minimum_version = ssl.TLSVersion.TLSv1
        old.maximum_version = ssl.TLSVersion.TLSv1_1
    old.set_ciphers("ALL:@SECLEVEL=0")
    with socket.create_connection(address, 5) as connection, pytest.raises((ssl.SSLError, ConnectionResetError)):
        old.wrap_socket(connection, server_hostname=lab.locked.address)


def test_only_allowed_networks_are_served(lab: Lab) -> None:
    lab.cache.fill(lab.open, "svc/app", IMAGE)
    for name, target in [("hub", f"/v2/svc/app/blobs/{BLOB}"), ("hub", "/v2/svc/app/manifests/1"), ("hub", "/v2/"), ("noted", MANIFEST)]:
        for method in ("GET", "HEAD"):
            for deceit in ({}, {"X_Forwarded_For": ALLOWED_CLIENT, "X_Real_IP": ALLOWED_CLIENT, "Forwarded": f"for={ALLOWED_CLIENT}"}):
                status, headers, body = lab.narrow.request(name, target, method, client=FORBIDDEN_CLIENT, **deceit)
                assert status == 403
                if method == "GET":
                    error = error_of(headers, body)
                    assert error["code"] == "DENIED" and FORBIDDEN_CLIENT in error["message"]
    assert lab.noted.seen == []
    for name, target in [("hub", f"/v2/svc/app/blobs/{BLOB}"), ("hub", "/v2/"), ("noted", MANIFEST)]:
        assert lab.narrow.request(name, target, client=ALLOWED_CLIENT)[0] == 200


# ---- what is refused

@pytest.mark.parametrize("target", [MANIFEST, f"/v2/svc/other/blobs/{DIGEST}", "/v2/svc/app/tags/list"])
def test_a_dead_cache_is_named_at_once(lab: Lab, target: str) -> None:
    start = time.monotonic()
    status, headers, body = lab.open.request("dead", target)
    assert (status, time.monotonic() - start < 8) == (502, True)
    error = error_of(headers, body)
    assert error["code"] == "UNAVAILABLE" and "the cache of dead " in error["message"] and "mirrorfleet-cache@dead" in error["message"]
    assert lab.open.request("dead", target, "HEAD")[0] == 502


def test_a_cache_that_comes_back_is_asked_at_once(lab: Lab) -> None:
    target = "/v2/svc/app/manifests/1"
    with lab.cache.stopped():
        for _again in range(3):
            assert lab.open.request("hub", target, Accept=IMAGE.media_type)[0] == 502
    assert lab.open.request("hub", target, Accept=IMAGE.media_type)[0] == 200


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "PROPFIND", "TRACE"])
@pytest.mark.parametrize("target", [MANIFEST, "/v2/", "/v2/a/blobs/uploads/", f"/v2/a/blobs/{DIGEST}"])
def test_a_mirror_is_read_only(lab: Lab, method: str, target: str) -> None:
    for body in (None, b"x" * 100_000) if method in ("POST", "PUT", "PATCH") else (None,):
        status, headers, got = lab.open.request("noted", target, method, body)
        assert status == 405
        error = error_of(headers, got)
        assert error["code"] == "UNSUPPORTED" and "noted.test" in error["message"]
    assert lab.noted.seen == []


def test_what_is_no_pull_is_refused_in_words(lab: Lab) -> None:
    for target in ("/", "/v2", "/v1/_ping", "/v2/_catalog", "/v2/A/manifests/1"):
        status, headers, body = lab.open.request("noted", target)
        assert (status, error_of(headers, body)["code"]) == (404, "NAME_INVALID")
    assert lab.noted.seen == []


EDGE_ATTACKS = {
    **FRONT_ATTACKS,
    "root of the store": get("/v2/a/blobs/sha256:../../../../../../etc/passwd"),
    "digest in upper case": get(f"/v2/a/blobs/sha256:{'A' * 64}"),
    "digest and more": get(f"/v2/a/blobs/{DIGEST}/../data"),
    "digest and an encoded NUL": get(f"/v2/a/blobs/{DIGEST}%00"),
    "digest and an encoded line": get(f"/v2/a/blobs/{DIGEST}%0d%0aX-A:%20b"),
    "double encoded slashes": get("/v2/..%252f..%252fapi/manifests/latest"),
    "encoded slash after v2": get("/v2%2f_catalog"),
    "encoded catalog": get("/v2/%5fcatalog"),
    "catalog with a query": get("/v2/_catalog?n=10000"),
    "catalog behind dots": get("/v2/a/manifests/../../_catalog"),
    "encoded backslashes": get("/v2/..%5c..%5capi/manifests/latest"),
    "encoded fragment": get("/v2/a/manifests/latest%23"),
    "encoded question mark": get("/v2/a/manifests/latest%3fx=y"),
    "line feed in the query": get("/v2/a/manifests/latest?x=%0d%0aX-A:%20b"),
    "long query": get(f"{MANIFEST}?x={'a' * 600}"),
    "absolute URI of another host's catalog": get("http://169.254.169.254/v2/_catalog"),
    "absolute URI with dots": get("http://127.0.0.1/v2/../api/manifests/latest"),
    "upload of an id": get("/v2/a/blobs/uploads/0c8a3a4e-5a1f-4d2d-8d3e-1f3a5b7c9d1e?_state=x"),
    "upload by GET and override": get("/v2/a/blobs/uploads/", "X-HTTP-Method-Override: POST"),
    "one byte of a body": get(MANIFEST, "Content-Length: 1") + b"x",
    "one chunk of a byte": get(MANIFEST, "Transfer-Encoding: chunked") + b"1\r\nx\r\n0\r\n\r\n",
    "chunks of a request": get(MANIFEST, "Transfer-Encoding: chunked") + b"%x\r\n%b\r\n0\r\n\r\n" % (len(SMUGGLED), SMUGGLED),
    "body of a HEAD": get(MANIFEST, "Content-Length: 1", method="HEAD") + b"x",
    "GET that is a DELETE": get(MANIFEST, "X-HTTP-Method-Override: DELETE", "X-HTTP-Method: DELETE", "X-Method-Override: DELETE"),
    "GET of another path": get(MANIFEST, "X-Original-URL: /v2/_catalog", "X-Rewrite-URL: /v2/_catalog"),
    "upgrade to HTTP/2": get(MANIFEST, "Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAAP__"),
    "two hosts": get(MANIFEST, "Host: evil.example"),
    "no host": f"GET {MANIFEST} HTTP/1.1\r\n\r\n".encode(),
    "host with a path": f"GET {MANIFEST} HTTP/1.1\r\nHost: a/../b\r\n\r\n".encode(),
    "hidden header": get(MANIFEST, "X-A: b\rContent-Length: 5") + b"12345",
    "NUL in a header": get(MANIFEST, "X-A: b\0c"),
    "header without end": get(MANIFEST, f"X-A: {'a' * 40000}"),
    "expectation of a body": get(MANIFEST, "Expect: 100-continue", "Content-Length: 5"),
    "HTTP/3.0": get(MANIFEST, version="HTTP/3.0"),
}
# Valid pulls in an odd dress: distribution may see them, as the plain pull that they are (RFC 9112, 3.2.2: a server takes the absolute form).
LATEST = "/v2/a/manifests/latest"
PLAIN = {
    "absolute URI": LATEST, "absolute URI of another host": LATEST, "HTTP/0.9": LATEST, "tag list with an unknown query": "/v2/a/tags/list?n=1&x=/../",
    "chunked body": MANIFEST, "one byte of a body": MANIFEST, "one chunk of a byte": MANIFEST, "body of a HEAD": MANIFEST,
    "GET that is a DELETE": MANIFEST, "GET of another path": MANIFEST, "upgrade to HTTP/2": MANIFEST,
}
HARMLESS = {"host", "connection", "x-forwarded-for", "x-forwarded-proto", "http2-settings"}


@pytest.mark.parametrize("attack", EDGE_ATTACKS)
def test_an_attack_is_refused_and_does_not_arrive(lab: Lab, attack: str) -> None:
    answer = lab.open.raw("noted", EDGE_ATTACKS[attack])
    # The second is what the server behind the edge says of bytes that are left over from a body.
    assert b"root:" not in answer and b"Unsupported method" not in answer
    arrived = [(seen.method, seen.target, set(seen.headers) - HARMLESS) for seen in lab.noted.seen]
    if arrived:
        assert arrived == [("HEAD" if attack.endswith("HEAD") else "GET", PLAIN.get(attack), set())]
        return
    head, _blank, body = answer.partition(b"\r\n\r\n")
    status = head.split()[1] if head else b""
    assert status in (b"400", b"404", b"405", b"413", b"414", b"417", b"501", b"505"), answer[:200]
    if status in (b"404", b"405"):
        assert json.loads(body.split(b"HTTP/1.1 ")[0])["errors"][0]["code"]


def test_two_requests_on_one_connection_are_two(lab: Lab) -> None:
    """After a refused one the connection is closed, or the next is judged for itself."""
    answer = lab.open.raw("noted", get("/v2/_catalog") + get("/v2/../x") + get("/v2/_catalog"))
    assert re.findall(rb"HTTP/1.1 (\d+)", answer) in ([b"404", b"400"], [b"404", b"404", b"404"], [b"404"])
    assert lab.noted.seen == []


# ---- the log

def test_the_log_says_who_what_and_where(lab: Lab) -> None:
    lab.cache.fill(lab.open, "svc/app", IMAGE)
    blob = f"/v2/svc/any/blobs/{BLOB}"
    # A line comes at most a second late, so all requests are made before the first line is waited for.
    lab.open.request("hub", blob, User_Agent='from "store"')
    lab.open.request("hub", "/v2/svc/app/manifests/1?ns=docker.io", "HEAD", User_Agent="from cache", Accept=IMAGE.media_type)
    lab.open.request("hub", "/v2/", User_Agent="from edge")
    lab.open.request("dead", MANIFEST, User_Agent="from nowhere")
    lab.locked.request("noted", "/v2/_catalog?token=hidden-query", "POST", User_Agent="refused")
    lab.locked.request(
        "noted", MANIFEST + "?token=hidden-query", Authorization=basic("plain", PASSWORD), Cookie="a=hidden-cookie", Referer="http://a/?hidden-referer",
        User_Agent="with login",
    )
    store, cache = lab.open.line('from "store"'), lab.open.line("from cache")
    edge, nowhere = lab.open.line("from edge"), lab.open.line("from nowhere")
    refused, login = lab.locked.line("refused"), lab.locked.line("with login")
    for line in (store, cache, edge, nowhere, refused, login):
        assert set(line) == LOG_KEYS
        assert line["client"] == "127.0.0.1"
        assert abs(datetime.fromisoformat(line["time"]).timestamp() - time.time()) < 60
        assert 0 <= line["seconds"] < 10

    def told(line: dict[str, Any]) -> tuple[Any, ...]:
        return line["upstream"], line["method"], line["path"], line["status"], line["source"], line["user"]

    assert told(store) == ("hub", "GET", blob, 200, "store", "") and store["bytes"] == len(LAYER)
    assert told(cache) == ("hub", "HEAD", "/v2/svc/app/manifests/1", 200, "cache", "") and cache["bytes"] == 0
    assert told(edge)[:4] == ("hub", "GET", "/v2/", 200) and edge["source"] != "store"
    assert told(nowhere) == ("dead", "GET", MANIFEST, 502, "cache", "")
    assert told(refused)[:4] == ("noted", "POST", "/v2/_catalog", 405) and refused["source"] != "store"
    assert told(login) == ("noted", "GET", MANIFEST, 200, "cache", "plain")
    for hidden in (b"hidden", PASSWORD.encode(), basic("plain", PASSWORD)[6:].encode(), b"docker.io"):
        assert hidden not in lab.locked.log() + lab.open.log()


def test_whatever_comes_is_one_line_of_json(lab: Lab) -> None:
    """After all attacks too; and what no upstream was chosen for is the upstream's whose port it came to."""
    for number, odd in enumerate((b'"', b"\\", b"\xff\xfe", b"\x1b[31m", b"\xe2\x80\xa8", b"a,b:{}")):
        lab.open.raw("noted", f"GET /v2/odd/manifests/{number}".encode() + b" HTTP/1.1\r\nHost: a\r\nUser-Agent: " + odd + b"\r\n\r\n")
        lab.open.raw("noted", b"GET /v2/odd" + odd + b" HTTP/1.1\r\nHost: a\r\n\r\n")
        lab.open.raw("noted", get("/v2/odd", f"Authorization: Basic {base64.b64encode(odd + b':x').decode()}"))
    lab.open.raw("noted", b"no HTTP at all\r\n\r\n")
    lab.open.request("noted", "/v2/", User_Agent="the last one")
    lab.open.line("the last one")
    lines = lab.open.lines()
    assert all(set(line) == LOG_KEYS and isinstance(line["status"], int) for line in lines)
    assert {line["upstream"] for line in lines if line["path"].startswith("/v2/odd")} == {"noted"}
    assert {line["upstream"] for line in lines} <= set(NAMES)


# ---- the files

def test_secrets_are_for_one_user(lab: Lab) -> None:
    files = lab.shapes["secrets"]
    secret = {each["path"]: each for each in files if "SECRET-" in each["content"]}
    assert {Path(path).name for path in secret} == {"tls.key", "htpasswd"}
    assert {(each["owner"], each["mode"], each["secret"]) for each in secret.values()} == {("mirrorfleet-edge", "0400", True)}
    assert not any("not-for-the-edge" in each["content"] for each in files)
    # A key or a certificate that changes is read again.
    assert {Path(each["path"]).name for each in files if each.get("needs") == "reload"} == {"nginx.conf", "tls.crt", "tls.key"}


def test_nginx_takes_every_shape(lab: Lab, base: Path) -> None:
    """Without a warning, as the user who runs it: no upstream, many, every way to bind, a host of an address."""
    for name in set(SHAPES) - {"secrets"}:
        directory = base / name
        command = ["nginx", "-e", "stderr", "-t", "-q", "-c", str(write(directory, lab.shapes[name]))]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd="/", **unprivileged())
        assert (name, done.stderr, done.returncode) == (name, "", 0)
