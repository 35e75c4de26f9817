# Copyright (c) 2026, mirrorfleet contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0
"""The canary, and mirror_probe, on a Docker of its own whose mirrors are edges as the role sets them up."""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import json
import os
import re
import shutil
import signal
import socket
import socketserver
import subprocess
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Iterator, cast

import pytest
import yaml
from ansible_collections.community.general.plugins.filter.json_query import json_query
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from ansible_collections.mirrorfleet.registry.plugins.module_utils.docker_host import DockerApi, DockerError
from ansible_collections.mirrorfleet.registry.plugins.modules import mirror_probe
from ansible_collections.mirrorfleet.registry.tests.unit.conftest import Answers, RunModule, Server, answer, free_port, until
from ansible_collections.mirrorfleet.registry.tests.unit.roles.conftest import Render, upstream_port
from ansible_collections.mirrorfleet.registry.tests.unit.roles.test_mirror_edge import Edge, directories, listen, start_nginx

pytestmark = pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("dockerd"), reason="a Docker of its own needs root and dockerd")

CANARY = "mirrorfleet-edge/canary:1"
PASSWORD = "wander3r-in-the-fog"
DAY = datetime.timedelta(days=1)


def own_address() -> str:
    """An address of this machine that Docker does not trust for being loopback. Nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.254", 9))
        return str(probe.getsockname()[0])


@dataclass
class Docker:
    """A running dockerd; `certs` is its /etc/docker/certs.d."""

    process: subprocess.Popen[bytes]
    directory: Path

    @property
    def socket(self) -> str:
        return str(self.directory / "docker.sock")

    @property
    def daemon_json(self) -> Path:
        return self.directory / "etc/daemon.json"

    @property
    def certs(self) -> Path:
        return self.directory / "etc/certs.d"

    @property
    def api(self) -> DockerApi:
        return DockerApi(self.socket, 30)

    def reload(self, **options: Any) -> None:
        """Give it another configuration, as docker_mirror does."""
        self.daemon_json.write_text(json.dumps({"registry-mirrors": [], **options}))
        self.process.send_signal(signal.SIGHUP)
        wanted = [each.rstrip("/") for each in options.get("registry-mirrors", [])]
        until(lambda: [each.rstrip("/") for each in self.api.info()["RegistryConfig"]["Mirrors"] or []] == wanted)


@pytest.fixture(scope="module")
def docker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Docker]:
    """In a mount namespace: dockerd looks for certificates in /etc/docker, whatever it is told."""
    directory = tmp_path_factory.mktemp("docker")
    (directory / "etc/certs.d").mkdir(parents=True)
    (directory / "etc/daemon.json").write_text('{"registry-mirrors": []}')
    name = f"mirrorfleet-{os.getpid()}"
    command = [
        "dockerd", "--config-file", "/etc/docker/daemon.json", "--data-root", str(directory / "data"), "--exec-root", str(directory / "exec"),
        "--pidfile", str(directory / "pid"), "--host", f"unix://{directory}/docker.sock", "--storage-driver", "vfs", "--containerd-namespace", name,
        "--containerd-plugins-namespace", f"{name}-plugins", "--bridge", "none", "--iptables=false", "--ip6tables=false", "--ip-forward=false",
    ]
    enter = ["unshare", "--mount", "sh", "-c", 'mount --bind "$0" /etc/docker && exec "$@"', str(directory / "etc")]
    (Path("/etc/docker")).mkdir(exist_ok=True)
    with open(directory / "log", "wb") as log:
        process = subprocess.Popen([*enter, *command], stdout=log, stderr=log)
    running = Docker(process, directory)

    def answers() -> bool:
        if process.poll() is not None:
            pytest.fail((directory / "log").read_text()[-2000:])
        with contextlib.suppress(DockerError):
            return bool(running.api.info())
        return False

    until(answers, 60)
    yield running
    process.terminate()
    process.wait(30)


@dataclass
class Fleet:
    """Edges without TLS and with it, for upstreams that are not there."""

    plain: Edge
    tls: Edge
    port: int

    @property
    def hub(self) -> str:
        return f"http://127.0.0.2:{self.port}"

    @property
    def registry(self) -> str:
        return f"{self.tls.address}:{self.port}"


class Authority:
    """Signs certificates for this machine's address."""

    def __init__(self, name: str) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        self.pem = self.sign(self.name, self.key, x509.BasicConstraints(ca=True, path_length=0), -1, 100)[1]

    def sign(self, subject: x509.Name, key: Any, extension: x509.ExtensionType, first: int, last: int) -> tuple[str, str]:
        now = datetime.datetime.now(datetime.timezone.utc)
        builder = x509.CertificateBuilder(
            self.name, subject, key.public_key(), x509.random_serial_number(), now + first * DAY, now + last * DAY + datetime.timedelta(hours=1),
        )
        certificate = builder.add_extension(extension, critical=True).sign(self.key, hashes.SHA256())
        private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        return private.decode(), certificate.public_bytes(serialization.Encoding.PEM).decode()

    def leaf(self, address: str, first: int = -1, last: int = 40) -> tuple[str, str]:
        names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(address))])
        return self.sign(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "mirror")]), ec.generate_private_key(ec.SECP256R1()), names, first, last)


