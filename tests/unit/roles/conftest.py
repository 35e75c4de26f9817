# Copyright (c) 2026, mirrorfleet contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0
"""What the tests of the roles' templates need: Ansible itself to render them, and upstreams that write down what they get."""

from __future__ import annotations

import functools
import http.server
import itertools
import json
import os
import random
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Iterator

import pytest
import yaml

from ansible_collections.mirrorfleet.registry.plugins.module_utils.upstreams import PORT_OFFSETS
from ansible_collections.mirrorfleet.registry.tests.unit.conftest import ansible, own_endings

ROLES = Path(__file__).resolve().parents[3] / "roles"

# The files of a role for each set of variables, as mirror_service hands them to service_config.
Render = Callable[..., "list[list[dict[str, Any]]]"]


def render_role(directory: Path, role: str, *sets: dict[str, Any], template: str = "files.yml.j2") -> list[list[dict[str, Any]]]:
    """Let Ansible render the template of a role's files, once for each set of variables."""
    directory.mkdir()
    (directory / "templates").symlink_to(ROLES / role / "templates")
    plays = [{
        "hosts": "localhost",
        "gather_facts": False,
        # Ansible knows it where a role runs.
        "vars": {"role_path": str(ROLES / role)},
        "vars_files": [str(ROLES / role / name / "main.yml") for name in ("defaults", "vars")] + [f"set{number}.json"],
        "tasks": [{
            "ansible.builtin.copy": {
                "content": f"{{{{ lookup('ansible.builtin.template', '{template}') }}}}", "dest": str(directory / f"files{number}.yml"), "mode": "0600",
            },
        }],
    } for number in range(len(sets))]
    for number, variables in enumerate(sets):
        (directory / f"set{number}.json").write_text(json.dumps(variables))
    (directory / "play.yml").write_text(json.dumps(plays))
    done = ansible(
        "ansible-playbook", "--inventory", "localhost,", "--connection", "local", "--extra-vars", f"ansible_python_interpreter={sys.executable}", "play.yml",
        directory=directory,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return [yaml.safe_load((directory / f"files{number}.yml").read_text()) for number in range(len(sets))]


@pytest.fixture(scope="session")
def render(tmp_path_factory: pytest.TempPathFactory) -> Render:
    """``render(role, variables, …)``: the files of a role for each set of variables."""
    return lambda role, *sets, **options: render_role(tmp_path_factory.mktemp("render") / role, role, *sets, **options)


def cache_file(files: list[dict[str, Any]], name: str) -> dict[str, Any]:
    """What the role pull_through_cache writes for the distribution of an upstream."""
    file, = (each for each in files if each["path"].endswith(f"/{name}.yml"))
    return file


def cache_configuration(files: list[dict[str, Any]], name: str) -> dict[str, Any]:
    return dict(yaml.safe_load(cache_file(files, name)["content"]))


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        # As servers do: a connection that is over holds its port for a minute, and there may be thousands.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError:
            return False
        return True


@functools.cache
def _endings() -> Iterator[int]:
    """Those that free_port leaves. All ports of an upstream have the same."""
    return itertools.cycle(own_endings()[0][1::2])


def upstream_port() -> int:
    """An upstream's port, all of whose ports are free and below the ephemeral ones, where a connection of another test may come to be."""
    while True:
        port = random.randrange(2000, 32000 - max(PORT_OFFSETS.values()), 1000) + next(_endings())
        if all(is_free(port + offset) for offset in PORT_OFFSETS.values()):
            return port


def unprivileged() -> dict[str, Any]:
    """The units run their programs as users who are not root; a test that is root runs them as nobody."""
    return {"user": "nobody", "group": "nogroup", "extra_groups": []} if os.geteuid() == 0 else {}


@pytest.fixture(scope="module")
def base() -> Iterator[Path]:
    """A directory that the user nobody may enter, which pytest's is not."""
    with tempfile.TemporaryDirectory(prefix="mirrorfleet-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


@dataclass
class Seen:
    """A request as it arrived."""

    method: str
    target: str
    headers: dict[str, str]


@dataclass
class Answer:
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b"{}"
    seconds: float = 0
    then: Answer | None = None  # what is said from the next time on


class Upstream(http.server.ThreadingHTTPServer):
    """A server that notes every request but health checks, and answers as `answers` says for the request's path."""

    daemon_threads = True
    request_queue_size = 128
    # The name localhost may stand for 127.0.0.1 and for ::1: Linux gives such a socket both.
    address_family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET

    def __init__(self, certificate: Path | None = None, port: int = 0, address: str = "") -> None:
        super().__init__((address, port), Handler)
        self.seen: list[Seen] = []
        self.answers: dict[str, Answer] = {}
        self.hanging = threading.Event()
        self.health_path = "/v2/"
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            self.socket = context.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)
        self.thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05})
        self.thread.start()

    @property
    def port(self) -> int:
        return int(self.server_address[1])

    def stop(self) -> None:
        self.shutdown()
        self.thread.join()
        self.server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that leaves or does not trust the certificate is part of the tests."""


class Handler(http.server.BaseHTTPRequestHandler):
    server: Upstream
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if self.server.hanging.is_set():
            self.server.hanging.wait()
            threading.Event().wait(30)
        answer = self.server.answers.get(self.path.partition("?")[0], Answer())
        if answer.then:
            self.server.answers[self.path.partition("?")[0]] = answer.then
        if self.headers["User-Agent"] != "mirrorfleet":
            self.server.seen.append(Seen(self.command, self.path, {key.lower(): value for key, value in self.headers.items()}))
        time.sleep(answer.seconds)
        self.send_response(answer.status)
        for key, value in {"Content-Length": str(len(answer.body)), **answer.headers}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body)

    do_HEAD = do_POST = do_PUT = do_DELETE = do_PATCH = do_OPTIONS = do_GET

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Key and self-signed certificate of the host `localhost`, in one file."""
    directory = tmp_path_factory.mktemp("certificate")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2", "-subj", "/CN=test",
         "-addext", "subjectAltName=DNS:localhost", "-keyout", "key.pem", "-out", "certificate.pem"],
        cwd=directory, check=True, capture_output=True,
    )
    both = directory / "both.pem"
    both.write_text((directory / "key.pem").read_text() + (directory / "certificate.pem").read_text())
    return both


@pytest.fixture(scope="module")
def start_upstream() -> Iterator[Callable[..., Upstream]]:
    """``start_upstream(certificate, port, address)`` starts one more upstream."""
    running: list[Upstream] = []

    def start(certificate: Path | None = None, port: int = 0, address: str = "") -> Upstream:
        running.append(Upstream(certificate, port, address))
        return running[-1]

    yield start
    for each in running:
        if each.thread.is_alive():
            each.stop()
