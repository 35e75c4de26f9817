# Copyright (c) 2026, mirrorfleet contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0
"""The set-ups that are compared: each starts its programs with an empty store, in the data center's network namespace.

Imported by the benchmark; it is no command. Every program runs as `nobody`.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Iterable, Mapping, Sequence

from programs import UNPRIVILEGED, BenchmarkError, Program, run, until
from render import Rendered, render
from wan import CENTRAL_ADDRESS, CENTRAL_PORT, RELAY_ADDRESS, RELAY_PORT, Wan

PREFIX = "/artifactory/api/docker/docker-local"
USER, PASSWORD = "dc-reader", "only-for-the-benchmark"
# The mirror's ports follow from the first: cache, coalescer, rewrite front. They are free: the namespace is ours.
PORT = 5000
CACHE_PORT, FRONT_PORT = PORT + 10000, PORT + 13000


def own(directory: Path) -> None:
    run("chown", "--recursive", "nobody:nogroup", str(directory))


def blob_of(store: Path, digest: str) -> Path:
    """Where distribution keeps a blob."""
    encoded = digest.partition(":")[2]
    return store / "docker/registry/v2/blobs/sha256" / encoded[:2] / encoded / "data"


@dataclass
class Place:
    """Where set-ups live: a directory, the WAN, a certificate for every server, and what Ansible rendered."""

    directory: Path
    wan: Wan
    far: float
    rendered: dict[str, dict[str, Rendered]] = field(default_factory=dict)

    @property
    def certificate(self) -> Path:
        return self.directory / "tls.crt"

    @property
    def key(self) -> Path:
        return self.directory / "tls.key"

    def prepare(self) -> None:
        run("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=benchmark",
            "-addext", f"subjectAltName=IP:127.0.0.1,IP:{CENTRAL_ADDRESS}", "-keyout", str(self.key), "-out", str(self.certificate))
        run("chown", "nobody:nogroup", str(self.key))

    def origin(self, far: bool) -> str:
        return f"{RELAY_ADDRESS}:{RELAY_PORT}" if far else f"{CENTRAL_ADDRESS}:{CENTRAL_PORT}"


class Setup:
    """What serves images, while its `with` statement lasts."""

    name = ""
    about = ""

    def __init__(self, place: Place, far: bool = False, tls: bool = False) -> None:
        self.place, self.far, self.tls = place, far, tls
        self.programs: list[Program] = []
        self.directory = place.directory / self.name

    @property
    def url(self) -> str:
        """What stands before /v2/."""
        return f"{'https' if self.tls else 'http'}://127.0.0.1:{PORT}"

    @property
    def user(self) -> str:
        return ""

    def repository(self, repository: str) -> str:
        """How a client calls a repository of the central registry."""
        return repository

    @classmethod
    def missing(cls) -> str:
        """Why it can't be run here, or nothing."""
        return ""

    @property
    def store(self) -> Path | None:
        """The rootdirectory of a distribution that keeps what was pulled."""
        return None

    def keeps(self, digests: Iterable[str]) -> bool:
        """Whether blobs are kept: distribution 2.8 stores beside serving, and may be done later."""
        return self.store is None or all(blob_of(self.store, digest).exists() for digest in digests)

    def start(self) -> None:
        raise NotImplementedError

    def program(self, name: str, argv: Sequence[str], port: int, namespace: str = "") -> Program:
        """Start a program and wait until it listens."""
        own(self.directory)
        program = Program(name, [*UNPRIVILEGED, *argv], namespace or self.place.wan.datacenter, self.directory / f"{name}.log")
        self.programs.append(program)
        until(lambda: program.listens(port), f"{name} listens on {port}")
        return program

    def __enter__(self) -> Setup:
        self.directory.mkdir()
        try:
            self.start()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for program in reversed(self.programs):
            program.stop()
        shutil.rmtree(self.directory, ignore_errors=True)