AUTHORITY, STRANGER = Authority("the fleet's"), Authority("a stranger's")


@pytest.fixture(scope="module")
def fleet(render: Render, base: Path) -> Iterator[Fleet]:
    address, port = own_address(), upstream_port()
    key, certificate = AUTHORITY.leaf(address)
    ports = {"hub": port, "central": upstream_port()}
    shared = {
        "mirror_upstreams": [{"name": name, "url": f"http://{name}.test", "port": number, "canary": "a:1"} for name, number in ports.items()],
        "mirror_edge_allowed_networks": ["0.0.0.0/0"],
    }
    sets = {
        "plain": {**shared, "mirror_edge_bind": "127.0.0.2", "mirror_edge_tls": "none"},
        "tls": {**shared, "mirror_edge_bind": address, "mirror_edge_tls": "given", "mirror_edge_certificate": certificate, "mirror_edge_private_key": key},
    }
    rendered = dict(zip(sets, render("mirror_edge", *({**directories(base / name), **each} for name, each in sets.items()))))
    for name in sets:
        (base / name).mkdir(exist_ok=True)
    edges = {name: start_nginx(base / name, rendered[name], str(sets[name]["mirror_edge_bind"]), ports) for name in sets}
    for edge in edges.values():
        listen(edge)
    yield Fleet(edges["plain"], edges["tls"], port)
    for edge in edges.values():
        edge.process.terminate()
        edge.process.wait(10)


@pytest.fixture
def probe(docker: Docker, run_module: RunModule) -> Iterator[RunModule]:
    """Run mirror_probe on this Docker; what it must always leave behind is looked at."""
    def run(**options: Any) -> dict[str, Any]:
        result = run_module(mirror_probe.main, **{
            "docker_socket": docker.socket, "daemon_json": str(docker.daemon_json), "certs_dir": str(docker.certs), "timeout": 5, "pull_timeout": 30, **options,
        })
        assert result.get("failed") or result["changed"] is False
        return result

    yield run
    with docker_images(docker) as names:
        assert names == []
    shutil.rmtree(docker.certs)
    docker.certs.mkdir()


@contextlib.contextmanager
def docker_images(docker: Docker) -> Iterator[list[str]]:
    listed = subprocess.run(["docker", "--host", f"unix://{docker.socket}", "image", "ls", "--all", "--format", "{{.Repository}}:{{.Tag}}"],
                            capture_output=True, text=True, check=True)
    yield listed.stdout.split()


def trust(docker: Docker, registry: str, authority: Authority = AUTHORITY) -> None:
    (docker.certs / registry).mkdir()
    (docker.certs / registry / "ca.crt").write_text(authority.pem)


# ---- a Docker that uses its mirror

def test_a_docker_that_uses_its_mirrors(docker: Docker, fleet: Fleet, probe: RunModule) -> None:
    docker.reload(**{"registry-mirrors": [fleet.hub]})
    trust(docker, fleet.registry)
    result = probe(registries=[fleet.registry], fail=True)
    assert (result["uses_mirror"], result["why_not"]) == (True, "")
    assert result["docker"]["registry_mirrors"] == [fleet.hub + "/"] and result["docker"]["pending"] == []
    assert (result["docker"]["image_store"], bool(re.match(r"\d+\.\d+", result["docker"]["version"]))) == ("classic", True)
    hub, named = result["mirrors"]
    assert (hub["registry"], hub["url"], hub["address"], hub["tls"]) == ("docker.io", fleet.hub, "127.0.0.2", None)
    assert (named["registry"], named["url"], named["address"]) == (fleet.registry, f"https://{fleet.registry}", fleet.tls.address)
    for mirror in (hub, named):
        assert (mirror["reachable"], mirror["status"], mirror["mirror_host"], mirror["why_not"]) == (True, 200, "localhost", "")
        assert 0 < mirror["milliseconds"] < 5000
    assert named["tls"] == {"trusted": True, "days": 40, "signed_by": "the fleet's", "why_not": ""}
    assert [each["image"] for each in result["pulls"]] == [CANARY, f"{fleet.registry}/{CANARY}"]
    for pull, mirror in zip(result["pulls"], (hub, named)):
        assert (pull["uses_mirror"], pull["mirror_host"], pull["digest"], pull["why_not"]) == (True, "localhost", mirror["digest"], "")
        assert 0 < pull["seconds"] < 30
    # It was Docker that asked.
    for edge in (fleet.plain, fleet.tls):
        until(lambda edge=edge: any(line["agent"].startswith("docker/") and "/canary/manifests/" in line["path"] for line in edge.lines()))


