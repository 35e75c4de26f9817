# Copyright (c) 2026, mirrorfleet contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0
"""The four programs of a mirror host, as the roles configure them, and a WAN that fails in every way."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Iterator

import pytest

from ansible_collections.mirrorfleet.registry.plugins.module_utils.image_pull import pull_image
from ansible_collections.mirrorfleet.registry.plugins.module_utils.registry_client import RegistryClient
from ansible_collections.mirrorfleet.registry.plugins.module_utils.upstreams import PORT_OFFSETS
from ansible_collections.mirrorfleet.registry.tests.unit.conftest import (
    Image,
    Registry,
    free_port,
    image_of,
    layer_of,
    until,
)
from ansible_collections.mirrorfleet.registry.tests.unit.roles import test_haproxy_front as haproxy_front
from ansible_collections.mirrorfleet.registry.tests.unit.roles import test_mirror_edge as mirror_edge
from ansible_collections.mirrorfleet.registry.tests.unit.roles.conftest import Render, cache_configuration, upstream_port
from ansible_collections.mirrorfleet.registry.tests.unit.roles.test_fetch_coalescer import variables_in, varnish

UNAVAILABLE = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 4\r\nConnection: close\r\n\r\ndown"


class Wan:
    """A way to a port on this host that can be cut: connections are refused, answered with 503, accepted and left, or not even that."""

    def __init__(self, to: int) -> None:
        self._to = to
        self._open = threading.Event()
        self._open.set()
        self._says_503 = False
        self._connections: list[socket.socket] = []
        self._fillers: list[socket.socket] = []
        # It must be free once more when the way is mended.
        self.port = free_port()
        self._listener = socket.create_server(("127.0.0.1", self.port), backlog=128)
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def cut(self, way: str) -> None:
        if way == "is a black hole":
            # A full queue drops what comes, as a firewall does. What is open goes silent.
            self._open.clear()
            self._listener.listen(0)
            for _number in range(4):
                filler = socket.socket()
                filler.setblocking(False)
                filler.connect_ex(("127.0.0.1", self.port))
                self._fillers.append(filler)
        elif way == "hangs":
            self._open.clear()
        elif way == "answers 503":
            self._says_503 = True
            self._hang_up()
        elif way == "refuses":
            # Closing does not wake a thread that accepts.
            with contextlib.suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
            self._hang_up()

    def mend(self) -> None:
        self._hang_up()
        for filler in self._fillers:
            filler.close()
        self._fillers.clear()
        self._says_503 = False
        if self._listener.fileno() == -1:
            self._listener = socket.create_server(("127.0.0.1", self.port), backlog=128)
            threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()
        self._listener.listen(128)
        self._open.set()

    def _hang_up(self) -> None:
        while self._connections:
            connection = self._connections.pop()
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                connection = listener.accept()[0]
            except OSError:
                return
            self._connections.append(connection)
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()
            # A black hole accepts nothing more.
            while self._fillers:
                time.sleep(0.02)

    def _serve(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            if self._says_503:
                connection.recv(65536)
                connection.sendall(UNAVAILABLE)
                return
            with socket.create_connection(("127.0.0.1", self._to)) as there:
                self._connections.append(there)
                threading.Thread(target=self._pump, args=(there, connection), daemon=True).start()
                self._pump(connection, there)

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                self._open.wait()
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)


@dataclass
class Mirror:
    """A mirror host's four programs."""

    edge: mirror_edge.Edge
    front: haproxy_front.Front
    cache: Registry
    coalescer: Path  # where its store is

    def ask(self, target: str) -> tuple[int, bytes, float]:
        began = time.monotonic()
        status, _headers, body = self.edge.request("central", target, Accept="application/vnd.oci.image.manifest.v1+json")
        return status, body, time.monotonic() - began

    def pull(self, image: str) -> dict[str, Any]:
        with RegistryClient(f"http://127.0.0.1:{self.edge.ports['central']}", retries=0) as client:
            return pull_image(client, image, "linux/amd64")

    def in_reach(self) -> bool:
        return bool(self.front.figures("central")["healthy"])


