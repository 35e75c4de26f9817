# Copyright (c) 2026, mirrorfleet contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0
"""The rewrite front: its configuration, rendered by Ansible, run by HAProxy, between real clients and upstreams."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import shutil
import signal
import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Iterator

import pytest

from ansible_collections.mirrorfleet.registry.plugins.module_utils.haproxy import SERVERS, Figures, ask, servers, uptime
from ansible_collections.mirrorfleet.registry.plugins.module_utils.upstreams import PORT_OFFSETS
from ansible_collections.mirrorfleet.registry.tests.unit.conftest import free_port, until
from ansible_collections.mirrorfleet.registry.tests.unit.roles.conftest import Answer, Render, Upstream, upstream_port

PREFIX = "/artifactory/api/docker/docker-local"
DIGEST = "sha256:" + "a" * 64
PASSWORD = "wander3r-in-the-fog"
CREDENTIAL = base64.b64encode(f"dc-reader:{PASSWORD}".encode()).decode()
MANIFEST = "/v2/team/app/manifests/latest"


@dataclass
class Front:
    """A running HAProxy. `ports` are the loopback ports of the upstreams."""

    directory: Path
    ports: dict[str, int]
    stats_port: int
    process: subprocess.Popen[bytes]

    @property
    def socket(self) -> str:
        return str(self.directory / "admin.sock")

    def request(self, name: str, target: str, method: str = "GET", **headers: str) -> tuple[int, http.client.HTTPMessage, bytes]:
        """The answer to a request that http.client finds well-formed. A `_` in a header's name stands for `-`."""
        connection = http.client.HTTPConnection("127.0.0.1", self.ports[name], timeout=15)
        connection.request(method, target, headers={key.replace("_", "-"): value for key, value in headers.items()})
        answer = connection.getresponse()
        body = answer.read()
        connection.close()
        return answer.status, answer.headers, body

    def raw(self, name: str, request: bytes) -> bytes:
        """What comes back for bytes as they are: the first answer, and what follows it at once."""
        with socket.create_connection(("127.0.0.1", self.ports[name]), 5) as connection:
            connection.sendall(request)
            answer = b""
            try:
                while part := connection.recv(65536):
                    answer += part
                    connection.settimeout(0.1)
            except (TimeoutError, ConnectionResetError):
                pass
            return answer

    def stats(self, target: str) -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", self.stats_port, timeout=5)
        connection.request("GET", target)
        answer = connection.getresponse()
        body = answer.read().decode()
        connection.close()
        return answer.status, body

    def log(self) -> str:
        return (self.directory / "log").read_text()

    def log_lines(self) -> list[dict[str, Any]]:
        """What was logged of requests. Fails when a line of a request is no JSON."""
        return [json.loads(line) for line in self.log().splitlines() if line.startswith("{")]

    def figures(self, name: str) -> Figures:
        return next(each for each in servers(ask(self.socket, SERVERS)) if each["name"] == name)


def write(directory: Path, files: list[dict[str, Any]]) -> Path:
    """Put what belongs into the configuration directory into this one, and return its haproxy.cfg."""
    for each in files:
        if each["path"].startswith("/etc/mirrorfleet/front/"):
            path = directory / Path(each["path"]).name
            path.write_text(each["content"])
            path.chmod(int(each.get("mode", "0644"), 8))
    return directory / "haproxy.cfg"


def listen(front: Front) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and front.process.poll() is None:
        try:
            uptime(ask(front.socket, "show info"))
            return
        except Exception:
            time.sleep(0.05)
    pytest.fail(front.log())


@contextlib.contextmanager
def haproxy(files: list[dict[str, Any]], directory: Path, ports: dict[str, int], stats_port: int) -> Iterator[Front]:
    """A HAProxy of the role's files, `directory` being its run directory."""
    if shutil.which("haproxy") is None:
        pytest.fail("haproxy is missing; these tests run a real one: apt-get install haproxy")
    path = write(directory, files)
    with open(directory / "log", "wb") as log:
        process = subprocess.Popen(["haproxy", "-W", "-db", "-f", str(path)], stdout=log, stderr=log)
    front = Front(directory, ports, stats_port, process)
    try:
        listen(front)
        yield front
    finally:
        process.terminate()
        process.wait(10)


