# Copyright (c) 2026, mirrorfleet contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0
"""The edge: its configuration, rendered by Ansible, run by nginx, between real clients and distribution as the role sets it up."""

from __future__ import annotations

import base64
import contextlib
import http.client
import itertools
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

from ansible_collections.mirrorfleet.registry.plugins.module_utils import edge_figures
from ansible_collections.mirrorfleet.registry.plugins.module_utils.upstreams import PORT_OFFSETS
from ansible_collections.mirrorfleet.registry.plugins.modules import mirror_pull
from ansible_collections.mirrorfleet.registry.tests.unit.conftest import (
    Authority,
    Image,
    Registry,
    RunModule,
    ansible,
    digest_of,
    image_of,
    layer_of,
    listens,
    until,
)
from ansible_collections.mirrorfleet.registry.tests.unit.roles.conftest import Answer, Render, Upstream, cache_configuration, unprivileged, upstream_port
from ansible_collections.mirrorfleet.registry.tests.unit.roles.test_haproxy_front import DIGEST, MANIFEST, get

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
AT_ONCE, PER_SECOND, UNLIMITED_CLIENT = 3, 4, "127.0.0.8"


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

    def connect(self, name: str, client: str = "127.0.0.1") -> socket.socket:
        """A connection whose client takes in little unless it reads."""
        plain = socket.socket()
        plain.settimeout(15)
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        plain.bind((client, 0))
        plain.connect((self.address, self.ports[name]))
        return self.tls.wrap_socket(plain, server_hostname=self.address) if self.tls else plain

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
    """`open`: no TLS, no login, no limits; `locked`: TLS and a login; `narrow`: no TLS, for one client; `tight` and `tight_tls`: with
    limits. `shapes`: the files of SHAPES.

    `noted` stands where a cache is, `asked` where its coalescer is.
    """

    open: Edge
    locked: Edge
    narrow: Edge
    tight: Edge
    tight_tls: Edge
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
    "no-limit-of-connections": {"mirror_upstreams": ONE, "mirror_edge_client_connections": 0, "mirror_edge_unlimited_networks": []},
    "no-limit-of-requests": {"mirror_upstreams": ONE, "mirror_edge_client_requests_per_second": 0},
    "the-highest-limits": {"mirror_upstreams": ONE, "mirror_edge_client_connections": 65535, "mirror_edge_client_requests_per_second": 65535},
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
    ports = {name: upstream_port() for name in NAMES}
    noted = start_upstream(port=ports["noted"] + PORT_OFFSETS["cache"])
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
    tight = {
        "mirror_edge_client_connections": AT_ONCE, "mirror_edge_client_requests_per_second": PER_SECOND,
        "mirror_edge_unlimited_networks": [f"{UNLIMITED_CLIENT}/32"],
    }
    unlimited = {"mirror_edge_client_connections": 0, "mirror_edge_client_requests_per_second": 0, "mirror_edge_unlimited_networks": []}
    edges = {
        "open": {"mirror_edge_tls": "none", "mirror_edge_bind": "127.0.0.2", **unlimited},
        "locked": {**given, "mirror_edge_bind": "127.0.0.1"},
        "narrow": {
            "mirror_edge_tls": "none", "mirror_edge_bind": "127.0.0.3", "mirror_edge_allowed_networks": [f"{ALLOWED_CLIENT}/32", "10.0.0.0/8", "fc00::/7"],
        },
        "tight": {"mirror_edge_tls": "none", "mirror_edge_bind": "127.0.0.4", **tight},
        "tight_tls": {**given, "mirror_edge_htpasswd": "", "mirror_edge_bind": "127.0.0.5", **tight},
    }
    sets = {**{name: {**shared, **each} for name, each in edges.items()}, **{name: {**given, **each} for name, each in SHAPES.items()}}
    # At once, because it is Ansible's start that takes time.
    rendered = dict(zip(sets, render("mirror_edge", *({**directories(base / name), **each} for name, each in sets.items()))))
    (cache_files,) = render("pull_through_cache", shared)
    hub = Registry(ports["hub"] + PORT_OFFSETS["coalescer"], ports["hub"] + PORT_OFFSETS["front"], base / "upstream")
    asked = start_upstream(port=ports["noted"] + PORT_OFFSETS["coalescer"])
    cache = Registry(ports["hub"] + PORT_OFFSETS["cache"], ports["hub"] + PORT_OFFSETS["debug"], base / "store/hub")
    trusted, any_name = (ssl.create_default_context(cafile=str(authority.certificate)) for _each in range(2))
    any_name.check_hostname = False  # the certificate is for 127.0.0.1
    tls = {"locked": trusted, "tight_tls": any_name}
    running: dict[str, Edge] = {}
    try:
        hub.start()
        hub.push("svc/app", "1", IMAGE)
        (base / "store").mkdir()
        cache.start(cache_configuration(cache_files, "hub"))
        for name in edges:
            running[name] = start_nginx(base / name, rendered[name], sets[name]["mirror_edge_bind"], ports, tls.get(name))
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