def test_an_image_that_was_there_stays(docker: Docker, fleet: Fleet, probe: RunModule) -> None:
    docker.reload(**{"registry-mirrors": [fleet.hub]})
    docker.api.pull("mirrorfleet-edge/canary", "1")
    try:
        assert probe()["uses_mirror"] is True
        assert docker.api.image(CANARY) is not None
    finally:
        docker.api.remove_image(CANARY)


def test_a_broken_daemon_json_is_told_of(docker: Docker, fleet: Fleet, probe: RunModule) -> None:
    """Docker goes on with what it has."""
    docker.reload(**{"registry-mirrors": [fleet.hub]})
    docker.daemon_json.write_text("{")
    result = probe()
    assert result["uses_mirror"] is True and "is not valid JSON at line 1" in result["docker"]["why_not"]


@pytest.mark.parametrize("how", [{"_ansible_check_mode": True}, {"pull": False}])
def test_without_a_pull_docker_is_not_told_to(docker: Docker, fleet: Fleet, probe: RunModule, how: dict[str, bool]) -> None:
    def asked() -> int:
        time.sleep(1.2)  # nginx holds a line back for a second at most
        return len([line for line in fleet.plain.lines() if line["agent"].startswith("docker/")])

    docker.reload(**{"registry-mirrors": [fleet.hub]})
    before = asked()
    result = probe(**how)
    assert (result["uses_mirror"], result["why_not"], result["pulls"][0]["uses_mirror"], result["pulls"][0]["digest"]) == (None, "", None, "")
    assert result["mirrors"][0]["mirror_host"] == "localhost"
    assert asked() == before
    assert probe()["uses_mirror"] is True
    until(lambda: asked() > before)


def test_the_documented_queries_work_as_written(docker: Docker, fleet: Fleet, probe: RunModule) -> None:
    documented = json.dumps(yaml.safe_load(mirror_probe.EXAMPLES))
    hosts, certificates = re.findall(r"probe \| community\.general\.json_query\('([^']+)'\)", documented)
    docker.reload(**{"registry-mirrors": [fleet.hub]})
    result = probe(registries=[fleet.registry])
    assert json_query(result, hosts) == ["localhost"]
    assert [each["url"] for each in json_query(result, certificates)] == [f"https://{fleet.registry}"]
    trust(docker, fleet.registry)
    assert json_query(probe(registries=[fleet.registry]), certificates) == []


# ---- and one that does not

def test_no_mirror_and_a_reload_that_is_pending(docker: Docker, fleet: Fleet, probe: RunModule) -> None:
    docker.reload()
    assert "docker.io: the running Docker has no mirror for it" in probe()["why_not"]
    docker.daemon_json.write_text(json.dumps({"registry-mirrors": [fleet.hub]}))
    result = probe()
    assert (result["uses_mirror"], result["docker"]["pending"], result["pulls"][0]["uses_mirror"]) == (False, ["registry-mirrors"], False)
    assert f"{docker.daemon_json} says otherwise: reload Docker" in result["why_not"]
    docker.daemon_json.write_text("{")
    assert "is not valid JSON at line 1" in probe()["why_not"]
    docker.reload()
    assert "There is nothing to be pulled" in probe(docker_hub=False)["why_not"]
    failed = probe(fail=True)
    assert failed["failed"] and failed["uses_mirror"] is False and "no mirror" in failed["msg"]


def test_a_mirror_that_is_down(docker: Docker, probe: RunModule) -> None:
    """Docker goes to the Docker Hub then, where nobody can have the canary."""
    port = free_port()
    docker.reload(**{"registry-mirrors": [f"http://127.0.0.1:{port}", "http://no-such-name.invalid:5000"]})
    result = probe()
    assert result["uses_mirror"] is False and "connection refused" in result["why_not"] and "Docker can't pull the canary: " in result["why_not"]
    down, nameless = result["mirrors"]
    assert (down["reachable"], down["status"], down["milliseconds"]) == (False, None, None)
    assert (nameless["address"], "its name has no address" in nameless["why_not"]) == (None, True)