@pytest.fixture(scope="module")
def central(start_upstream: Callable[..., Upstream], certificate: Path) -> Upstream:
    """A registry behind a path prefix, with TLS and Basic authentication."""
    return start_upstream(certificate)


@pytest.fixture(scope="module")
def hub(start_upstream: Callable[..., Upstream], certificate: Path) -> Upstream:
    """A registry with Bearer authentication, and its token endpoint."""
    return start_upstream(certificate)


@pytest.fixture(scope="module")
def plain(start_upstream: Callable[..., Upstream]) -> Upstream:
    """A registry without TLS and without authentication."""
    return start_upstream()


@pytest.fixture(scope="module")
def storage(start_upstream: Callable[..., Upstream], certificate: Path) -> Upstream:
    """The object storage to which a registry redirects."""
    return start_upstream(certificate)


@pytest.fixture(scope="module")
def fragile(start_upstream: Callable[..., Upstream]) -> Upstream:
    """A registry that hangs and dies."""
    return start_upstream()


@pytest.fixture(scope="module")
def front(render: Render, tmp_path_factory: pytest.TempPathFactory, certificate: Path, central: Upstream, hub: Upstream, plain: Upstream,
          fragile: Upstream, storage: Upstream) -> Iterator[Front]:
    directory = tmp_path_factory.mktemp("front")
    ca = certificate.read_text()
    ca = ca[ca.index("-----BEGIN CERTIFICATE"):]
    url = {"central": f"https://localhost:{central.port}", "hub": f"https://localhost:{hub.port}"}
    upstreams: list[dict[str, Any]] = [
        {"name": "central", "url": url["central"], "path_prefix": PREFIX, "username": "dc-reader", "password": PASSWORD, "ca_cert": ca,
         "redirect_hosts": [f"localhost:{storage.port}", "http://other.example"]},
        {"name": "hub", "url": url["hub"], "auth": "bearer", "token_realm": url["hub"] + "/auth/token", "token_service": "hub.test", "ca_cert": ca},
        {"name": "plain", "url": f"http://127.0.0.1:{plain.port}"},
        {"name": "fragile", "url": f"http://127.0.0.1:{fragile.port}"},
        {"name": "untrusted", "url": url["central"]},
        {"name": "unverified", "url": url["central"], "validate_certs": False},
        {"name": "othername", "url": f"https://127.0.0.1:{central.port}", "ca_cert": ca},
        {"name": "nowhere", "url": "https://no-such-registry.invalid"},
        {"name": "dead", "url": "http://127.0.0.1:9"},
    ]
    for each in upstreams:
        each.update(port=upstream_port(), canary="library/busybox:1")
    ports = {each["name"]: each["port"] + PORT_OFFSETS["front"] for each in upstreams}
    stats_port = free_port()
    files, = render("haproxy_front", {
        "mirror_upstreams": upstreams,
        "haproxy_front_stats_bind": f"127.0.0.1:{stats_port}",
        # The upstreams' name is localhost, which no name server needs to know.
        "haproxy_front_resolve": "starting",
        "__haproxy_front_run": str(directory),
    })
    with haproxy(files, directory, ports, stats_port) as running:
        yield running


@pytest.fixture(autouse=True)
def fresh(central: Upstream, hub: Upstream, plain: Upstream, storage: Upstream) -> None:
    for each in (central, hub, plain, storage):
        each.seen.clear()
        each.answers.clear()


def test_a_request_arrives_with_prefix_host_and_credential(front: Front, central: Upstream) -> None:
    status, headers, body = front.request("central", MANIFEST, Accept="application/vnd.oci.image.index.v1+json", Range="bytes=0-9")
    assert (status, body) == (200, b"{}")
    seen, = central.seen
    assert seen.target == PREFIX + MANIFEST
    assert seen.headers["host"] == f"localhost:{central.port}"
    assert seen.headers["authorization"] == f"Basic {CREDENTIAL}"
    assert seen.headers["accept"] == "application/vnd.oci.image.index.v1+json"
    assert seen.headers["range"] == "bytes=0-9"
    assert seen.headers["x-forwarded-for"] == "127.0.0.1"


