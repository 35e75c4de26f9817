# Copyright (c) 2026, mirrorfleet contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0
"""The coalescer's configuration in a real Varnish, started as its unit starts it, before an upstream that does what a test tells it."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import shlex
import shutil
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Iterable, Iterator

import pytest

from ansible_collections.mirrorfleet.registry.plugins.module_utils.image_pull import pull_image
from ansible_collections.mirrorfleet.registry.plugins.module_utils.registry_client import RegistryClient
from ansible_collections.mirrorfleet.registry.plugins.module_utils.upstreams import PORT_OFFSETS
from ansible_collections.mirrorfleet.registry.tests.unit.conftest import (
    Registry,
    Server,
    answer,
    answers_of,
    digest_of,
    free_port,
    image_of,
    layer_of,
    listens,
    until,
)
from ansible_collections.mirrorfleet.registry.tests.unit.roles.conftest import Render, cache_configuration, unprivileged, upstream_port

STORAGE_BYTES = 16 * 1024 * 1024
KEEP_SECONDS = 2
STALL_SECONDS = 3


@dataclass
class Coalescer:
    """A running Varnish; `front` stands where the rewrite front is."""

    front: Server
    port: int
    work: Path
    reload: str
    cache: dict[str, Any]  # what distribution is configured with before it

    def get(self, target: str, method: str = "GET", **headers: str) -> tuple[int, http.client.HTTPMessage, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request(method, target, headers={name.replace("_", "-"): value for name, value in headers.items()})
            response = connection.getresponse()
            return response.status, response.headers, response.read()
        finally:
            connection.close()

    def asked(self, digest: str = "") -> list[str]:
        """The request lines that came through, of one digest where it is given."""
        return [head.partition("\r\n")[0] for head in self.front.requests if digest in head.partition("\r\n")[0]]


def blob_path(content: bytes, repository: str = "svc/app") -> str:
    return f"/v2/{repository}/blobs/{digest_of(content)}"


class Held:
    """An answer whose second half waits until it is let go. A byte comes now and then: a fetch that stalls is ended."""

    def __init__(self, content: bytes, **headers: str) -> None:
        self.go = threading.Event()
        self._said = answer(200, content, **headers)
        self._half = len(self._said) - len(content) // 2

    def __iter__(self) -> Iterator[bytes]:
        yield self._said[:self._half]
        sent = self._half
        while not self.go.wait(STALL_SECONDS / 6):
            yield self._said[sent:sent + 1]
            sent += 1
        yield self._said[sent:]


@contextlib.contextmanager
def varnish(files: list[dict[str, Any]], name: str, work: Path) -> Iterator[str]:
    """A Varnish, started as its unit says, of the role's files for an upstream; its unit. `work` is where the unit has its store."""
    program = shutil.which("varnishd", path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
    if program is None:
        pytest.fail("varnishd is missing; these tests run a real one: apt-get install varnish")
    work.mkdir()
    if os.geteuid() == 0:
        shutil.chown(work, "nobody", "nogroup")
    contents = {Path(each["path"]).name: each["content"] for each in files}
    for each in files:
        if each["path"].startswith(str(work.parent)):
            Path(each["path"]).parent.mkdir(exist_ok=True)
            Path(each["path"]).write_text(each["content"])
    listen, = re.findall(r"^LISTEN=(.*)$", contents[f"{name}.env"], re.MULTILINE)
    unit = contents["mirrorfleet-coalescer@.service"].replace("\\\n", "").replace("%i", name).replace("${LISTEN}", listen)
    command = [program, *shlex.split(setting(unit, "ExecStart"))[1:]]
    log = work.with_suffix(".log")
    with open(log, "wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, cwd="/", **unprivileged())
    try:
        until(lambda: listens(int(listen.rpartition(":")[2])) or process.poll() is not None)
        assert process.poll() is None, log.read_text()
        yield unit
        assert "Panic" not in log.read_text()
    finally:
        process.terminate()
        process.wait(20)


def setting(unit: str, key: str) -> str:
    """The first value of a key in a unit file."""
    return re.findall(rf"^{key}=(.*)$", unit, re.MULTILINE)[0]


def variables_in(directory: Path) -> dict[str, Any]:
    """The role's variables for a coalescer that has everything in this directory."""
    return {"fetch_coalescer_storage": str(directory), "__fetch_coalescer_config": f"{directory}/etc", "fetch_coalescer_storage_bytes": STORAGE_BYTES}


@pytest.fixture(scope="module")
def started(render: Render, base: Path) -> Iterator[Coalescer]:
    port = upstream_port()
    front = Server(lambda _path: answer(404), port + PORT_OFFSETS["front"])
    threading.Thread(target=front.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    variables = {
        **variables_in(base), "fetch_coalescer_keep_seconds": KEEP_SECONDS, "__fetch_coalescer_timeout_stall": STALL_SECONDS,
        "mirror_upstreams": [{"name": "central", "url": "http://central.test", "port": port, "canary": "svc/app:1"}],
        "pull_through_cache_storage": str(base / "store"),
    }
    (files,), (cache_files,) = render("fetch_coalescer", variables), render("pull_through_cache", variables)
    cache = cache_configuration(cache_files, "central")
    (base / "store").mkdir()
    try:
        with varnish(files, "central", base / "central") as unit:
            yield Coalescer(front, port + PORT_OFFSETS["coalescer"], base / "central", setting(unit, "ExecReload"), cache)
    finally:
        front.shutdown()
        front.server_close()


@pytest.fixture
def coalescer(started: Coalescer) -> Coalescer:
    """Nothing asked for yet, and every blob of a test is its own."""
    started.front.requests.clear()
    return started


def fresh(size: int = 300_000) -> bytes:
    return os.urandom(size)


class Reader:
    """A client that has begun to read a blob; it waits for its first byte."""

    def __init__(self, coalescer: Coalescer, target: str) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", coalescer.port, timeout=60)
        self._connection.request("GET", target)
        self._response = self._connection.getresponse()
        self._first = self._response.read(1)

    def rest(self) -> bytes:
        """The whole blob."""
        whole = self._first + self._response.read()
        self._connection.close()
        return whole

    def leave(self) -> None:
        self._response.close()
        self._connection.close()


@pytest.mark.parametrize("repositories", [1, 40])
@pytest.mark.parametrize("seconds_until_the_head", [0, 0.5])
def test_many_ask_for_one_blob_at_once(coalescer: Coalescer, repositories: int, seconds_until_the_head: float) -> None:
    """It crosses once, and all of them have its first byte before the fetch goes on."""
    def late() -> Iterator[bytes]:
        time.sleep(seconds_until_the_head)
        yield from held

    blob = fresh()
    held = Held(blob, Docker_Content_Digest=digest_of(blob))
    coalescer.front.answers = lambda _path: late()
    with ThreadPoolExecutor(40) as pool:
        readers = list(pool.map(lambda number: Reader(coalescer, blob_path(blob, f"svc/app{number % repositories}")), range(40)))
        held.go.set()
        assert all(whole == blob for whole in pool.map(Reader.rest, readers))
    assert len(coalescer.asked()) == 1


def test_a_fetch_is_joined_however_long_it_takes(coalescer: Coalescer) -> None:
    blob = fresh()
    held = Held(blob)
    coalescer.front.answers = lambda _path: iter(held)
    first = Reader(coalescer, blob_path(blob))
    time.sleep(KEEP_SECONDS + 0.3)
    late = Reader(coalescer, blob_path(blob))
    held.go.set()
    assert first.rest() == late.rest() == blob
    assert len(coalescer.asked()) == 1


def test_those_who_leave_disturb_nobody(coalescer: Coalescer) -> None:
    blob = fresh(3_000_000)
    held = Held(blob)
    coalescer.front.answers = lambda _path: iter(held)
    leaving, staying = ([Reader(coalescer, blob_path(blob)) for _number in range(5)] for _part in range(2))
    for each in leaving:
        each.leave()
    held.go.set()
    assert all(each.rest() == blob for each in staying)
    assert len(coalescer.asked()) == 1


def test_wrong_bytes_are_forgotten(coalescer: Coalescer) -> None:
    blob = fresh()
    coalescer.front.answers = lambda _path: answer(200, bytes(len(blob)))
    assert coalescer.get(blob_path(blob))[2] == bytes(len(blob))
    coalescer.front.answers = lambda _path: answer(200, blob)
    until(lambda: coalescer.get(blob_path(blob))[2] == blob, KEEP_SECONDS + 10)
    assert coalescer.get(blob_path(blob))[2] == blob
    assert len(coalescer.asked()) == 2


def test_wrong_bytes_are_forgotten_at_once_by_the_command_of_the_manual(coalescer: Coalescer) -> None:
    blob = fresh()
    coalescer.front.answers = lambda _path: answer(200, bytes(len(blob)))
    coalescer.get(blob_path(blob))
    coalescer.front.answers = lambda _path: answer(200, blob)
    subprocess.run(["varnishadm", "-n", str(coalescer.work), "ban", "obj.status", "!=", "0"], check=True, capture_output=True)
    assert coalescer.get(blob_path(blob))[2] == blob


@pytest.mark.parametrize("said", [
    [b"HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\n\r\nno length"],
    [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"],
    [answer(200, b"<h1>It works!</h1>", Content_Type="text/html")],
    [answer(200, b"another blob", Docker_Content_Digest=digest_of(b"another blob"))],
])
def test_what_cannot_be_the_blob_is_refused_and_not_kept(coalescer: Coalescer, said: list[bytes]) -> None:
    blob = fresh()
    coalescer.front.answers = lambda _path: said
    status, headers, body = coalescer.get(blob_path(blob))
    assert (status, headers["Content-Type"]) == (502, "application/json")
    assert "upstream central answers with" in json.loads(body)["errors"][0]["message"]
    coalescer.front.answers = lambda _path: answer(200, blob)
    until(lambda: coalescer.get(blob_path(blob))[2] == blob, 10)


def test_a_fetch_that_breaks_off_is_no_whole_answer_and_not_kept(coalescer: Coalescer) -> None:
    blob = fresh()
    coalescer.front.answers = lambda _path: [answer(200, blob)[:-1000]]
    with contextlib.suppress(http.client.IncompleteRead, ConnectionError):
        # It may notice before it has begun to answer.
        assert coalescer.get(blob_path(blob))[0] == 503
    coalescer.front.answers = lambda _path: answer(200, blob)
    assert coalescer.get(blob_path(blob))[2] == blob


def test_a_fetch_that_stalls_ends(coalescer: Coalescer) -> None:
    def stalls() -> Iterator[bytes]:
        yield answer(200, blob)[:-1000]
        threading.Event().wait(30)

    blob = fresh()
    coalescer.front.answers = lambda _path: stalls()
    began = time.monotonic()
    with pytest.raises((http.client.IncompleteRead, ConnectionError)):
        coalescer.get(blob_path(blob))
    assert time.monotonic() - began < 20


@pytest.mark.parametrize("status", [404, 429, 500, 502, 503])
def test_an_error_passes_and_is_nobody_elses(coalescer: Coalescer, status: int) -> None:
    blob = fresh()
    coalescer.front.answers = lambda path: answer(200, blob) if "/svc/has/" in path else answer(status, b"why", Retry_After="7")
    got, headers, body = coalescer.get(blob_path(blob, "svc/hasnot"))
    assert (got, headers["Retry-After"], body) == (status, "7", b"why")
    assert coalescer.get(blob_path(blob, "svc/has"))[2] == blob


def test_a_front_that_is_gone_is_told(coalescer: Coalescer) -> None:
    coalescer.front.answers = lambda _path: b""
    status, headers, body = coalescer.get(blob_path(fresh()))
    assert (status, headers["Content-Type"]) == (503, "application/json")
    assert json.loads(body)["errors"][0]["code"] == "UNAVAILABLE"


def test_a_blob_larger_than_the_store_passes_whole(coalescer: Coalescer) -> None:
    blob = fresh(STORAGE_BYTES * 2)
    coalescer.front.answers = lambda _path: answer(200, blob)
    with ThreadPoolExecutor(3) as pool:
        answers = list(pool.map(coalescer.get, [blob_path(blob)] * 3))
    assert [(status, body == blob) for status, _headers, body in answers] == [(200, True)] * 3
    status, headers, _body = coalescer.get(blob_path(blob), "HEAD")
    assert (status, headers["Content-Length"]) == (200, str(len(blob)))


STORAGE = "storage.example:8443/blobs/x?X-Amz-Signature=a%2Fb&X-Amz-Date=1"


@pytest.mark.parametrize(("location", "path"), [
    (f"https://{STORAGE}", f"/redirect/https/{STORAGE}"),
    ("HTTPS://Storage.Example:443/Blobs/X", "/redirect/https/storage.example/Blobs/X"),
    ("http://storage.example:80/x", "/redirect/http/storage.example/x"),
    ("http://storage.example:443/x", "/redirect/http/storage.example:443/x"),
    ("/v2/svc/elsewhere/blobs/x", "/v2/svc/elsewhere/blobs/x"),
])
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_followed_once_for_all(coalescer: Coalescer, status: int, location: str, path: str) -> None:
    blob = fresh()
    coalescer.front.answers = lambda asked: answer(200, blob) if asked == path else answer(status, Location=location)
    with ThreadPoolExecutor(10) as pool:
        headers = {"Authorization": "Bearer of-the-registry"}
        answers = [pool.submit(coalescer.get, blob_path(blob, f"svc/app{number}"), **headers) for number in range(10)]
        assert all(each.result()[2] == blob for each in answers)
    first, second = coalescer.front.requests
    assert second.startswith(f"GET {path} ")
    assert "of-the-registry" in first and ("of-the-registry" in second) == location.startswith("/")


@pytest.mark.parametrize("location", [
    "ftp://storage.example/x", "https://user@storage.example/x", "//storage.example/x", "https:///x", "https://a.example/x#y", "https://a.example?x", "x", "",
])
@pytest.mark.parametrize("kind", ["blobs", "manifests"])
def test_a_redirect_that_is_not_followed_is_nobodys_business(coalescer: Coalescer, location: str, kind: str) -> None:
    coalescer.front.answers = lambda _path: answer(307, Location=location)
    status, headers, body = coalescer.get(f"/v2/svc/app/{kind}/{digest_of(fresh())}")
    assert (status, headers["Location"]) == (502, None)
    assert "redirects to what is not followed" in json.loads(body)["errors"][0]["message"]
    assert len(coalescer.asked()) == 1


def test_a_manifest_is_not_fetched_elsewhere(coalescer: Coalescer) -> None:
    elsewhere = {"/v2/a/manifests/1": "https://storage.example/x", "/v2/a/manifests/2": "/v2/b/manifests/2"}
    coalescer.front.answers = lambda path: answer(301, Location=elsewhere[path])
    assert coalescer.get("/v2/a/manifests/1")[0] == 502
    status, headers, _body = coalescer.get("/v2/a/manifests/2")
    assert (status, headers["Location"]) == (301, "/v2/b/manifests/2")


def test_a_circle_of_redirects_ends(coalescer: Coalescer) -> None:
    coalescer.front.answers = lambda _path: answer(307, Location="https://storage.example/x")
    assert coalescer.get(blob_path(fresh()))[0] == 503
    assert len(coalescer.asked()) <= 5


def test_a_redirect_of_a_blob_larger_than_the_store_is_followed(coalescer: Coalescer) -> None:
    blob = fresh(STORAGE_BYTES * 2)
    coalescer.front.answers = lambda path: answer(200, blob) if path == f"/redirect/https/{STORAGE}" else answer(307, Location=f"https://{STORAGE}")
    assert coalescer.get(blob_path(blob), "HEAD")[1]["Content-Length"] == str(len(blob))
    assert coalescer.get(blob_path(blob))[2] == blob


def test_a_full_store_makes_room(coalescer: Coalescer) -> None:
    blobs = {blob_path(blob): blob for blob in (fresh(STORAGE_BYTES // 3) for _number in range(6))}
    coalescer.front.answers = lambda path: answer(200, blobs[path])
    for path, blob in blobs.items():
        assert coalescer.get(path)[2] == blob


@pytest.mark.parametrize("there", [200, 206])
def test_why_a_blob_can_not_be_had_is_told_and_its_bytes_are_not(coalescer: Coalescer, there: int) -> None:
    blob = fresh()
    coalescer.front.answers = lambda path: answer(there, blob) if "/has/" in path else answer(404, b"of the upstream")
    status, _headers, body = coalescer.get(blob_path(blob, "svc/has/it"), X_Mirror_Why="true", Range="bytes=0-")
    assert status == 503 and "central could not keep this blob" in json.loads(body)["errors"][0]["message"]
    assert coalescer.get(blob_path(blob, "svc/other"), X_Mirror_Why="true")[::2] == (404, b"of the upstream")
    assert coalescer.get("/v2/svc/has/manifests/1", X_Mirror_Why="true")[2] == blob


def test_many_small_things_make_room_for_a_large_one(coalescer: Coalescer) -> None:
    small = {blob_path(blob): blob for blob in (fresh(STORAGE_BYTES // 100) for _number in range(120))}
    large = fresh(STORAGE_BYTES * 2 // 5)
    coalescer.front.answers = lambda path: answer(200, small.get(path, large))
    for path, blob in small.items():
        assert coalescer.get(path)[2] == blob
    assert coalescer.get(blob_path(large))[2] == large


def test_a_name_with_blobs_in_it_is_a_name(coalescer: Coalescer) -> None:
    manifest = fresh(3000)
    coalescer.front.answers = lambda path: answer(200, manifest) if path.startswith("/v2/a/blobs/b/") else answer(404)
    target = f"manifests/{digest_of(manifest)}"
    assert coalescer.get(f"/v2/a/blobs/b/{target}")[2] == manifest
    assert coalescer.get(f"/v2/other/blobs/b/{target}")[0] == 404
    assert coalescer.get("/v2/a/blobs/b/manifests/1", X_Mirror_Why="true")[2] == manifest


def test_a_large_blob_of_another_repository_is_asked_for_there(coalescer: Coalescer) -> None:
    blob = fresh(STORAGE_BYTES * 2)
    coalescer.front.answers = lambda _path: answer(200, blob)
    for repository in ("svc/one", "svc/two"):
        assert coalescer.get(blob_path(blob, repository))[2] == blob
    assert coalescer.asked()[-1] == f"GET {blob_path(blob, 'svc/two')} HTTP/1.1"


def test_a_tag_is_asked_for_each_time_and_as_it_was_asked(coalescer: Coalescer) -> None:
    coalescer.front.answers = lambda _path: answer(200, b"{}")
    for method in ("GET", "GET", "HEAD", "HEAD"):
        assert coalescer.get("/v2/svc/app/manifests/1", method)[0] == 200
    assert [line.split()[0] for line in coalescer.asked()] == ["GET", "GET", "HEAD", "HEAD"]


def test_a_manifest_by_digest_is_joined_in_its_repository_only(coalescer: Coalescer) -> None:
    manifest = fresh(3000)
    coalescer.front.answers = lambda path: answer(200, manifest) if "/svc/app/" in path else answer(404)
    for _time in range(2):
        assert coalescer.get(f"/v2/svc/app/manifests/{digest_of(manifest)}")[2] == manifest
    assert coalescer.get(f"/v2/svc/other/manifests/{digest_of(manifest)}")[0] == 404
    assert len(coalescer.asked()) == 2


def test_a_head_brings_the_blob_that_follows(coalescer: Coalescer) -> None:
    blob = fresh()
    coalescer.front.answers = lambda _path: answer(200, blob)
    status, headers, _body = coalescer.get(blob_path(blob), "HEAD")
    assert (status, headers["Content-Length"]) == (200, str(len(blob)))
    assert coalescer.get(blob_path(blob))[2] == blob
    assert coalescer.asked() == [f"GET {blob_path(blob)} HTTP/1.1"]


def test_a_reload_cuts_nothing(coalescer: Coalescer) -> None:
    blob = fresh()
    held = Held(blob)
    coalescer.front.answers = lambda _path: iter(held)
    under_way = Reader(coalescer, blob_path(blob))
    for _time in range(2):
        # systemd makes one $ of two and one % of two.
        done = subprocess.run(shlex.split(coalescer.reload.replace("$$", "$").replace("%%", "%")), capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    after = Reader(coalescer, blob_path(blob))
    held.go.set()
    assert under_way.rest() == after.rest() == blob
    assert len(coalescer.asked()) == 1


def test_an_image_crosses_once_for_many_hosts_and_repositories(coalescer: Coalescer) -> None:
    """With distribution as pull_through_cache sets it up: its version 2.8 fetches a blob a second time, to store it."""
    base = layer_of({"base": os.urandom(2_000_000)})
    images = {f"svc/app{number}": image_of(base, layer_of({"app": str(number).encode()})) for number in range(3)}
    answers = {path: said for name, image in images.items() for path, said in answers_of(image, name).items()}
    answers["/v2/"] = answer(200, b"{}")

    def slowly(said: bytes) -> Iterator[bytes]:
        yield said[:1_000_000]
        time.sleep(1)
        yield said[1_000_000:]

    def say(path: str) -> bytes | Iterable[bytes]:
        said = answers.get(path, answer(404))
        return slowly(said) if len(said) > 1_000_000 else said

    coalescer.front.answers = say
    port = int(coalescer.cache["http"]["addr"].rpartition(":")[2])
    cache = Registry(port, free_port(), coalescer.work.parent / "store/central")
    del coalescer.cache["http"]["debug"]
    cache.start(coalescer.cache)

    def pull(name: str) -> dict[str, Any]:
        with RegistryClient(cache.url, retries=0) as client:
            return pull_image(client, f"{name}:1", "linux/amd64")

    try:
        with ThreadPoolExecutor(12) as pool:
            pulled = list(pool.map(pull, [*images] * 4))
        assert {each["digest"] for each in pulled} == {image.digest for image in images.values()}
        cache.until_stored(*(digest for image in images.values() for digest in image.blobs))
    finally:
        cache.stop()
    for digest in {digest for image in images.values() for digest in image.blobs}:
        assert len(coalescer.asked(digest)) == 1


def test_other_methods_and_paths_are_the_fronts_business(coalescer: Coalescer) -> None:
    coalescer.front.answers = lambda _path: answer(405, b"no")
    assert coalescer.get("/v2/svc/app/manifests/1", "DELETE")[0] == 405
    assert coalescer.asked() == ["DELETE /v2/svc/app/manifests/1 HTTP/1.1"]