class Central(Setup):
    """The central registry, as the lab has it: distribution behind nginx with TLS, a path prefix and Basic authentication."""

    name = "central"

    def start(self) -> None:
        (self.directory / "htpasswd").write_text(f"{USER}:{{PLAIN}}{PASSWORD}\n")
        (self.directory / "nginx.conf").write_text(nginx(self.directory, f"""
            server {{
                listen {CENTRAL_PORT} ssl;
                ssl_certificate {self.place.certificate};
                ssl_certificate_key {self.place.key};
                location {PREFIX}/v2/ {{
                    auth_basic "Artifactory Realm";
                    auth_basic_user_file {self.directory}/htpasswd;
                    proxy_pass http://127.0.0.1:5000/v2/;
                    proxy_http_version 1.1;
                    proxy_set_header Connection "";
                    proxy_buffering off;
                    # TLS records of full size.
                    proxy_buffer_size 64k;
                    proxy_buffers 4 64k;
                }}
            }}"""))
        central = self.place.wan.central
        self.program("registry", distribution(self.store, "127.0.0.1:5000"), 5000, central)
        self.program("nginx", ["nginx", "-e", "stderr", "-g", "daemon off;", "-c", str(self.directory / "nginx.conf")], CENTRAL_PORT, central)

    def publish(self, families: Sequence[str]) -> str:
        """What images.py prints."""
        script = str(Path(__file__).with_name("images.py"))
        return run("ip", "netns", "exec", self.place.wan.central, sys.executable, script, "http://127.0.0.1:5000", *families)

    @property
    def store(self) -> Path:
        return self.directory / "store"


class Direct(Setup):
    name = "direct"
    about = "no mirror: every client asks the central registry"

    @property
    def url(self) -> str:
        return f"https://{self.place.origin(self.far)}{PREFIX}"

    @property
    def user(self) -> str:
        return f"{USER}:{PASSWORD}"

    def start(self) -> None:
        """Everything is there."""


class Classic(Setup):
    name = "classic"
    about = "distribution in proxy mode alone, HAProxy adds path prefix and credential"

    @property
    def store(self) -> Path:
        return self.directory / "store"

    def start(self) -> None:
        tls = {"tls": {"certificate": str(self.place.certificate), "key": str(self.place.key)}} if self.tls else {}
        rewrite(self)
        self.program("distribution", distribution(self.store, f"127.0.0.1:{PORT}", tls, {"remoteurl": f"http://127.0.0.1:{FRONT_PORT}"}), PORT)