Serve = Callable[[Answers], Server]


def test_a_mirror_that_is_none(docker: Docker, probe: RunModule, serve: Serve) -> None:
    page = serve(lambda path: answer(200, b"<html>Welcome to nginx!</html>", Content_Type="text/html"))
    older = serve(lambda path: answer(200, b"{}", Content_Type="application/json") if path == "/v2/" else answer(404))
    refusing = serve(lambda path: answer(403, b"{}", Content_Type="application/json"))
    for server, said in ((page, "answers 200 for /v2/, text/html"), (older, "has no canary, it answers 404"), (refusing, "answers 403")):
        docker.reload(**{"registry-mirrors": [server.url]})
        result = probe()
        assert result["uses_mirror"] is False and said in result["why_not"], result
        assert result["mirrors"][0]["reachable"] is True


def test_a_mirror_that_says_nothing(docker: Docker, probe: RunModule, serve: Serve) -> None:
    silent = serve(lambda path: None)
    docker.reload(**{"registry-mirrors": [silent.url]})
    start = time.monotonic()
    result = probe(timeout=2, pull_timeout=2)
    assert time.monotonic() - start < 15
    assert result["uses_mirror"] is False and "no answer within 2 seconds" in result["mirrors"][0]["why_not"]
    assert "Docker does not answer" in result["pulls"][0]["why_not"] or "Docker can't pull" in result["pulls"][0]["why_not"]


def test_an_image_from_somewhere_else_proves_nothing(docker: Docker, fleet: Fleet, probe: RunModule, serve: Serve) -> None:
    """Whoever asks first, this host, hears of another canary than Docker, which asks behind it."""
    forged = json.dumps({"annotations": {"mirrorfleet.host": "localhost"}}).encode()

    def answers(path: str) -> bytes:
        if "mirrorfleet.registry" in server.requests[-1] and "/manifests/" in path:
            return answer(200, forged, Content_Type="application/vnd.oci.image.index.v1+json")
        status, headers, body = fleet.plain.request("hub", path)
        return answer(status, body, Content_Type=headers["Content-Type"], Docker_Content_Digest=headers["Docker-Content-Digest"] or "none")

    server = serve(answers)
    docker.reload(**{"registry-mirrors": [server.url]})
    result = probe()
    assert result["uses_mirror"] is False and "which none of its mirrors gives this host" in result["why_not"]


# ---- TLS and logins

def reload_nginx(edge: Edge) -> None:
    """Until nobody answers any more who knows the old configuration."""
    def workers() -> set[str]:
        return set(subprocess.run(["pgrep", "-P", str(edge.process.pid)], capture_output=True, text=True, check=True).stdout.split())

    before = workers()
    edge.process.send_signal(signal.SIGHUP)
    until(lambda: before.isdisjoint(workers()))


@pytest.fixture
def certificate(fleet: Fleet) -> Iterator[Callable[[tuple[str, str]], None]]:
    """Give the edge another certificate."""
    files = [fleet.tls.directory / "etc/tls.key", fleet.tls.directory / "etc/tls.crt"]
    before = [each.read_text() for each in files]

    def change(pair: list[str] | tuple[str, str]) -> None:
        for path, content in zip(files, pair):
            path.write_text(content)
        reload_nginx(fleet.tls)

    yield change
    change(before)


@pytest.mark.parametrize("case, days, signer, said", [
    ("expired", -3, "the fleet's", "certificate has expired"),
    ("another address", 40, "the fleet's", "IP address mismatch"),
    ("another authority", 40, "a stranger's", "unable to get local issuer certificate"),
])
def test_a_certificate_that_docker_refuses(
    docker: Docker, fleet: Fleet, probe: RunModule, certificate: Callable[[tuple[str, str]], None], case: str, days: int, signer: str, said: str,
) -> None:
    docker.reload()
    trust(docker, fleet.registry)
    certificate({
        "expired": lambda: AUTHORITY.leaf(fleet.tls.address, -30, -3), "another address": lambda: AUTHORITY.leaf("192.0.2.99"),
        "another authority": lambda: STRANGER.leaf(fleet.tls.address),
    }[case]())
    result = probe(registries=[fleet.registry], docker_hub=False)
    (mirror,) = result["mirrors"]
    assert (mirror["reachable"], mirror["tls"]["trusted"], mirror["tls"]["days"], mirror["tls"]["signed_by"]) == (False, False, days, signer)
    assert said in mirror["tls"]["why_not"] and result["uses_mirror"] is False
    assert "x509: " in result["why_not"] and said in result["why_not"]


