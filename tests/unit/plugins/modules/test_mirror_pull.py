# Copyright (c) 2026, mirrorfleet contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path
from typing import Callable, Iterator

import pytest

from ansible_collections.mirrorfleet.registry.plugins.module_utils.image_manifest import host_platform
from ansible_collections.mirrorfleet.registry.plugins.modules import mirror_pull
from ansible_collections.mirrorfleet.registry.tests.unit.conftest import (
    Answers,
    Image,
    Registry,
    RunModule,
    Server,
    StartRegistry,
    answer,
    answers_of,
    digest_of,
    free_port,
    image_of,
    layer_of,
)

Serve = Callable[[Answers], Server]

BASE = layer_of({"base": os.urandom(3_000_000)})
APP = layer_of({"app": b"hello"})
SERVICE = image_of(BASE, APP)
PASSWORD = "s3cret-p4ss"


def test_a_cache_that_is_cold_then_warm_then_alone(start_registry: StartRegistry, registry: Registry, run_module: RunModule) -> None:
    registry.push("svc/app", "1", SERVICE)
    cache = start_registry(upstream=registry.url)
    cold = run_module(mirror_pull.main, image="svc/app:1", url=cache.url)
    assert {key: cold[key] for key in ("changed", "image", "digest", "platform", "bytes", "layers")} == {
        "changed": False, "image": "svc/app:1", "digest": SERVICE.digest, "platform": "linux/amd64", "bytes": SERVICE.size, "layers": 2,
    }
    assert [(blob["digest"], blob["bytes"]) for blob in cold["blobs"]] == [(digest, len(blob)) for digest, blob in SERVICE.blobs.items()]
    assert all(0 <= blob["seconds_to_first_byte"] <= blob["seconds"] <= cold["seconds"] for blob in cold["blobs"])
    assert 0 < cold["seconds_to_first_byte"] <= cold["seconds"]
    cache.until_stored(SERVICE.digest, *SERVICE.blobs)
    registry.stop()
    alone = run_module(mirror_pull.main, image="svc/app:1", url=cache.url)
    assert (alone["digest"], alone["bytes"]) == (SERVICE.digest, SERVICE.size)


def test_check_mode_pulls_too(registry: Registry, run_module: RunModule) -> None:
    registry.push("svc/app", "1", SERVICE)
    assert run_module(mirror_pull.main, image="svc/app:1", url=registry.url, _ansible_check_mode=True)["bytes"] == SERVICE.size


def test_an_index_is_pulled_for_a_platform(registry: Registry, run_module: RunModule) -> None:
    images = {name: image_of(layer_of({"app": name.encode()}), architecture=name.split("/")[1]) for name in ("linux/amd64", "linux/arm64/v8", "linux/arm/v7")}
    index = registry.push_index("svc/app", "1", images)
    size = registry.blob_path(index).stat().st_size
    for platform, image in (("linux/amd64", "linux/amd64"), ("linux/arm64", "linux/arm64/v8"), ("linux/arm", "linux/arm/v7"), ("linux/arm/v7", "linux/arm/v7")):
        pulled = run_module(mirror_pull.main, image="svc/app:1", url=registry.url, platform=platform)
        assert (pulled["digest"], pulled["bytes"]) == (index, size + images[image].size)
    default = run_module(mirror_pull.main, image="svc/app:1", url=registry.url)
    assert default["platform"] == host_platform()
    failed = run_module(mirror_pull.main, image="svc/app:1", url=registry.url, platform="linux/s390x")
    assert "not made for linux/s390x, but for linux/amd64, linux/arm/v7, linux/arm64" in failed["msg"]


def test_a_layer_that_stands_twice_is_pulled_once(serve: Serve, run_module: RunModule) -> None:
    image = image_of(APP, BASE, APP)
    server = serve(lambda path: answers_of(image)[path])
    pulled = run_module(mirror_pull.main, image="svc/app:1", url=server.url)
    assert (pulled["layers"], pulled["bytes"], len(server.requests)) == (2, image.size, 4)