def test_only_harmless_headers_arrive(front: Front, central: Upstream) -> None:
    front.request(
        "central", MANIFEST, Authorization="Basic c3RvbGVuOnBhc3M=", Cookie="session=1", X_HTTP_Method_Override="DELETE", X_Original_URL="/api/security/users",
        X_Forwarded_For="10.1.2.3", Accept_Encoding="gzip", Connection="upgrade", Upgrade="h2c", User_Agent="docker/26.1",
    )
    seen, = central.seen
    assert set(seen.headers) - {"connection"} == {"host", "authorization", "x-forwarded-for", "accept-encoding", "user-agent"}
    assert seen.headers["authorization"] == f"Basic {CREDENTIAL}"
    assert seen.headers["x-forwarded-for"] == "10.1.2.3"
    assert seen.headers["accept-encoding"] == "identity"


@pytest.mark.parametrize("target", [
    "/v2/a/manifests/latest", f"/v2/a/manifests/{DIGEST}", f"/v2/a/b/c/blobs/{DIGEST}", "/v2/a/tags/list", "/v2/a__b.c--d/x/manifests/V1.0_rc-2",
    "/v2/manifests/blobs/manifests/latest", f"/v2/{'a' * 255}/manifests/{'t' * 128}", "/v2/a/tags/list?n=100&last=v1.2", "/v2/a/tags/list?last=x&n=5",
])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_valid_paths_pass_as_they_are(front: Front, plain: Upstream, method: str, target: str) -> None:
    status, _headers, body = front.request("plain", target, method)
    assert (status, body) == (200, b"" if method == "HEAD" else b"{}")
    assert [(seen.method, seen.target) for seen in plain.seen] == [(method, target)]


SIGNED = "/bucket/blobs%2Fx/data?X-Amz-Signature=a%2Fb&X-Amz-Date=1"


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_storage_is_asked_without_the_credential(front: Front, central: Upstream, storage: Upstream, method: str) -> None:
    status, _headers, body = front.request("central", f"/redirect/https/localhost:{storage.port}{SIGNED}", method, Authorization="Bearer token", Cookie="a=b")
    assert (status, body) == (200, b"{}" if method == "GET" else b"")
    seen, = storage.seen
    assert (seen.method, seen.target, seen.headers["host"]) == (method, SIGNED, f"localhost:{storage.port}")
    assert not {"authorization", "cookie"} & set(seen.headers)
    assert central.seen == []
    until(lambda: "/redirect/https/localhost" in front.log())
    assert "X-Amz" not in front.log()


@pytest.mark.parametrize("target", [
    "/redirect/https/evil.example/x", "/redirect/http/localhost:{port}/x", "/redirect/https/localhost/x", "/redirect/https/localhost:{port}", "/redirect/",
    "/redirect//localhost:{port}/x", "/redirect/https/localhost:{port}.evil.example/x", "/redirect/https/user@localhost:{port}/x",
])
def test_storage_that_is_not_named_is_not_asked(front: Front, storage: Upstream, target: str) -> None:
    status, _headers, body = front.request("central", target.format(port=storage.port))
    assert status == 502
    assert "the upstream central redirects to " in json.loads(body)["errors"][0]["message"]
    assert front.request("hub", f"/redirect/https/localhost:{storage.port}/x")[0] == 502
    assert storage.seen == []


def test_storage_is_only_read(front: Front, storage: Upstream) -> None:
    target = f"/redirect/https/localhost:{storage.port}{SIGNED}"
    for method in ("POST", "PUT", "DELETE"):
        assert front.raw("central", get(target, "Content-Length: 0", method=method)).split()[1] == b"405"
    assert front.raw("central", get(target, f"Content-Length: {len(SMUGGLED)}") + SMUGGLED).split()[1] == b"400"
    assert storage.seen == []


def test_storage_that_redirects_to_itself_is_followed(front: Front, storage: Upstream) -> None:
    storage.answers["/x"] = Answer(302, {"Location": "/y?z"})
    assert front.request("central", f"/redirect/https/localhost:{storage.port}/x")[1]["Location"] == f"https://localhost:{storage.port}/y?z"


def test_an_age_does_not_pass(front: Front, plain: Upstream) -> None:
    plain.answers[MANIFEST] = Answer(headers={"Age": "3600"})
    assert front.request("plain", MANIFEST)[1]["Age"] is None