def test_an_insecure_registrys_certificate_is_not_asked_for(docker: Docker, fleet: Fleet, probe: RunModule) -> None:
    docker.reload(**{"insecure-registries": [fleet.registry]})
    until(lambda: fleet.registry in docker.api.info()["RegistryConfig"]["IndexConfigs"])
    result = probe(registries=[f"127.0.0.2:{fleet.port}", fleet.registry], docker_hub=False)
    assert (result["uses_mirror"], result["why_not"]) == (True, "")
    docker.reload(**{"insecure-registries": []})


@pytest.fixture
def login(fleet: Fleet) -> Iterator[dict[str, str]]:
    """The edge asks for a login."""
    configuration = fleet.plain.directory / "etc/nginx.conf"
    before = configuration.read_text()
    (fleet.plain.directory / "etc/htpasswd").write_text(f"site:{{PLAIN}}{PASSWORD}\n")

    def change(text: str, status: int) -> None:
        configuration.write_text(text)
        reload_nginx(fleet.plain)
        assert fleet.plain.request("hub", "/v2/")[0] == status

    change(before.replace("    proxy_http_version", "    auth_basic mirror;\n    auth_basic_user_file htpasswd;\n    proxy_http_version", 1), 401)
    yield {"username": "site", "password": PASSWORD}
    change(before, 200)


def test_a_mirror_that_asks_for_a_login(docker: Docker, fleet: Fleet, probe: RunModule, login: dict[str, str]) -> None:
    docker.reload()
    registry = {"registries": [f"127.0.0.2:{fleet.port}"], "docker_hub": False}
    assert "asks for a login: give username and password" in probe(**registry)["why_not"]
    wrong = probe(**registry, username="site", password="no")
    assert "asks for a login, and refuses this one" in wrong["why_not"] and wrong["uses_mirror"] is False
    right = probe(**registry, **login)
    assert right["uses_mirror"] is True
    assert PASSWORD not in json.dumps(right)


def test_the_login_is_for_the_named_mirrors_only(docker: Docker, fleet: Fleet, probe: RunModule, login: dict[str, str], serve: Serve) -> None:
    """A mirror of the Docker Hub may be anybody's, and Docker would not log in there."""
    other = serve(lambda path: answer(401, b"{}", WWW_Authenticate='Basic realm="x"'))
    docker.reload(**{"registry-mirrors": [other.url, fleet.hub]})
    result = probe(registries=[f"127.0.0.2:{fleet.port}"], **login)
    assert [each["uses_mirror"] for each in result["pulls"]] == [False, True]
    assert "asks for a login, which Docker has for no mirror of the Docker Hub" in result["mirrors"][0]["why_not"]
    assert other.requests and not any("authorization" in request.lower() for request in other.requests)


# ---- no Docker

class Mute(socketserver.ThreadingUnixStreamServer):
    """Something at a socket that says the same to everybody, and nothing more."""

    daemon_threads = True

    def __init__(self, path: Path, says: bytes) -> None:
        super().__init__(str(path), MuteConnection)
        self.says = says
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()


class MuteConnection(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        while self.rfile.readline() != b"\r\n":
            pass
        self.wfile.write(cast(Mute, self.server).says)
        if not cast(Mute, self.server).says.endswith(b"}"):
            self.rfile.read(1)


@pytest.mark.parametrize("says, said", [
    (None, "Nobody answers at"),
    (b"", "Docker does not answer at"),
    (b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n{", "Docker does not answer at"),
    (answer(200, b"<html>{}", Content_Type="text/html"), "is no Docker"),
    (b"SSH-2.0-OpenSSH}", "is no Docker"),
    (answer(200, b"[{}"), "is no Docker"),
    (answer(200, b'{"ServerVersion": "28"}'), "does not tell its configuration"),
    (answer(500, b'{"message": "the storage driver is broken"}'), "the storage driver is broken"),
    (answer(503, b"{}"), "status 503"),
])
def test_no_docker(probe: RunModule, tmp_path: Path, says: bytes | None, said: str) -> None:
    path = tmp_path / "docker.sock"
    server = None if says is None else Mute(path, says)
    result = probe(docker_socket=str(path), timeout=1)
    assert (result["uses_mirror"], result["mirrors"], result["pulls"]) == (False, [], []) and said in result["why_not"], result
    if server:
        server.shutdown()
        server.server_close()


def test_a_socket_that_is_not_ours(base: Path) -> None:
    """By another user, because root may use any."""
    path = base / "docker.sock"
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()
        path.chmod(0o600)
        os.seteuid(65534)
        try:
            with pytest.raises(DockerError, match="may not be used by this user: set become: true"):
                DockerApi(str(path), 1).info()
        finally:
            os.seteuid(0)