class Drayage(Setup):
    name = "drayage"
    about = "drayage from PyPI, behind the classic set-up's HAProxy: it knows no path prefix"

    @classmethod
    def missing(cls) -> str:
        return "" if cls._binary() else "drayage is not installed: pip install --requirement benchmarks/requirements.txt"

    @staticmethod
    def _binary() -> str | None:
        return shutil.which("drayage", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")

    def repository(self, repository: str) -> str:
        return f"central.example.test/{repository}"

    def start(self) -> None:
        binary = shutil.copy2(str(self._binary()), self.directory / "drayage")
        (self.directory / "cache").mkdir()
        (self.directory / "config.toml").write_text(f"""
            listen = "127.0.0.1:{PORT}"
            cache_dir = "{self.directory}/cache"
            read_timeout_secs = 3600
            [upstreams.central_example_test]
            registry = "http://127.0.0.1:{FRONT_PORT}"
        """)
        rewrite(self)
        self.program("drayage", [str(binary), "serve", "--config", str(self.directory / "config.toml")], PORT)


class Ours(Setup):
    name = "ours"
    about = "edge, cache, coalescer and rewrite front, configured by the roles"

    ROLES = {"haproxy_front": "front", "fetch_coalescer": "coalescer", "pull_through_cache": "cache", "mirror_edge": "edge"}
    PORTS = {"front": FRONT_PORT, "coalescer": PORT + 12000, "cache": CACHE_PORT, "edge": PORT}

    @property
    def store(self) -> Path:
        return self.directory / "store/central"

    def start(self) -> None:
        name = f"rendered-{'far' if self.far else 'near'}-{'tls' if self.tls else 'plain'}"
        if name not in self.place.rendered:
            self.place.rendered[name] = render(self.place.directory / name, list(self.ROLES), self._variables())
        (self.directory / "run").mkdir()
        roles = self.place.rendered[name]
        for role in roles.values():
            role.write(self.directory)
        for role_name, program in self.ROLES.items():
            self.program(program, roles[role_name].command("central"), self.PORTS[program])

    def _variables(self) -> dict[str, Any]:
        """An operator's, and those that move what a role writes into the set-up's directory."""
        home = self.directory
        return {
            "mirror_upstreams": [{
                "name": "central", "url": f"https://{self.place.origin(self.far)}", "path_prefix": PREFIX, "username": USER, "password": PASSWORD,
                "validate_certs": False, "port": PORT, "canary": "svc/app:1",
            }],
            "mirror_runtime": "package",
            "mirror_edge_tls": "given" if self.tls else "none",
            "mirror_edge_certificate": self.place.certificate.read_text(),
            "mirror_edge_private_key": self.place.key.read_text(),
            "pull_through_cache_storage": str(home / "store"),
            "fetch_coalescer_storage": str(home / "coalescer"),
            "__haproxy_front_config": str(home / "config/front"),
            "__haproxy_front_run": str(home / "run"),
            "__fetch_coalescer_config": str(home / "config/coalescer"),
            "__pull_through_cache_config": str(home / "config/cache"),
            "__mirror_edge_config": str(home / "config/edge"),
            "__mirror_edge_work": str(home / "edge"),
            "__mirror_edge_logs": str(home / "logs"),
        }


class PlainFile(Setup):
    """Only for warm blobs: they are added one by one."""

    name = "file"
    about = "nginx, and the blob is a plain file"

    def __init__(self, place: Place, far: bool = False, tls: bool = False) -> None:
        super().__init__(place, far, tls)
        self.root = self.directory / "www"

    def add(self, repository: str, digest: str, source: Path) -> None:
        path = self.root / "v2" / repository / "blobs" / digest
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(source)

    def start(self) -> None:
        self.root.mkdir()
        certificate = f"ssl_certificate {self.place.certificate}; ssl_certificate_key {self.place.key};" if self.tls else ""
        (self.directory / "nginx.conf").write_text(nginx(self.directory, f"""
            server {{
                listen 127.0.0.1:{PORT}{' ssl' if self.tls else ''};
                {certificate}
                root {self.root};
            }}"""))
        self.program("nginx", ["nginx", "-e", "stderr", "-g", "daemon off;", "-c", str(self.directory / "nginx.conf")], PORT)


def distribution(store: Path, address: str, http: Mapping[str, Any] | None = None, proxy: Mapping[str, Any] | None = None) -> list[str]:
    """The command of a distribution whose configuration stands beside its store."""
    store.mkdir()
    configuration = store.with_suffix(".json")
    configuration.write_text(json.dumps({
        "version": 0.1,
        "log": {"level": "warn", "accesslog": {"disabled": True}},
        "storage": {"filesystem": {"rootdirectory": str(store)}},
        "http": {"addr": address, "relativeurls": True, "secret": "unused", **(http or {})},
        **({"proxy": proxy} if proxy else {}),
    }))
    return ["docker-registry", "serve", str(configuration)]


def nginx(directory: Path, server: str) -> str:
    """A configuration of nginx that writes nowhere else."""
    paths = "\n".join(f"{name}_temp_path {directory}/temp-{name};" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    return f"""
        worker_processes auto;
        pid {directory}/nginx.pid;
        events {{ worker_connections 4096; }}
        http {{
            {paths}
            access_log off;
            sendfile on;
            tcp_nopush on;
            keepalive_requests 100000;
            client_max_body_size 0;
            {server}
        }}"""


def rewrite(setup: Setup) -> None:
    """HAProxy as guides for this set-up have it."""
    credential = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
    (setup.directory / "haproxy.cfg").write_text(f"""
global
    maxconn 2000
defaults
    mode http
    timeout connect 5s
    timeout client 300s
    timeout server 300s
frontend rewrite
    bind 127.0.0.1:{FRONT_PORT}
    http-request set-path {PREFIX}%[path]
    http-request set-header Host {setup.place.origin(setup.far)}
    http-request set-header Authorization "Basic {credential}"
    http-response replace-header Location ^(?:https?://[^/]+)?{PREFIX}(/v2/.*)$ \\1
    default_backend central
backend central
    server central {setup.place.origin(setup.far)} ssl verify none
""")
    setup.program("haproxy", ["haproxy", "-W", "-db", "-f", str(setup.directory / "haproxy.cfg")], FRONT_PORT)


SETUPS: dict[str, type[Setup]] = {each.name: each for each in (Direct, Classic, Drayage, Ours)}
PROGRAMS = ("ansible-playbook", "docker-registry", "haproxy", "ip", "nginx", "openssl", "setpriv", "tc", "varnishd")


def check_machine() -> None:
    """Raises BenchmarkError that says what is missing."""
    if os.geteuid() != 0:
        raise BenchmarkError("it makes network namespaces: run it as root")
    os.environ["PATH"] += ":/usr/sbin:/sbin"
    here = f"{Path(__file__).resolve().parent.parent / '.venv' / 'bin'}:{os.environ['PATH']}"
    missing = [name for name in PROGRAMS if shutil.which(name, path=here) is None]
    if missing:
        raise BenchmarkError(f"missing: {', '.join(missing)}; `make venv` installs them")