@pytest.mark.parametrize("status", [401, 403])
def test_who_asks_a_bearer_upstream_why_gets_no_challenge(front: Front, hub: Upstream, status: int) -> None:
    hub.answers[MANIFEST] = Answer(status, {"WWW-Authenticate": 'Bearer realm="https://x.example/token"'})
    got, headers, body = front.request("hub", MANIFEST, X_Mirror_Why="true")
    assert (got, headers["WWW-Authenticate"]) == (404, None) and "the upstream hub " in json.loads(body)["errors"][0]["message"]
    assert front.request("hub", MANIFEST)[0] == status


@pytest.mark.parametrize("status", [401, 403])
def test_a_refusal_of_the_storage_is_named(front: Front, storage: Upstream, status: int) -> None:
    storage.answers["/bucket/x"] = Answer(status, {"WWW-Authenticate": "Basic"})
    got, headers, body = front.request("central", f"/redirect/https/localhost:{storage.port}/bucket/x")
    assert (got, headers["WWW-Authenticate"]) == (502, None)
    assert f"refused this mirror host with {status}" in json.loads(body)["errors"][0]["message"]


def test_a_query_is_dropped_where_it_means_nothing(front: Front, plain: Upstream) -> None:
    front.request("plain", MANIFEST + "?ns=docker.io&x=%2e%2e/")
    assert [seen.target for seen in plain.seen] == [MANIFEST]


def get(target: str, *headers: str, method: str = "GET", version: str = "HTTP/1.1") -> bytes:
    return "\r\n".join((f"{method} {target} {version}", "Host: 127.0.0.1", *headers, "", "")).encode("latin-1")


SMUGGLED = get("/v2/smuggled/manifests/latest")


def test_api_version_is_answered_without_the_upstream(front: Front, central: Upstream, hub: Upstream) -> None:
    for name in ("central", "plain", "dead", "nowhere"):
        status, headers, body = front.request(name, "/v2/")
        assert (status, headers["Docker-Distribution-Api-Version"], body) == (200, "registry/2.0", b"{}")
    status, headers, body = front.request("hub", "/v2/", Host=f"127.0.0.1:{front.ports['hub']}")
    assert status == 401
    assert headers["WWW-Authenticate"] == f'Bearer realm="http://127.0.0.1:{front.ports["hub"]}/token",service="hub.test"'
    assert central.seen == hub.seen == []


def test_a_challenge_names_the_place_that_was_asked(front: Front) -> None:
    """distribution 3.1 wants the realm on the host and port that it asked; a host name from elsewhere is not repeated."""
    for host, named in (("127.0.0.1:17001", "127.0.0.1:17001"), ("evil.example", f"127.0.0.1:{front.ports['hub']}")):
        _status, headers, _body = front.request("hub", "/v2/", Host=host)
        assert headers["WWW-Authenticate"] == f'Bearer realm="http://{named}/token",service="hub.test"'


def test_bearer_goes_to_the_registry_and_basic_to_the_token_endpoint(front: Front, hub: Upstream) -> None:
    challenge = f'Bearer realm="https://localhost:{hub.port}/auth/token",service="hub.test",scope="repository:team/app:pull"'
    hub.answers[MANIFEST] = Answer(401, {"WWW-Authenticate": challenge})
    status, headers, _body = front.request("hub", MANIFEST, Authorization="Basic dTpw")
    assert status == 401
    assert headers["WWW-Authenticate"] == (
        f'Bearer realm="http://127.0.0.1:{front.ports["hub"]}/token",service="hub.test",scope="repository:team/app:pull"'
    )
    hub.answers["/auth/token"] = Answer(body=b'{"token":"t0ken"}')
    query = "?account=u&scope=repository%3Ateam%2Fapp%3Apull&service=hub.test"
    assert front.request("hub", "/token" + query, Authorization="Basic dTpw")[2] == b'{"token":"t0ken"}'
    del hub.answers[MANIFEST]
    assert front.request("hub", MANIFEST, Authorization="Bearer t0ken")[0] == 200
    assert [(seen.target, seen.headers.get("authorization")) for seen in hub.seen] == [
        (MANIFEST, None), ("/auth/token" + query, "Basic dTpw"), (MANIFEST, "Bearer t0ken"),
    ]
    assert hub.seen[1].headers["host"] == f"localhost:{hub.port}"
    assert front.request("hub", "/token", "HEAD")[0] == 405