@contextlib.contextmanager
def mirror_host(render: Render, base: Path, url: str, **variables: Any) -> Iterator[Mirror]:
    """A mirror host of one upstream, `central`, with everything below `base`; `variables` are the roles'."""
    port, stats_port = upstream_port(), free_port()
    variables = {
        "mirror_upstreams": [{"name": "central", "url": url, "port": port, "canary": "svc/app:1"}],
        "haproxy_front_stats_bind": f"127.0.0.1:{stats_port}", "__haproxy_front_run": str(base / "front"),
        **variables_in(base), "pull_through_cache_storage": str(base / "store"),
        **mirror_edge.directories(base / "edge"), "mirror_edge_tls": "none", "mirror_edge_bind": "127.0.0.1",
        **variables,
    }
    files = {role: render(role, variables)[0] for role in ("haproxy_front", "fetch_coalescer", "pull_through_cache", "mirror_edge")}
    cache = Registry(port + PORT_OFFSETS["cache"], port + PORT_OFFSETS["debug"], base / "store/central")
    for name in ("front", "store", "edge"):
        (base / name).mkdir()
    with contextlib.ExitStack() as running:
        ports = {"central": port + PORT_OFFSETS["front"]}
        front = running.enter_context(haproxy_front.haproxy(files["haproxy_front"], base / "front", ports, stats_port))
        running.enter_context(varnish(files["fetch_coalescer"], "central", base / "central"))
        cache.start(cache_configuration(files["pull_through_cache"], "central"))
        running.callback(cache.stop)
        edge = mirror_edge.start_nginx(base / "edge", files["mirror_edge"], "127.0.0.1", {"central": port})
        running.callback(edge.process.wait, 10)
        running.callback(edge.process.send_signal, signal.SIGTERM)
        mirror_edge.listen(edge)
        yield Mirror(edge, front, cache, base / "central")


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    hub = Registry(free_port(), free_port(), tmp_path_factory.mktemp("hub") / "store")
    hub.start()
    yield hub
    hub.stop()


@pytest.fixture(scope="module")
def wan(hub: Registry) -> Iterator[Wan]:
    wan = Wan(hub.port)
    yield wan
    wan.mend()


@pytest.fixture(scope="module")
def mirror(render: Render, base: Path, wan: Wan) -> Iterator[Mirror]:
    with mirror_host(render, base, f"http://127.0.0.1:{wan.port}") as running:
        yield running


def fresh_image() -> Image:
    return image_of(layer_of({"fresh": os.urandom(1000)}))


@pytest.mark.parametrize("way", ["refuses", "answers 503", "hangs", "is a black hole"])
def test_the_upstream(mirror: Mirror, hub: Registry, wan: Wan, way: str) -> None:
    name = way.replace(" ", "-")
    cached, uncached = fresh_image(), fresh_image()
    hub.push(f"svc/{name}", "cached", cached)
    hub.push(f"svc/{name}", "uncached", uncached)
    until(mirror.in_reach)
    mirror.pull(f"svc/{name}:cached")
    mirror.cache.until_stored(cached.digest, *cached.blobs)
    blob = next(iter(cached.blobs))

    wan.cut(way)
    try:
        # Names of contents are never asked for over the WAN.
        for target, content in ((f"blobs/{blob}", cached.blobs[blob]), (f"manifests/{cached.digest}", cached.manifest)):
            status, body, seconds = mirror.ask(f"/v2/svc/{name}/{target}")
            assert (status, body) == (200, content) and seconds < 1
        status, body, at_the_onset = mirror.ask(f"/v2/svc/{name}/manifests/cached")
        assert (status, body) == (200, cached.manifest)
        until(lambda: not mirror.in_reach(), 15)
        _status, _body, seconds = mirror.ask(f"/v2/svc/{name}/manifests/cached")
        print(f"{way}: a cached tag {at_the_onset:.2f} s at the onset, {seconds:.2f} s after")
        assert at_the_onset < 4 and seconds < 1
        status, body, seconds = mirror.ask(f"/v2/svc/{name}/manifests/uncached")
        assert status in (502, 503, 504) and seconds < 10
        assert "the upstream central " in json.loads(body)["errors"][0]["message"]
        # It starts, and serves.
        mirror.cache.stop()
        mirror.cache.start()
        assert mirror.pull(f"svc/{name}:cached")["digest"] == cached.digest
    finally:
        wan.mend()
    began = time.monotonic()
    until(lambda: mirror.ask(f"/v2/svc/{name}/manifests/uncached")[0] == 200, 20)
    print(f"{way}: healed after {time.monotonic() - began:.1f} s")
    assert mirror.pull(f"svc/{name}:uncached")["digest"] == uncached.digest
