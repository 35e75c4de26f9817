# Copyright (c) 2026, mirrorfleet contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0
"""The four programs of a mirror host, as the roles configure them, and a store that is changed under their hands."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import os
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Iterator

import pytest

from ansible_collections.mirrorfleet.registry.plugins.module_utils.storage import Store
from ansible_collections.mirrorfleet.registry.plugins.module_utils.store_evict import Criteria, evict
from ansible_collections.mirrorfleet.registry.plugins.module_utils.store_removal import remove_data, remove_link
from ansible_collections.mirrorfleet.registry.tests.unit.conftest import Image, Registry, free_port, image_of, layer_of, until
from ansible_collections.mirrorfleet.registry.tests.unit.roles.conftest import Render
from ansible_collections.mirrorfleet.registry.tests.unit.roles.test_upstream_gone import Mirror, mirror_host
from ansible_collections.mirrorfleet.registry.tests.unit.roles.test_virtual_address import check

CLIENTS = 20
EVICTIONS = 24


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    hub = Registry(free_port(), free_port(), tmp_path_factory.mktemp("hub") / "store")
    hub.start()
    yield hub
    hub.stop()


@pytest.fixture(scope="module")
def mirror(render: Render, base: Path, hub: Registry) -> Iterator[Mirror]:
    with mirror_host(render, base, hub.url, mirror_edge_client_connections=0, mirror_edge_client_requests_per_second=0) as running:
        until(running.in_reach)
        yield running


class Pullers:
    """Clients that ask the edge for a blob without pause; `seen` counts what they got."""

    def __init__(self, port: int, digest: str) -> None:
        self.seen: Counter[str] = Counter()
        self._port, self._digest = port, digest
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._pull) for _number in range(CLIENTS)]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(30)

    def _pull(self) -> None:
        while not self._over.is_set():
            # One connection for a few pulls, as docker does.
            connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=30)
            for _number in range(5):
                try:
                    connection.request("GET", f"/v2/svc/app/blobs/{self._digest}")
                    answer = connection.getresponse()
                    body = answer.read()
                    right = answer.status == 200 and f"sha256:{hashlib.sha256(body).hexdigest()}" == self._digest
                    self.seen["right" if right else f"{answer.status}: {body[:200]!r}"] += 1
                except (OSError, http.client.HTTPException) as error:
                    self.seen[f"{type(error).__name__}: {error}"[:80]] += 1
                    break
            connection.close()


def is_try_again(answer: str) -> bool:
    """What any fill for several clients has now and then: distribution 2.8 empties a link that is there before it writes it anew
    (filesystem/driver.go: PutContent), and says 500 to who reads it meanwhile. Docker tries again after a 5xx."""
    return "503" in answer and "could not keep this blob a moment ago: try again" in answer


def settle(mirror: Mirror, *digests: str) -> None:
    """Let a second go by, and make it look like a minute: who asked before a blob was there has been answered."""
    time.sleep(1)
    for digest in digests:
        with contextlib.suppress(FileNotFoundError):
            os.utime(mirror.cache.blob_path(digest), (time.time() - 60,) * 2)


def layer_of_image(image: Image) -> str:
    return list(image.blobs)[1]


def test_a_blob_that_twenty_clients_pull_without_pause_is_evicted(mirror: Mirror, hub: Registry) -> None:
    image = image_of(layer_of({"app": os.urandom(500_000)}))
    hub.push("svc/app", "1", image)
    mirror.pull("svc/app:1")
    mirror.cache.until_stored(image.digest, *image.blobs)
    store, layer = Store(str(mirror.cache.root)), layer_of_image(image)
    pullers = Pullers(mirror.edge.ports["central"], layer)
    gone = kept = 0
    try:
        for number in range(EVICTIONS):
            until(mirror.cache.blob_path(layer).exists)
            settle(mirror, layer)
            if number % 2:
                # Also where nothing tells that it is being sent, as on a file system without leases.
                held = store.held(store.blob_path(layer))
                assert held is not None
                gone += remove_data(store, layer, held)
                remove_link(store, store.layer_path("svc/app", layer))
            else:
                (outcome,) = evict([("central", str(mirror.cache.root))], Criteria(images=("svc/app:1",)), "a test", 0)
                gone += len(outcome.evicted)
                kept += len(outcome.kept)
            mirror.ask("/v2/svc/app/manifests/1")
    finally:
        pullers.stop()
    print(f"{gone} evictions, {kept} put off, answers: {dict(pullers.seen)}")
    assert gone >= EVICTIONS / 4 and pullers.seen["right"] > 10 * CLIENTS
    assert all(answer == "right" or is_try_again(answer) for answer in pullers.seen)
    # Now and then: a slow machine makes as many evictions, and fewer pulls.
    assert sum(pullers.seen.values()) - pullers.seen["right"] <= max(gone, 0.001 * sum(pullers.seen.values()))
    mirror.cache.until_stored(layer)


def test_an_image_that_is_pulled_without_pause_is_evicted_again_and_again(mirror: Mirror, hub: Registry) -> None:
    images = [image_of(layer_of({"base": b"shared" * 10_000}), layer_of({"app": os.urandom(100_000)})) for _number in range(4)]
    for number, image in enumerate(images):
        hub.push(f"svc/again{number}", "1", image)
    over, wrong, done = threading.Event(), [], Counter[str]()

    def pull(number: int) -> None:
        while not over.is_set():
            try:
                mirror.pull(f"svc/again{number % len(images)}:1")
                done["pulls"] += 1
            except Exception as error:  # pylint: disable=broad-except
                wrong.append(str(error))

    threads = [threading.Thread(target=pull, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    try:
        while done["evictions"] < 20:
            settle(mirror, *(digest for image in images for digest in image.blobs))
            (outcome,) = evict([("central", str(mirror.cache.root))], Criteria(images=("svc/again*",)), "a test", 0)
            done["evictions"] += len(outcome.evicted)
    finally:
        over.set()
        for thread in threads:
            thread.join(30)
    print(dict(done))
    assert all("503" in each and "try again" in each for each in wrong) and len(wrong) < 0.05 * done["pulls"] and done["pulls"] > 20


def test_a_cache_that_is_drained_says_so_and_serves_who_is_there(mirror: Mirror, hub: Registry) -> None:
    hub.push("svc/drained", "1", image_of(layer_of({"app": b"x"})))
    drained = mirror.cache.root / ".mirrorfleet/drained"
    drained.parent.mkdir(exist_ok=True)
    drained.write_text("{}")
    status, body, _seconds = mirror.ask("/v2/")
    assert status == 503 and b"the cache of central on this mirror host is out of service" in body
    # So keepalived gives the virtual address to another host.
    assert check(mirror.edge.ports["central"]) == 1
    # Who comes all the same is served: what is stored, and what is not.
    mirror.pull("svc/drained:1")
    mirror.pull("svc/drained:1")
    drained.unlink()
    assert mirror.ask("/v2/")[0] == 200 and check(mirror.edge.ports["central"]) == 0