@pytest.mark.parametrize("location, rewritten", [
    ("https://localhost:{port}" + PREFIX + "/v2/a/blobs/x?y=z", "/v2/a/blobs/x?y=z"),
    ("HTTP://LOCALHOST:{port}" + PREFIX + "/v2/a", "/v2/a"),
    (PREFIX + "/v2/a/blobs/x", "/v2/a/blobs/x"),
    ("/storage/a?sig=1", "https://localhost:{port}/storage/a?sig=1"),
    ("https://localhost:{port}/other/v2/a", "https://localhost:{port}/other/v2/a"),
    ("https://bucket.example.com/blob?X-Amz-Signature=abc%2F", "https://bucket.example.com/blob?X-Amz-Signature=abc%2F"),
    ("https://localhost:{port}.evil.example" + PREFIX + "/v2/a", "https://localhost:{port}.evil.example" + PREFIX + "/v2/a"),
    ("//bucket.example.com/blob", "//bucket.example.com/blob"),
])
def test_locations(front: Front, central: Upstream, location: str, rewritten: str) -> None:
    blob = f"/v2/team/app/blobs/{DIGEST}"
    central.answers[PREFIX + blob] = Answer(307, {"Location": location.format(port=central.port), "Set-Cookie": "a=b"})
    status, headers, _body = front.request("central", blob)
    assert (status, headers["Location"], headers["Set-Cookie"]) == (307, rewritten.format(port=central.port), None)


@pytest.mark.parametrize("place", ["", "https://localhost:{port}"])
def test_the_next_page_of_a_tag_list(front: Front, central: Upstream, place: str) -> None:
    link = f'<{place}{PREFIX}/v2/a/tags/list?last=x&n=1>; rel="next"'.format(port=central.port)
    central.answers[PREFIX + "/v2/a/tags/list"] = Answer(headers={"Link": link})
    _status, headers, _body = front.request("central", "/v2/a/tags/list?n=1")
    assert headers["Link"] == '</v2/a/tags/list?last=x&n=1>; rel="next"'
    assert central.seen[0].target == PREFIX + "/v2/a/tags/list?n=1"


@pytest.mark.parametrize("name, words", [("central", "its credentials are wrong"), ("plain", "it asks for credentials")])
@pytest.mark.parametrize("refusal", [401, 403])
def test_a_refused_mirror_does_not_make_the_docker_host_log_in(
    front: Front, central: Upstream, plain: Upstream, name: str, words: str, refusal: int,
) -> None:
    answer = Answer(refusal, {"WWW-Authenticate": 'Basic realm="Artifactory"'}, b"<html>")
    central.answers[PREFIX + MANIFEST] = plain.answers[MANIFEST] = answer
    status, headers, body = front.request(name, MANIFEST)
    assert (status, headers["WWW-Authenticate"], headers["Content-Type"]) == (502, None, "application/json")
    message = json.loads(body)["errors"][0]["message"]
    assert name in message and str(refusal) in message and words in message


@pytest.mark.parametrize("status", [404, 429, 500])
def test_other_answers_pass(front: Front, central: Upstream, status: int) -> None:
    central.answers[PREFIX + MANIFEST] = Answer(status, {"Retry-After": "7", "Docker-Content-Digest": DIGEST}, b'{"errors":[]}')
    got, headers, body = front.request("central", MANIFEST)
    assert (got, headers["Retry-After"], headers["Docker-Content-Digest"], body) == (status, "7", DIGEST, b'{"errors":[]}')


@pytest.mark.parametrize("name", ["nowhere", "dead", "untrusted", "othername"])
def test_an_upstream_that_is_not_there_is_named_at_once(front: Front, central: Upstream, name: str) -> None:
    """A name that does not resolve, a closed port, a certificate of an unknown CA, a certificate of another name."""
    until(lambda: not front.figures(name)["healthy"], 10)
    start = time.monotonic()
    status, _headers, body = front.request(name, MANIFEST)
    assert time.monotonic() - start < 1.5
    assert status == 503
    error, = json.loads(body)["errors"]
    assert error["code"] == "UNAVAILABLE" and f"the upstream {name} " in error["message"] and "is unreachable" in error["message"]
    assert central.seen == []


