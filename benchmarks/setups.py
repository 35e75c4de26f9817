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
# The central registry's other names: one that redirects blobs, and where it redirects to.
HUB_PORT, STORAGE_PORT = 8445, 8446
SIGNATURE = "of-the-benchmark"


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
    # Where clients ask; the ports of what stands behind follow from it. They are free: the namespace is ours. No two set-ups have the
    # same, so that they can run side by side.
    port = 0

    def __init__(self, place: Place, far: bool = False, tls: bool = False) -> None:
        self.place, self.far, self.tls = place, far, tls
        self.programs: list[Program] = []
        self.directory = place.directory / self.name

    @property
    def url(self) -> str:
        """What stands before /v2/."""
        return f"{'https' if self.tls else 'http'}://127.0.0.1:{self.port}"

    @property
    def urls(self) -> list[str]:
        """The same, where clients are spread over several."""
        return [self.url]

    @property
    def front_port(self) -> int:
        return self.port + 13000

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
            }}
            server {{
                listen {HUB_PORT} ssl;
                ssl_certificate {self.place.certificate};
                ssl_certificate_key {self.place.key};
                auth_basic "Artifactory Realm";
                auth_basic_user_file {self.directory}/htpasswd;
                location ~ "^{PREFIX}/v2/(?<blob>.+/blobs/sha256:[0-9a-f]+)$" {{
                    return 307 https://{CENTRAL_ADDRESS}:{STORAGE_PORT}/$blob?signature={SIGNATURE};
                }}
                location {PREFIX}/v2/ {{
                    proxy_pass http://127.0.0.1:5000/v2/;
                }}
            }}
            server {{
                listen {STORAGE_PORT} ssl;
                ssl_certificate {self.place.certificate};
                ssl_certificate_key {self.place.key};
                # As object storage does: what is not signed is refused, and so is a credential beside the signature.
                location / {{
                    if ($arg_signature != {SIGNATURE}) {{
                        return 403;
                    }}
                    if ($http_authorization) {{
                        return 400;
                    }}
                    proxy_pass http://127.0.0.1:5000/v2/;
                    proxy_http_version 1.1;
                    proxy_set_header Connection "";
                    proxy_buffering off;
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
    port = 5100

    @property
    def store(self) -> Path:
        return self.directory / "store"

    def start(self) -> None:
        tls = {"tls": {"certificate": str(self.place.certificate), "key": str(self.place.key)}} if self.tls else {}
        rewrite(self)
        self.program("distribution", distribution(self.store, f"127.0.0.1:{self.port}", tls, {"remoteurl": f"http://127.0.0.1:{self.front_port}"}), self.port)


class Drayage(Setup):
    name = "drayage"
    about = "drayage from PyPI, behind the classic set-up's HAProxy: it knows no path prefix"
    port = 5200

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
            listen = "127.0.0.1:{self.port}"
            cache_dir = "{self.directory}/cache"
            read_timeout_secs = 3600
            [upstreams.central_example_test]
            registry = "http://127.0.0.1:{self.front_port}"
        """)
        rewrite(self)
        self.program("drayage", [str(binary), "serve", "--config", str(self.directory / "config.toml")], self.port)


class Ours(Setup):
    name = "ours"
    about = "edge, cache, coalescer and rewrite front, configured by the roles"
    port = 5000

    ROLES = {"haproxy_front": "front", "fetch_coalescer": "coalescer", "pull_through_cache": "cache", "mirror_edge": "edge"}

    @property
    def store(self) -> Path | None:
        return self.directory / "store/central"

    def start(self) -> None:
        self.mirror_host(self.directory, self.place.wan.datacenter)

    def mirror_host(self, home: Path, namespace: str, prefix: str = "", variables: Mapping[str, Any] | None = None) -> None:
        """Start the four programs. What they are called begins with ``prefix``."""
        name = f"rendered-{self.name}-{home.name}-{'far' if self.far else 'near'}-{'tls' if self.tls else 'plain'}"
        if name not in self.place.rendered:
            self.place.rendered[name] = render(self.place.directory / name, list(self.ROLES), {**self._variables(home), **(variables or {})})
        (home / "run").mkdir(parents=True)
        roles = self.place.rendered[name]
        for role in roles.values():
            role.write(home)
        ports = {"front": self.front_port, "coalescer": self.port + 12000, "cache": self.port + 10000, "edge": self.port}
        for role_name, program in self.ROLES.items():
            self.program(f"{prefix}{program}", roles[role_name].command("central"), ports[program], namespace)

    def upstream(self) -> dict[str, Any]:
        """Where it is, as an operator writes it."""
        return {"url": f"https://{self.place.origin(self.far)}"}

    def _variables(self, home: Path) -> dict[str, Any]:
        """An operator's, and those that move what a role writes into the set-up's directory."""
        return {
            "mirror_upstreams": [{
                "name": "central", "path_prefix": PREFIX, "username": USER, "password": PASSWORD, "validate_certs": False, "port": self.port,
                "canary": "svc/app:1", **self.upstream(),
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
            "__pull_through_cache_guard_lib": str(home / "guard"),
            "pull_through_cache_guard_metrics": str(home / "metrics"),
            "__mirror_edge_config": str(home / "config/edge"),
            "__mirror_edge_work": str(home / "edge"),
            "__mirror_edge_logs": str(home / "logs"),
        }


class OursRedirected(Ours):
    name = "ours-redirect"
    about = "ours, and the central registry redirects blobs to object storage, by a signed URL"

    def upstream(self) -> dict[str, Any]:
        return {"url": f"https://{CENTRAL_ADDRESS}:{HUB_PORT}", "redirect_hosts": [f"{CENTRAL_ADDRESS}:{STORAGE_PORT}"]}


class OursTwice(Ours):
    """Each mirror host has a network namespace of its own, and is asked by its share of the clients."""

    name = "ours-2"
    about = "ours on two mirror hosts; the second asks the first"
    hosts = 2

    @property
    def urls(self) -> list[str]:
        return [f"http://{self.place.wan.host(number)[1]}:{self.port}" for number in range(1, self.hosts + 1)]

    @property
    def store(self) -> Path | None:
        return None

    def start(self) -> None:
        sources: list[dict[str, Any]] = []
        for number in range(1, self.hosts + 1):
            namespace, address = self.place.wan.host(number)
            name = f"mirror-{number}"
            self.mirror_host(self.directory / name, namespace, f"{name}-", {"haproxy_front_sources": list(sources)})
            # As playbooks/site.yml has it: a mirror host asks those that stand before it.
            sources.append({
                "name": name, "kind": "sibling", "address": address, "host": address, "tls": False, "ca_certificate": "", "login": False,
                "upstreams": ["central"],
            })


class OursThrice(OursTwice):
    name = "ours-3"
    about = "ours on three mirror hosts; each asks those before it"
    hosts = 3


class PlainFile(Setup):
    """Only for warm blobs: they are added one by one."""

    name = "file"
    about = "nginx, and the blob is a plain file"
    port = 5300

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
                listen 127.0.0.1:{self.port}{' ssl' if self.tls else ''};
                {certificate}
                root {self.root};
            }}"""))
        self.program("nginx", ["nginx", "-e", "stderr", "-g", "daemon off;", "-c", str(self.directory / "nginx.conf")], self.port)


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
    bind 127.0.0.1:{setup.front_port}
    http-request set-path {PREFIX}%[path]
    http-request set-header Host {setup.place.origin(setup.far)}
    http-request set-header Authorization "Basic {credential}"
    http-response replace-header Location ^(?:https?://[^/]+)?{PREFIX}(/v2/.*)$ \\1
    default_backend central
backend central
    server central {setup.place.origin(setup.far)} ssl verify none
""")
    setup.program("haproxy", ["haproxy", "-W", "-db", "-f", str(setup.directory / "haproxy.cfg")], setup.front_port)


SETUPS: dict[str, type[Setup]] = {each.name: each for each in (Direct, Classic, Drayage, Ours, OursTwice, OursThrice, OursRedirected)}
# Those that are asked for what they have, again and again.
WARM: tuple[type[Setup], ...] = (Classic, Drayage, Ours, PlainFile)
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