def test_three_layers_come_at_once(serve: Serve, run_module: RunModule) -> None:
    image = image_of(*(layer_of({"n": bytes([number])}) for number in range(6)))
    together, under_way, most = threading.Barrier(3), [0], [0]
    lock = threading.Lock()

    def answers(path: str) -> bytes:
        if path in list(answers_of(image))[3:]:
            with lock:
                under_way[0] += 1
                most[0] = max(most[0], under_way[0])
            together.wait(10)
            with lock:
                under_way[0] -= 1
        return answers_of(image)[path]

    pulled = run_module(mirror_pull.main, image="svc/app:1", url=serve(answers).url)
    assert (pulled["layers"], most[0]) == (6, 3)


@pytest.mark.parametrize("reference", ["library/hello:1", "docker.io/hello:1", "quay.io/library/hello:1"])
def test_the_path_is_asked_for_and_the_domain_only_names(serve: Serve, run_module: RunModule, reference: str) -> None:
    server = serve(lambda path: answers_of(SERVICE, "library/hello")[path])
    assert run_module(mirror_pull.main, image=reference, url=server.url)["bytes"] == SERVICE.size


def test_a_registry_below_a_path_is_reached(serve: Serve, run_module: RunModule) -> None:
    server = serve(lambda path: answers_of(SERVICE)[path[len("/artifactory/api/docker/local"):]])
    assert run_module(mirror_pull.main, image=f"svc/app@{SERVICE.digest}", url=f"{server.url}/artifactory/api/docker/local/")["bytes"] == SERVICE.size


BLOB = f"/v2/svc/app/blobs/{digest_of(APP)}"
MANIFEST = "/v2/svc/app/manifests/1"


@pytest.mark.parametrize(("path", "said", "says"), [
    (MANIFEST, answer(401, b'{"errors": [{"code": "UNAUTHORIZED", "message": "authentication required"}]}'),
     f'{MANIFEST}: 401 Unauthorized, and says "authentication required (UNAUTHORIZED)". The given username and password were refused'),
    (MANIFEST, answer(404, b'{"errors": [{"code": "MANIFEST_UNKNOWN", "message": "manifest unknown"}]}'),
     f'{MANIFEST}: 404 Not Found, and says "manifest unknown (MANIFEST_UNKNOWN)". Check the name and the tag'),
    (MANIFEST, answer(502, b"the upstream refused the mirror's credentials"),
     f'{MANIFEST}: 502 Bad Gateway, and says "the upstream refused the mirror\'s credentials" (tried 2 times). It or its way to the upstream'),
    (MANIFEST, answer(200, b"<h1>It works!</h1>", Content_Type="text/html"), 'text/html and says "It works!". Something other than a registry answers there'),
    (BLOB, answer(503, b"<html><body><h1>503 Service Unavailable</h1>No server is available.</body></html>"),
     f'{BLOB}: 503 Service Unavailable, and says "503 Service Unavailable No server is available." (tried 2 times)'),
    (BLOB, answer(200, b"Y" * len(APP)), f"{BLOB}: the body has the digest sha256:"),
    (BLOB, [answer(200, APP)[:-5]], f"{BLOB}: the connection broke off after {len(APP) - 5} of {len(APP)} bytes (tried 2 times)"),
    (BLOB, answer(200, b"<h1>It works!</h1>", Content_Type="text/html"), "Something other than a registry answers there"),
    (BLOB, None, f"{BLOB}: no answer within 0.8 seconds (tried 2 times)"),
    (MANIFEST, None, f"{MANIFEST}: no answer within 0.8 seconds (tried 2 times)"),
])
def test_a_fault_is_told(serve: Serve, run_module: RunModule, path: str, said: bytes | list[bytes] | None, says: str) -> None:
    server = serve(lambda asked: said if asked == path else answers_of(SERVICE)[asked])
    given = {"url": server.url, "username": "reader", "password": PASSWORD, "retries": 1, "timeout": 0.8 if said is None else 30}
    failed = run_module(mirror_pull.main, image="svc/app:1", **given)
    assert failed["failed"] and failed["msg"].startswith(f"svc/app:1 can't be pulled. GET {server.url}")
    assert says in failed["msg"]
    assert PASSWORD not in json.dumps(failed)