def test_many_parts_at_once_are_the_whole(lab: Lab) -> None:
    lab.cache.fill(lab.open, "svc/app", IMAGE)
    for target, content in ((f"/v2/svc/app/blobs/{BLOB}", LAYER), (f"/v2/svc/app/manifests/{IMAGE.digest}", IMAGE.manifest)):
        status, _headers, body = lab.open.request("hub", target, Accept=IMAGE.media_type, Range="bytes=0-0,2-2,4-4")
        assert (status, body == content) == (200, True)


def test_a_blob_of_another_upstream_is_not_there(lab: Lab) -> None:
    """Each upstream has its own store."""
    lab.cache.fill(lab.open, "svc/app", IMAGE)
    lab.open.request("noted", f"/v2/svc/app/blobs/{BLOB}")
    assert [seen.target for seen in lab.noted.seen] == [f"/v2/svc/app/blobs/{BLOB}"]


def test_what_the_upstream_does_not_have(lab: Lab) -> None:
    """Distribution's own words pass."""
    status, _headers, body = lab.open.request("hub", "/v2/svc/none/manifests/1")
    assert (status, json.loads(body)["errors"][0]["code"]) == (404, "MANIFEST_UNKNOWN")


# ---- only what is stored

def only_stored(lab: Lab, name: str, target: str, method: str = "GET", directive: str = "only-if-cached") -> tuple[int, http.client.HTTPMessage, bytes]:
    return lab.open.request(name, target, method, Cache_Control=directive)


def test_what_is_stored_is_told_without_the_cache(lab: Lab) -> None:
    lab.cache.fill(lab.open, "svc/app", IMAGE)
    assert lab.open.request("hub", "/v2/svc/app/manifests/1", Accept=IMAGE.media_type)[0] == 200
    with lab.cache.stopped():
        for target, media_type, digest, content in (
            (f"/v2/svc/any/blobs/{BLOB}", "application/octet-stream", BLOB, LAYER),
            (f"/v2/svc/app/manifests/{IMAGE.digest}?ns=docker.io", "application/json", IMAGE.digest, IMAGE.manifest),
            ("/v2/svc/app/manifests/1", "text/plain", None, IMAGE.digest.encode()),
        ):
            for method, body in (("GET", content), ("HEAD", b"")):
                status, headers, got = only_stored(lab, "hub", target, method, "no-transform, Only-If-Cached")
                assert (status, got == body, headers["Content-Length"]) == (200, True, str(len(content)))
                assert (headers["Content-Type"], headers["Docker-Content-Digest"], headers["Cache-Status"]) == (media_type, digest, "mirror; hit")
                assert headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize("target", [
    "/v2/svc/app/manifests/2", f"/v2/svc/app/manifests/{DIGEST}", f"/v2/svc/app/blobs/{DIGEST}", "/v2/svc/app/tags/list", "/v2/svc/none/manifests/1",
    # The blob is stored, but it is no manifest of this repository; and what is below a repository is none.
    f"/v2/svc/app/manifests/{BLOB}", f"/v2/svc/other/manifests/{IMAGE.digest}", "/v2/svc/manifests/app", "/v2/blobs/manifests/tags/list",
    f"/v2/a/manifests/blobs/{DIGEST}", f"/v2/a/tags/blobs/manifests/{DIGEST}",
])
def test_what_is_not_stored_is_not_fetched(lab: Lab, target: str) -> None:
    lab.cache.fill(lab.open, "svc/app", IMAGE)
    with lab.cache.stopped():
        for method in ("GET", "HEAD"):
            status, headers, body = only_stored(lab, "hub", target, method)
            assert (status, headers["Cache-Status"]) == (504, "mirror; detail=not-stored")
        assert only_stored(lab, "hub", target)[1]["Content-Type"] == "application/json"
    for name in ("noted", "dead"):
        assert only_stored(lab, name, target)[0] == 504
    assert lab.noted.seen == lab.asked.seen == []
    error = error_of(*only_stored(lab, "noted", target)[1:])
    assert "noted.test" in error["message"] and "only-if-cached" in error["message"]


