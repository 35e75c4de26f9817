# Copyright (c) 2026, mirrorfleet contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0
"""The four programs of a mirror host, as the roles configure them, and an upstream that answers wrongly in every way."""

from __future__ import annotations

import http.client
import json
import os
import re
import socket
import struct
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Callable, Iterator

import pytest
import yaml

from ansible_collections.mirrorfleet.registry.plugins.module_utils.errors import RegistryFleetError
from ansible_collections.mirrorfleet.registry.tests.unit.conftest import Image, digest_of, image_of, layer_of, until
from ansible_collections.mirrorfleet.registry.tests.unit.roles.conftest import ROLES, Answer, Handler, Render, Upstream
from ansible_collections.mirrorfleet.registry.tests.unit.roles.test_upstream_gone import Mirror, mirror_host

STALL_SECONDS, KEEP_SECONDS = 4, 5
# The longest that the issue allows until a pull is right again.
HEALED_SECONDS = 15
REPOSITORY = "svc/app"

# Writes an answer for this content, instead of the right one; the connection ends after it.
Way = Callable[["BreakingHandler", bytes], None]


class BreakingHandler(Handler):
    server: BreakingUpstream

    def do_GET(self) -> None:
        way = self.server.ways.get(self.path)
        if way is None or self.command == "HEAD":
            super().do_GET()
        else:
            self.server.broke += 1
            self.close_connection = True
            way(self, self.server.answers[self.path].body)

    do_HEAD = do_GET

    def say(self, content: bytes, **headers: str) -> None:
        self.send_response(200)
        for name, value in {"Content_Type": "application/octet-stream", **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(content)


class BreakingUpstream(Upstream):
    """A registry that has what it is given, and answers some paths in a way of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.RequestHandlerClass = BreakingHandler
        self.ways: dict[str, Way] = {}
        self.broke = 0

    def publish(self, image: Image, tag: str, repository: str = REPOSITORY) -> None:
        named = {"Content-Type": image.media_type, "Docker-Content-Digest": image.digest}
        for target in (tag, image.digest):
            self.answers[f"/v2/{repository}/manifests/{target}"] = Answer(headers=named, body=image.manifest)
        for digest, blob in image.blobs.items():
            self.answers[blob_path(digest, repository)] = Answer(headers={"Content-Type": "application/octet-stream"}, body=blob)


def blob_path(digest: str, repository: str = REPOSITORY) -> str:
    return f"/v2/{repository}/blobs/{digest}"


def is_reset(handler: BreakingHandler, content: bytes) -> None:
    handler.say(content[:len(content) // 2], Content_Length=str(len(content)))
    # With nothing left to linger for, a close is a reset.
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    os.close(handler.connection.detach())


def ends_in_chunks(handler: BreakingHandler, content: bytes) -> None:
    half = content[:len(content) // 2]
    handler.say(b"%x\r\n%b\r\n0\r\n\r\n" % (len(half), half), Transfer_Encoding="chunked")


def ends_before_its_length(handler: BreakingHandler, content: bytes) -> None:
    handler.say(content[:len(content) // 2], Content_Length=str(len(content)))


def says_too_long_a_length(handler: BreakingHandler, content: bytes) -> None:
    handler.say(content, Content_Length=str(len(content) + 1000))


def says_too_short_a_length(handler: BreakingHandler, content: bytes) -> None:
    handler.say(content, Content_Length=str(len(content) // 2))


def stalls(handler: BreakingHandler, content: bytes) -> None:
    handler.say(content[:len(content) // 2], Content_Length=str(len(content)))
    threading.Event().wait(STALL_SECONDS * 4)


def is_a_page(handler: BreakingHandler, _content: bytes) -> None:
    handler.say(b"<h1>It works!</h1>", Content_Type="text/html", Content_Length="18")


def has_wrong_bytes(handler: BreakingHandler, content: bytes) -> None:
    handler.say(bytes(len(content)), Content_Length=str(len(content)))


@pytest.fixture(scope="module")
def upstream() -> Iterator[BreakingUpstream]:
    upstream = BreakingUpstream()
    yield upstream
    upstream.stop()


@pytest.fixture(scope="module")
def started(render: Render, base: Path, upstream: BreakingUpstream) -> Iterator[Mirror]:
    variables = {
        "haproxy_front_timeout_stall": STALL_SECONDS, "__fetch_coalescer_timeout_stall": STALL_SECONDS + 1, "fetch_coalescer_keep_seconds": KEEP_SECONDS,
    }
    with mirror_host(render, base, f"http://127.0.0.1:{upstream.port}", **variables) as running:
        yield running


@pytest.fixture
def mirror(started: Mirror, upstream: BreakingUpstream) -> Mirror:
    upstream.ways.clear()
    upstream.broke = 0
    until(started.in_reach)
    return started


def fresh_image(size: int = 400_000) -> Image:
    return image_of(layer_of({"fresh": os.urandom(size)}))


def layer_digest(image: Image) -> str:
    """Of its one layer."""
    return list(image.blobs)[1]


def wrong_files(mirror: Mirror) -> list[Path]:
    """Blobs of the store whose bytes are not their name's."""
    return [path for path in mirror.cache.v2.glob("blobs/sha256/*/*/data") if digest_of(path.read_bytes()) != f"sha256:{path.parent.name}"]


def pulls(mirror: Mirror, image: str, count: int) -> list[str]:
    """What went wrong with each of so many pulls at once; those that got every byte are left out."""
    def one(_number: int) -> str:
        try:
            mirror.pull(image)
        except RegistryFleetError as error:
            return str(error)
        return ""

    with ThreadPoolExecutor(count) as pool:
        return [why for why in pool.map(one, range(count)) if why]


def seconds_until_right(mirror: Mirror, image: str) -> float:
    return until(lambda: not pulls(mirror, image, 1), HEALED_SECONDS)


@pytest.mark.parametrize("way", [
    is_reset, ends_in_chunks, ends_before_its_length, says_too_long_a_length, says_too_short_a_length, stalls, is_a_page, has_wrong_bytes,
])
def test_a_blob_that(mirror: Mirror, upstream: BreakingUpstream, way: Way) -> None:
    """Nobody who joined takes it for whole, nothing of it is kept, and soon after the upstream is well again so is the pull."""
    image, tag = fresh_image(), way.__name__
    upstream.publish(image, tag)
    path = blob_path(layer_digest(image))
    upstream.ways[path] = way
    failures = pulls(mirror, f"{REPOSITORY}:{tag}", 5)
    assert len(failures) == 5 and upstream.broke > 0
    assert not mirror.cache.blob_path(layer_digest(image)).exists()
    upstream.ways.clear()
    seconds = seconds_until_right(mirror, f"{REPOSITORY}:{tag}")

    def is_kept() -> bool:
        """Distribution fetches for its store beside the client: a pull in the moment when the wrong one is forgotten is right, and the next one is stored."""
        assert not pulls(mirror, f"{REPOSITORY}:{tag}", 1)
        return mirror.cache.blob_path(layer_digest(image)).exists()

    until(is_kept)
    assert not wrong_files(mirror)
    print(f"{tag}: right after {seconds:.1f} s; {failures[0]}")


def test_what_looks_whole_is_forgotten_in_a_minute() -> None:
    """The tests above wait for less; this is what a fleet has."""
    defaults = yaml.safe_load((ROLES / "fetch_coalescer/defaults/main.yml").read_text())
    assert defaults["fetch_coalescer_keep_seconds"] + HEALED_SECONDS - KEEP_SECONDS <= 60


def test_wrong_bytes_are_forgotten_at_once_by_the_command_of_the_manual(mirror: Mirror, upstream: BreakingUpstream) -> None:
    image = fresh_image()
    upstream.publish(image, "by-command")
    upstream.ways[blob_path(layer_digest(image))] = has_wrong_bytes
    assert pulls(mirror, f"{REPOSITORY}:by-command", 1)
    upstream.ways.clear()
    manual = (ROLES.parent / "docs/operate.md").read_text()
    command, = [line.strip() for line in manual.splitlines() if line.startswith("    varnishadm ")]
    shell = command.replace("/var/lib/mirrorfleet/coalescer/central", str(mirror.coalescer))
    subprocess.run(shell, shell=True, check=True, capture_output=True)
    assert not pulls(mirror, f"{REPOSITORY}:by-command", 1)


def alerts(mirror: Mirror) -> int:
    """The 5xx that the rewrite front has answered, as Prometheus sees them."""
    _status, metrics = mirror.front.stats("/metrics")
    count, = re.findall(r'^haproxy_frontend_http_responses_total\{proxy="central",code="5xx"\} (\d+)', metrics, re.MULTILINE)
    return int(count)


@pytest.mark.parametrize(("status", "told"), [(401, 502), (403, 502), (404, 404), (429, 429), (500, 500)])
def test_an_upstream_that_answers(mirror: Mirror, upstream: BreakingUpstream, status: int, told: int) -> None:
    """What is cached is served. Of what is not, the docker host hears what is its business, and never a challenge."""
    cached, uncached, partly = (fresh_image() for _number in range(3))
    repository = f"svc/says{status}"
    for image, tag in ((cached, "cached"), (uncached, "uncached"), (partly, "partly")):
        upstream.publish(image, tag, repository)
    mirror.pull(f"{repository}:cached")
    until(lambda: all(mirror.cache.blob_path(each).exists() for each in (cached.digest, *cached.blobs)))
    mirror.ask(f"/v2/{repository}/manifests/partly")
    before = alerts(mirror)
    headers = {"Retry-After": "7", "Content-Type": "application/json", "WWW-Authenticate": 'Basic realm="upstream"'}
    for path in [path for path in upstream.answers if f"/{repository}/" in path]:
        upstream.answers[path] = Answer(status, headers, b'{"errors":[{"code":"OF_THE_UPSTREAM","message":"its own words"}]}')

    layer = layer_digest(cached)
    for target, content in (("manifests/cached", cached.manifest), (f"manifests/{cached.digest}", cached.manifest), (f"blobs/{layer}", cached.blobs[layer])):
        got, body, seconds = mirror.ask(f"/v2/{repository}/{target}")
        assert (got, body) == (200, content) and seconds < 4
    for target in ("manifests/uncached", f"blobs/{layer_digest(partly)}"):
        got, answered, body = mirror.edge.request("central", f"/v2/{repository}/{target}", Accept=cached.media_type)
        why = json.loads(body)["errors"][0]["message"]
        assert (got, answered["WWW-Authenticate"]) == (told, None)
        if told == 502:
            assert "the upstream central " in why and f"refused this mirror host with {status}" in why
        else:
            assert (why, answered["Retry-After"]) == ("its own words", "7")
    assert (alerts(mirror) > before) == (told >= 500)


class Reader:
    """A client that has begun to read a blob from the edge."""

    def __init__(self, mirror: Mirror, digest: str) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", mirror.edge.ports["central"], timeout=60)
        self._connection.request("GET", blob_path(digest))
        self._response = self._connection.getresponse()
        self._first = self._response.read(1)

    def rest(self) -> bytes:
        whole = self._first + self._response.read()
        self._connection.close()
        return whole

    def leave(self) -> None:
        self._response.close()
        self._connection.close()


def test_thirty_of_fifty_leave_in_the_middle(mirror: Mirror, upstream: BreakingUpstream) -> None:
    go = threading.Event()

    def waits_in_the_middle(handler: BreakingHandler, content: bytes) -> None:
        half = len(content) // 2
        handler.say(content[:half], Content_Length=str(len(content)))
        # Before anybody takes it for a stall.
        go.wait(STALL_SECONDS / 2)
        handler.wfile.write(content[half:])

    image = fresh_image(3_000_000)
    upstream.publish(image, "left")
    digest = layer_digest(image)
    upstream.ways[blob_path(digest)] = waits_in_the_middle
    before = mirror.front.figures("central")["wan_bytes"]
    with ThreadPoolExecutor(50) as pool:
        readers = list(pool.map(lambda _number: Reader(mirror, digest), range(50)))
        for each in readers[:30]:
            each.leave()
        go.set()
        assert all(whole == image.blobs[digest] for whole in pool.map(Reader.rest, readers[30:]))
    until(mirror.cache.blob_path(digest).exists)
    crossed = mirror.front.figures("central")["wan_bytes"] - before
    print(f"amplification {crossed / len(image.blobs[digest]):.4f}")
    assert crossed <= 1.01 * len(image.blobs[digest])