def test_an_unverified_upstream_answers(front: Front, central: Upstream) -> None:
    assert front.request("unverified", MANIFEST)[0] == 200
    assert len(central.seen) == 1


def test_a_hang_is_noticed_and_healed(front: Front, fragile: Upstream) -> None:
    blob = f"/v2/a/blobs/{DIGEST}"
    assert front.request("fragile", blob)[0] == 200
    fragile.hanging.set()
    start = time.monotonic()
    try:
        status, _headers, body = front.request("fragile", blob)
        assert status == 502 and "the answer of upstream fragile" in json.loads(body)["errors"][0]["message"]
    except http.client.RemoteDisconnected:
        pass  # HAProxy 3.0 ends what was under way without a word
    assert front.request("fragile", blob)[0] == front.request("fragile", MANIFEST)[0] == 503
    assert time.monotonic() - start < 12
    fragile.hanging.clear()
    until(lambda: front.request("fragile", blob)[0] == front.request("fragile", MANIFEST)[0] == 200, 8)


def test_a_tag_is_not_waited_for_long_unless_the_edge_wants_to_know(front: Front, plain: Upstream) -> None:
    plain.answers[MANIFEST] = Answer(seconds=1.5)
    status, _headers, body = front.request("plain", MANIFEST)
    assert status == 504 and "did not answer in 1.0 seconds" in json.loads(body)["errors"][0]["message"]
    assert front.request("plain", MANIFEST, X_Mirror_Why="true")[0] == 200
    by_digest = f"/v2/a/manifests/{DIGEST}"
    plain.answers[by_digest] = Answer(seconds=1.5)
    assert front.request("plain", by_digest)[0] == 200
    assert all("x-mirror-why" not in seen.headers for seen in plain.seen)


def test_a_blob_passes_whole(front: Front, plain: Upstream) -> None:
    blob = bytes(range(256)) * 40_000
    target = f"/v2/a/blobs/{DIGEST}"
    plain.answers[target] = Answer(body=blob)
    before = front.figures("plain")
    assert front.request("plain", target)[2] == blob
    # HAProxy counts when all is over, which is after the client has it all.
    until(lambda: front.figures("plain")["wan_bytes"] - before["wan_bytes"] >= len(blob), 5)
    after = front.figures("plain")
    assert len(blob) <= after["wan_bytes"] - before["wan_bytes"] < len(blob) + 1000
    assert after["requests"] - before["requests"] == after["responses"]["2xx"] - before["responses"]["2xx"] == 1


def test_a_reload_cuts_no_transfer_and_refuses_nobody(front: Front, plain: Upstream) -> None:
    blob = f"/v2/a/blobs/{DIGEST}"
    plain.answers[blob] = Answer(headers={"Content-Length": "4"}, body=b"12")
    connection = http.client.HTTPConnection("127.0.0.1", front.ports["plain"], timeout=10)
    connection.request("GET", blob)
    half = connection.getresponse()
    assert half.read(2) == b"12"
    before = uptime(ask(front.socket, "show info"))
    front.process.send_signal(signal.SIGUSR2)
    deadline = time.monotonic() + 3
    while time.monotonic() < deadline:
        assert front.request("plain", "/v2/")[0] == 200
    assert uptime(ask(front.socket, "show info")) <= 3 + before
    connection.sock.settimeout(0.2)
    with pytest.raises(TimeoutError):
        half.read(1)
    connection.close()


def test_statistics_and_metrics_have_their_own_address(front: Front) -> None:
    status, page = front.stats("/stats")
    assert status == 200 and "central" in page
    status, metrics = front.stats("/metrics")
    assert status == 200 and 'haproxy_server_bytes_in_total{proxy="central",server="upstream"}' in metrics
    assert front.stats("/v2/")[0] == 404
    for each in (page, metrics):
        assert CREDENTIAL not in each and PASSWORD not in each