def test_only_the_whole_word_keeps_a_request_here(lab: Lab) -> None:
    for number, directive in enumerate(("no-cache", "x-only-if-cached", "only-if-cached-or-not", "max-age=0")):
        assert only_stored(lab, "noted", MANIFEST, directive=directive)[0] == 200
        assert len(lab.noted.seen) == number + 1


def test_the_edge_says_that_it_understands(lab: Lab) -> None:
    for edge in (lab.open, lab.tight_tls):
        assert edge.request("hub", "/v2/")[1]["Cache-Status"] == "mirror; hit"
    # Of another's answer it does not pass on what it would say itself.
    lab.noted.answers[MANIFEST] = Answer(200, {"Cache-Status": "mirror; hit"}, b"{}")
    assert lab.open.request("noted", MANIFEST)[1]["Cache-Status"] is None


def test_nobody_asks_past_the_edge_s_rules(lab: Lab) -> None:
    """Neither who may ask nor how is another matter for what is stored; and its own paths are not the client's."""
    lab.cache.fill(lab.open, "svc/app", IMAGE)
    only = {"Cache_Control": "only-if-cached"}
    target = f"/v2/svc/app/manifests/{IMAGE.digest}"
    assert lab.locked.request("hub", target, **only)[0] == 401
    assert lab.narrow.request("hub", target, **only)[0] == 403
    assert lab.open.request("hub", target, "PUT", **only)[0] == 405
    for bad in (
        f"/stored{target}", "/stored/", "/v2/../stored/x", "/v2/svc/app/manifests/..", "/v2/svc/app/_manifests/manifests/1", "/v2/svc/%61pp/manifests/1",
    ):
        assert lab.open.request("hub", bad, **only)[0] == 404


def test_to_ask_for_what_is_stored_is_no_use_of_it(lab: Lab) -> None:
    lab.cache.fill(lab.open, "svc/app", IMAGE)
    for number, target in enumerate((f"/v2/svc/app/blobs/{BLOB}", f"/v2/svc/app/manifests/{IMAGE.digest}", "/v2/svc/app/manifests/none")):
        lab.open.request("hub", target, "HEAD", Cache_Control="only-if-cached", User_Agent=f"asks {number}")
    lines = [lab.open.line(f"asks {number}") for number in range(3)]
    assert [(line["source"], line["status"]) for line in lines] == [("edge", 200), ("edge", 200), ("edge", 504)]


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
    assert len(lab.noted.seen) == (2 if of_the_cache == 500 else 1)


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_a_cache_that_fails_for_a_moment_is_asked_again(lab: Lab, method: str) -> None:
    """Distribution 2.8 does while it writes a blob's link anew."""
    target = f"/v2/svc/app/blobs/{DIGEST}"
    lab.noted.answers[target] = Answer(500, {}, b"of the cache", then=Answer(200, {"Docker-Content-Digest": DIGEST}, b"the blob"))
    status, headers, body = lab.open.request("noted", target, method)
    assert (status, body, headers["Cache-Status"]) == (200, b"the blob" if method == "GET" else b"", "mirror; fwd=uri-miss")
    assert (headers["Docker-Content-Digest"], lab.asked.seen) == (DIGEST, [])


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


# ---- how much a client may ask for