def test_one_layers_fault_ends_the_pull(serve: Serve, run_module: RunModule) -> None:
    big = layer_of({"big": b""})

    def trickle() -> Iterator[bytes]:
        yield b"HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n\r\n"
        for _time in range(6000):
            yield bytes(10)
            time.sleep(0.01)

    def answers(path: str) -> bytes | Iterator[bytes]:
        if path.endswith(digest_of(big)):
            return trickle()
        return answer(404, b"gone") if path == BLOB else answers_of(image)[path]

    document = json.loads(image_of(big, APP).manifest)
    document["layers"][0]["size"] = 100_000_000
    image = Image(json.dumps(document).encode(), image_of(big, APP).blobs)
    began = time.monotonic()
    failed = run_module(mirror_pull.main, image="svc/app:1", url=serve(answers).url)
    assert "404 Not Found" in failed["msg"] and time.monotonic() - began < 30


@pytest.mark.parametrize(("arguments", "says"), [
    ({"image": "SVC/app:1:2"}, "is no image reference"),
    ({"url": "mirror.zagreb:5000"}, "Write https://host[:port]"),
    ({"url": f"https://reader:{PASSWORD}@mirror"}, "stands in the URL"),
    ({"timeout": 0}, "give more than 0"),
    ({"ca_certificate": "/absent.crt"}, "/absent.crt can't be read as a PEM certificate"),
    ({"username": "reader"}, "parameters are required together"),
])
def test_a_bad_argument_is_told(run_module: RunModule, arguments: dict[str, object], says: str) -> None:
    failed = run_module(mirror_pull.main, **{"image": "svc/app:1", "url": f"http://127.0.0.1:{free_port()}", "retries": 0, **arguments})
    assert failed["failed"] and says in failed["msg"] and PASSWORD not in failed["msg"]


def test_the_first_byte_is_told_of_when_it_comes(serve: Serve, run_module: RunModule) -> None:
    def slowly() -> Iterator[bytes]:
        head, _blank, body = answer(200, BASE).partition(b"\r\n\r\n")
        time.sleep(0.2)
        yield head + b"\r\n\r\n" + body[:1]
        time.sleep(1)
        yield body[1:]

    image = image_of(BASE)
    server = serve(lambda path: slowly() if path.endswith(digest_of(BASE)) else answers_of(image)[path])
    pulled = run_module(mirror_pull.main, image="svc/app:1", url=server.url)
    layer = pulled["blobs"][1]
    for told in (layer, pulled):
        assert told["seconds_to_first_byte"] >= 0.2 and told["seconds"] - told["seconds_to_first_byte"] > 0.5


@pytest.mark.parametrize(("said", "cached"), [
    (None, None), ("mirror; hit", True), ("mirror; fwd=uri-miss", False), ('outer; fwd=miss; detail="a hit", mirror;hit;ttl=9', True), ("hit", False),
])
def test_what_the_mirror_had_is_told(serve: Serve, run_module: RunModule, said: str | None, cached: bool | None) -> None:
    blob = answer(200, APP, **({"Cache_Status": said} if said else {}))
    pulled = run_module(mirror_pull.main, image="svc/app:1", url=serve(lambda path: blob if path == BLOB else answers_of(SERVICE)[path]).url)
    assert [each["cached"] for each in pulled["blobs"]] == [None, None, cached]
    assert pulled["bytes_cached"] == {None: None, True: len(APP), False: 0}[cached]


def test_nothing_is_left_on_the_host(registry: Registry, run_module: RunModule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registry.push("svc/app", "1", SERVICE)
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setenv("TMPDIR", str(here))
    run_module(mirror_pull.main, image="svc/app:1", url=registry.url)
    assert list(here.iterdir()) == []