def test_the_log_says_who_what_and_where(front: Front, central: Upstream) -> None:
    central.answers[PREFIX + MANIFEST] = Answer(404)
    front.request("central", MANIFEST + "?sig=hidden", Authorization="Bearer hidden")
    until(lambda: any(line["path"] == MANIFEST and line["status"] == 404 for line in front.log_lines()), 5)
    line = next(line for line in reversed(front.log_lines()) if line["path"] == MANIFEST and line["status"] == 404)
    assert (line["client"], line["upstream"], line["source"]) == ("127.0.0.1", "central", "central_tags/upstream")
    assert (line["method"], line["termination"]) == ("GET", "--")
    assert abs(line["time"] - time.time()) < 60
    assert line["bytes"] > 0 and 0 <= line["ms"]["response"] <= line["ms"]["total"]
    assert "hidden" not in front.log()


def test_the_credential_stands_in_one_file(front: Front) -> None:
    """Not in the log, the configuration, an argument or the environment; `show` commands other than of the map do not tell it."""
    told = front.log() + "".join(ask(front.socket, each) for each in ("show stat", "show errors", "show servers state", "show env", "show sess"))
    for each in front.directory.iterdir():
        if each.is_file() and each.name != "credentials.map":
            told += each.read_text()
    pids = [front.process.pid, *map(int, Path(f"/proc/{front.process.pid}/task/{front.process.pid}/children").read_text().split())]
    assert len(pids) >= 2
    for pid in pids:
        told += Path(f"/proc/{pid}/cmdline").read_text() + Path(f"/proc/{pid}/environ").read_text()
    assert CREDENTIAL not in told and PASSWORD not in told
    assert (front.directory / "credentials.map").read_text() == f"central Basic {CREDENTIAL}\n"


def test_the_credential_is_for_one_user(render: Render) -> None:
    files, = render("haproxy_front", {"mirror_upstreams": [
        {"name": "central", "url": "https://a.example", "username": "u", "password": PASSWORD, "port": 5000, "canary": "a:1"},
    ]})
    secret, = (each for each in files if each["path"].endswith("credentials.map"))
    assert (secret["owner"], secret["mode"], secret["secret"]) == ("mirrorfleet-front", "0400", True)
    assert [each["path"] for each in files if PASSWORD in each["content"] or each.get("secret")] == [secret["path"]]


ADDRESSES = [
    {"name": "four", "url": "https://10.0.0.1:8443", "port": 5000, "canary": "a:1", "path_prefix": "/a.b~c/d-e_f", "username": "u", "password": "p"},
    {"name": "six", "url": "https://[2001:db8::1]", "port": 5001, "canary": "a:1", "validate_certs": False},
    {"name": "plain-six", "url": "http://[2001:db8::1]:81", "port": 5002, "canary": "a:1"},
    {"name": "bearer", "url": "http://127.0.0.1", "port": 5003, "canary": "a:1", "auth": "bearer", "token_realm": "http://127.0.0.1/a/b", "token_service": "s"},
]
NAMES = [
    {"name": "dockerhub", "url": "https://registry-1.docker.io", "port": 5000, "docker_hub": True, "username": "u", "password": "p"},
    {"name": "statistics", "url": "https://quay.io", "port": 5001, "canary": "a/b:1"},
    {"name": "dockerhub-token", "url": "https://ghcr.io", "port": 5002, "canary": "a/b:1"},
]


def test_haproxy_takes_every_shape(render: Render, tmp_path: Path) -> None:
    """Without a warning; only names that this machine can't resolve get one before HAProxy 3.0."""
    shapes = [
        {"mirror_upstreams": ADDRESSES}, {"mirror_upstreams": []}, {"mirror_upstreams": NAMES},
        {"mirror_upstreams": NAMES, "haproxy_front_resolve": "starting", "haproxy_front_stats_bind": "[::1]:8404"},
    ]
    for number, files in enumerate(render("haproxy_front", *shapes)):
        directory = tmp_path / str(number)
        directory.mkdir()
        done = subprocess.run(["haproxy", "-c", "-f", str(write(directory, files))], capture_output=True, text=True, check=False)
        said = [line for line in done.stderr.splitlines() if "[NOTICE]" not in line and "could not resolve address" not in line]
        assert (done.returncode, [line for line in said if "Warnings were found" not in line]) == (0, [])