LARGE = "c" * 64  # the digest of a blob in the store of `noted` that no socket's buffer holds
each_tight = pytest.mark.parametrize("name", ["tight", "tight_tls"])
_clients = itertools.count(1)


def new_client() -> str:
    """An address that no test has asked from."""
    return f"127.0.1.{next(_clients)}"


@pytest.fixture(scope="module")
def large(base: Path, lab: Lab) -> str:
    """The target of a blob in a store, of zeros without an end that a socket's buffer could hold."""
    path = base / "store/noted/docker/registry/v2/blobs/sha256" / LARGE[:2] / LARGE / "data"
    path.parent.mkdir(parents=True)
    with path.open("wb") as file:
        file.truncate(1 << 28)
    return f"/v2/svc/app/blobs/sha256:{LARGE}"


def statuses(edge: Edge, name: str, request: bytes, count: int, client: str) -> list[bytes]:
    """The answers to so many requests at once on one connection."""
    with edge.connect(name, client) as connection:
        connection.sendall(request * (count - 1) + request.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        with connection.makefile("rb") as answers:
            return re.findall(rb"HTTP/1.1 (\d+)", answers.read())


@each_tight
@pytest.mark.parametrize("path", ["warm", "cold"])
def test_a_client_has_so_many_requests_under_way(lab: Lab, large: str, name: str, path: str) -> None:
    """Over all upstreams together. Others don't notice, and it may go on when one of them is over."""
    edge: Edge = getattr(lab, name)
    client = new_client()
    lab.noted.answers[MANIFEST] = Answer(seconds=5)
    lab.noted.answers["/v2/quick/manifests/1"] = Answer()
    with contextlib.ExitStack() as stack:
        under_way = [stack.enter_context(edge.connect("noted", client)) for _each in range(AT_ONCE)]
        for connection in under_way:
            connection.sendall(get(large if path == "warm" else MANIFEST))
        if path == "warm":
            assert {connection.recv(12) for connection in under_way} == {b"HTTP/1.1 200"}
        else:
            until(lambda: len(lab.noted.seen) == AT_ONCE)
        for other in ("noted", "hub", "dead"):
            status, headers, body = edge.request(other, "/v2/", client=client, User_Agent=f"{name} {path} {other}")
            assert (status, headers["Retry-After"]) == (429, "1")
            error = error_of(headers, body)
            assert error["code"] == "TOOMANYREQUESTS" and client in error["message"] and f"{AT_ONCE} requests at the same time" in error["message"]
        assert edge.request("noted", large, "HEAD", client=client)[0] == edge.request("noted", "/v2/quick/manifests/1", client=client)[0] == 429
        assert edge.request("noted", large, "HEAD", client=new_client())[0] == edge.request("noted", "/v2/quick/manifests/1", client=new_client())[0] == 200
        line = edge.line(f"{name} {path} dead")
        assert (line["status"], line["source"], line["client"], line["upstream"]) == (429, "edge", client, "dead")
        under_way[0].close()
        until(lambda: edge.request("noted", "/v2/", client=client)[0] == 200, 10)
        if path == "cold":
            until(lambda: under_way[1].recv(12) == b"HTTP/1.1 200", 10)


@each_tight
@pytest.mark.parametrize("target, method", [("/v2/", "GET"), (MANIFEST, "GET"), (MANIFEST, "HEAD"), ("large", "HEAD")])
def test_a_client_asks_so_often(lab: Lab, large: str, name: str, target: str, method: str) -> None:
    """What it may ask for in five seconds may come at once. HEAD and pings count. A second later it may ask again."""
    edge: Edge = getattr(lab, name)
    target = large if target == "large" else target
    client = new_client()
    start = time.monotonic()
    answers = statuses(edge, "noted", get(target, method=method), 60, client)
    assert len(answers) == 60 and set(answers) == {b"200", b"429"}
    at_least = 1 + 5 * PER_SECOND
    assert at_least <= answers.count(b"200") <= at_least + PER_SECOND * (1 + time.monotonic() - start)
    assert answers[:at_least] == [b"200"] * at_least
    if target == MANIFEST:
        assert len(lab.noted.seen) == answers.count(b"200")
    # Over all upstreams together. One of these may come when it may ask again.
    assert b"429" in statuses(edge, "hub", get("/v2/"), 10, client)
    assert edge.request("noted", target, method, client=new_client())[0] == 200
    time.sleep(1)
    assert edge.request("hub", "/v2/", client=client)[0] == 200


@each_tight
def test_unlimited_networks_are_unlimited(lab: Lab, large: str, name: str) -> None:
    edge: Edge = getattr(lab, name)
    with contextlib.ExitStack() as stack:
        under_way = [stack.enter_context(edge.connect("noted", UNLIMITED_CLIENT)) for _each in range(3 * AT_ONCE)]
        for connection in under_way:
            connection.sendall(get(large))
        assert {connection.recv(12) for connection in under_way} == {b"HTTP/1.1 200"}
        assert statuses(edge, "noted", get(MANIFEST), 60, UNLIMITED_CLIENT) == [b"200"] * 60


@pytest.mark.parametrize("name, client", [("open", "127.0.0.1"), ("narrow", ALLOWED_CLIENT)])
def test_no_limit_and_the_default_for_loopback(lab: Lab, name: str, client: str) -> None:
    """More than the default limit lets pass at once: 500 a second, for five seconds."""
    assert set(statuses(getattr(lab, name), "noted", get("/v2/"), 6000, client)) == {b"200"}


def test_a_429_of_the_upstream_is_not_the_edge_s(lab: Lab) -> None:
    lab.noted.answers[MANIFEST] = Answer(429, {"Retry-After": "7"}, b"{}")
    client = new_client()
    status, headers, body = lab.tight.request("noted", MANIFEST, client=client, User_Agent="of the upstream")
    assert (status, headers["Retry-After"], body) == (429, "7", b"{}")
    assert lab.tight.line("of the upstream")["source"] == "cache"


def test_who_is_slow_is_not_waited_for(lab: Lab) -> None:
    """A head or a handshake that comes byte for byte ends after ten seconds, a body that nobody wants after five."""
    drips = {
        "head": (lab.tight, get(MANIFEST)[:-2], b"X-A: b\r\n"),
        "line": (lab.tight, b"GET /v2/", b"a"),
        "handshake": (lab.tight_tls, b"\x16\x03\x01\x40\x00\x01", b"\x00"),
        "body": (lab.tight, get(MANIFEST, "Content-Length: 1000000", method="PUT"), b"x"),
    }
    start, ended, client = time.monotonic(), dict[str, float](), new_client()
    with contextlib.ExitStack() as stack:
        under_way = {}
        for name, (edge, first, _more) in drips.items():
            connection = stack.enter_context(socket.create_connection((edge.address, edge.ports["noted"]), 5, (client, 0)))
            connection.sendall(first)
            under_way[name] = connection
        while under_way and time.monotonic() - start < 30:
            for name, connection in list(under_way.items()):
                try:
                    connection.sendall(drips[name][2])
                    connection.settimeout(0.1)
                    while connection.recv(65536):
                        pass
                except TimeoutError:
                    continue
                except OSError:
                    pass
                ended[name] = time.monotonic() - start
                del under_way[name]
            assert lab.tight.request("noted", MANIFEST, client=UNLIMITED_CLIENT)[0] == 200
    assert set(ended) == set(drips)
    assert ended["body"] < 9 and max(ended.values()) < 15
    # They were ended, not refused for their form.
    assert min(ended[name] for name in ("head", "line", "handshake")) > 8


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


@pytest.mark.parametrize("headers", [{"Transfer_Encoding": "chunked"}, {"Content_Length": "5"}, {"Host": "a@b"}])
def test_a_body_or_no_host_is_refused_in_words(lab: Lab, headers: dict[str, str]) -> None:
    """What follows on the connection may be a part of it, so nothing does."""
    status, answered, body = lab.open.request("noted", MANIFEST, **headers)
    assert (status, error_of(answered, body)["code"], answered["Connection"]) == (400, "UNSUPPORTED", "close")
    assert lab.noted.seen == []


# ---- the canary

@pytest.mark.parametrize("name", ["open", "locked"])
@pytest.mark.parametrize("upstream", ["noted", "dead"])
def test_the_canary_is_the_edges_own(lab: Lab, run_module: RunModule, authority: Authority, name: str, upstream: str) -> None:
    """It names the mirror host, needs nothing behind the edge, and is for those who may pull."""
    edge: Edge = getattr(lab, name)
    login = {"username": "plain", "password": PASSWORD} if edge.tls else {}
    url = edge.url.replace(str(edge.ports["hub"]), str(edge.ports[upstream]))
    trust = {"ca_certificate": str(authority.certificate)} if edge.tls else {}
    for platform in ("linux/amd64", "linux/arm64", "linux/arm"):
        pulled = run_module(mirror_pull.main, image="mirrorfleet-edge/canary:1", url=url, platform=platform, retries=0, **login, **trust)
        assert not pulled.get("failed"), pulled["msg"]
    assert (pulled["layers"], lab.noted.seen, lab.asked.seen) == (1, [], [])
    headers = {"Authorization": basic("plain", PASSWORD)} if login else {}
    status, answered, body = edge.request(upstream, "/v2/mirrorfleet-edge/canary/manifests/1?ns=docker.io", **headers)
    assert (status, answered["Content-Type"], answered["Docker-Content-Digest"]) == (200, "application/vnd.oci.image.index.v1+json", digest_of(body))
    assert digest_of(body) == pulled["digest"] and json.loads(body)["annotations"] == {"mirrorfleet.host": "localhost"}
    status, answered, body = edge.request(upstream, "/v2/mirrorfleet-edge/canary/manifests/1", "HEAD", **headers)
    assert (status, answered["Docker-Content-Digest"], body) == (200, pulled["digest"], b"")
    config = edge.request(upstream, f"/v2/mirrorfleet-edge/canary/blobs/{pulled['blobs'][0]['digest']}", **headers)[2]
    assert json.loads(config)["config"]["Labels"] == {"mirrorfleet.host": "localhost"}
    if login:
        assert edge.request(upstream, "/v2/mirrorfleet-edge/canary/manifests/1")[0] == 401
    assert lab.narrow.request(upstream, "/v2/mirrorfleet-edge/canary/manifests/1", client=FORBIDDEN_CLIENT)[0] == 403


# ---- the log

def test_checks_are_not_logged(lab: Lab) -> None:
    """Those of the roles, by the names that they have there. What is refused, or asks for more, is."""
    roles = Path(__file__).resolve().parents[3] / "roles"
    for agent, template in (("mirrorfleet", "haproxy_front/templates/haproxy.cfg.j2"), ("mirrorfleet-address", "virtual_address/templates/check.py")):
        assert re.search(rf"User-Agent:? {agent}\b(?!-)", (roles / template).read_text())
        lab.open.request("noted", "/v2/", "HEAD", User_Agent=agent)
        lab.open.request("noted", "/v2/nothing", User_Agent=agent)
        lab.narrow.request("noted", "/v2/", User_Agent=agent)
    lab.open.request("noted", "/v2/", User_Agent="after the checks")
    lab.open.line("after the checks")
    lab.narrow.line("mirrorfleet-address")
    seen = [(line["agent"], line["path"], line["status"]) for line in (*lab.open.lines(), *lab.narrow.lines()) if line["agent"].startswith("mirrorfleet")]
    for agent in ("mirrorfleet", "mirrorfleet-address"):
        assert [each[1:] for each in seen if each[0] == agent] == [("/v2/nothing", 404), ("/v2/", 403)]


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


def test_the_log_is_counted(lab: Lab, tmp_path: Path) -> None:
    """By front_info, over a rotation in which nginx reopens its log."""
    lab.cache.fill(lab.open, "svc/app", IMAGE)
    path, memory = lab.open.directory / "logs/access.log", tmp_path / "memory"
    lab.open.request("noted", "/v2/", User_Agent="before the count")
    lab.open.line("before the count")

    def counts() -> dict[str, Any]:
        figures = edge_figures.look(str(path), str(memory), 0, remember=True)
        assert figures.unreadable == 0
        return {name: dict(figures.total[name]) for name in ("hub", "noted")}

    def ask(marker: str) -> None:
        for _client in range(3):
            lab.open.request("hub", f"/v2/svc/any/blobs/{BLOB}")
        lab.open.request("hub", f"/v2/svc/app/blobs/{'sha256:' + 'b' * 64}")
        lab.open.request("noted", "/v2/nothing", User_Agent=marker)

    before = counts()
    ask("before the rotation")
    lab.open.line("before the rotation")
    path.rename(path.with_name("access.log.1"))
    ask("into the renamed file")
    lab.open.process.send_signal(signal.SIGUSR1)
    until(path.exists)
    ask("into the new file")
    lab.open.line("into the new file")
    after = counts()
    assert after == counts()
    hub, noted = ({key: after[name][key] - before[name][key] for key in ("requests", "lan_bytes", "hits", "misses")} for name in ("hub", "noted"))
    refused = hub["lan_bytes"] - 9 * len(LAYER)
    assert (hub["requests"], hub["hits"], hub["misses"], noted["requests"]) == (12, 9, 0, 3) and 0 < refused < 3000
    assert after["hub"]["responses"]["4xx"] - before["hub"]["responses"]["4xx"] == 3


def test_whatever_comes_is_one_line_of_json(lab: Lab) -> None:
    """And what no upstream was chosen for is the upstream's whose port it came to."""
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


# ---- the values

BAD_VALUES: dict[str, tuple[str, object, str]] = {
    "no-network": ("mirror_edge_allowed_networks", ["10.0.0.0/8", "localhost", "fc00::/7"], "localhost: write a list of networks"),
    "no-address": ("mirror_edge_unlimited_networks", ["10.0.0.256"], "10.0.0.256: write a list of networks"),
    "no-mask": ("mirror_edge_unlimited_networks", ["::1", "10.0.0.0/33"], "10.0.0.0/33: write a list of networks"),
    "more-than-a-network": ("mirror_edge_unlimited_networks", ["10.0.0.0/8 1; include /etc/passwd"], "include /etc/passwd: write a list of networks"),
    "no-list": ("mirror_edge_allowed_networks", "10.0.0.0/8", "10.0.0.0/8: write a list of networks"),
    "negative": ("mirror_edge_client_connections", -1, "-1: write a whole number from 0"),
    "too-many": ("mirror_edge_client_connections", 65536, "65536: write a whole number from 0, which means no limit, to 65535"),
    "a-fraction": ("mirror_edge_client_requests_per_second", 0.5, "0.5: write a whole number from 0"),
}
GOOD_VALUES: dict[str, tuple[str, object]] = {
    "defaults": ("unused", 0), "no-limit": ("mirror_edge_client_connections", 0), "the-highest": ("mirror_edge_client_requests_per_second", 65535),
    "nobody": ("mirror_edge_unlimited_networks", []), "addresses": ("mirror_edge_allowed_networks", ["10.0.0.1", "2001:DB8::/32", "::", "0.0.0.0/0"]),
}


def test_a_bad_value_is_named_before_anything_is_touched(tmp_path: Path) -> None:
    hosts = {**{name: {case[0]: case[1]} for name, case in BAD_VALUES.items()}, **{name: {case[0]: case[1]} for name, case in GOOD_VALUES.items()}}
    (tmp_path / "inventory.json").write_text(json.dumps({"all": {"hosts": hosts}}))
    check = {"name": "mirrorfleet.registry.mirror_edge", "tasks_from": "check.yml", "rolespec_validate": False}
    variables = {"mirror_upstreams": [], "ansible_python_interpreter": "/nonexistent"}
    (tmp_path / "play.json").write_text(json.dumps([{"hosts": "all", "gather_facts": False, "vars": variables, "tasks": [{"import_role": check}]}]))
    said = ansible("ansible-playbook", "--inventory", "inventory.json", "play.json", directory=tmp_path).stdout
    failed = dict(re.findall(r'failed: \[([\w-]+)\].*"msg": "(.+?)"}', said))
    assert {name: failed.get(name, "").startswith(f"{case[0]}: ") and case[2] in failed[name] for name, case in BAD_VALUES.items()} == dict.fromkeys(
        BAD_VALUES, True), said
    assert set(failed) == set(BAD_VALUES)


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
