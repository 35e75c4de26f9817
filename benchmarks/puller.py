# Copyright (c) 2026, mirrorfleet contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0
"""Pulls images as docker hosts do, many at once; every byte is verified and none is kept.

usage: puller.py URL[,URL…] IMAGE … [--clients N] [--over SECONDS] [--user NAME:PASSWORD]

URL is https://HOST:PORT[/PREFIX], what stands before /v2/; no certificate is verified. Client number n pulls image number n
from URL number n, and from the first again when there are more clients than images or URLs. A client is a process of its own. It does what Docker
does from 20.10 on: asks for /v2/, for the tag (HEAD), for the manifest by its digest, and for three blobs at a time. What
breaks off is tried again after 5, 10, 15 and 20 seconds, from the byte where it broke.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import http.client
import json
import multiprocessing
import queue
import resource
import socket
import ssl
import threading
import time
from dataclasses import asdict, dataclass, field
from typing import Any
from urllib.parse import urlsplit

BLOBS_AT_ONCE = 3
ATTEMPTS = 5
PAUSE = 5.0
# Docker waits for a byte without end; a benchmark does not.
STALL = 120.0
CHUNK = 256 * 1024
# The kernel hands over what came in so many seconds, when it comes without pause. A docker host has a machine of its own; fifty that
# share one with the mirror must not keep it busy with being woken for each packet.
PACE = 0.02
ACCEPT = ", ".join((
    "application/vnd.oci.image.manifest.v1+json", "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json", "application/vnd.docker.distribution.manifest.list.v2+json",
))
TEMPORARY = (408, 429, 500, 502, 503, 504)


class PullError(Exception):
    """A pull that Docker would give up."""


class Broken(Exception):
    """A transfer that Docker would try again."""


@dataclass
class Report:
    """What one client saw. ``longest_wait``: seconds that an open request waited for its next byte, the first one included."""

    seconds: float = 0.0
    bytes: int = 0
    longest_wait: float = 0.0
    retries: int = 0
    error: str = ""


@dataclass
class Registry:
    """Where the images are, and one connection for each thread that asks."""

    url: str
    user: str = ""
    report: Report = field(default_factory=Report)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def connect(self) -> http.client.HTTPConnection:
        parts = urlsplit(self.url)
        if parts.scheme == "https":
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            return http.client.HTTPSConnection(parts.netloc, timeout=STALL, context=context)
        return http.client.HTTPConnection(parts.netloc, timeout=STALL)

    def ask(self, connection: http.client.HTTPConnection, method: str, path: str, offset: int = 0) -> http.client.HTTPResponse:
        """The answer's head, where it is 2xx."""
        headers = {"Accept": ACCEPT, "Accept-Encoding": "identity", "User-Agent": "docker/26.1.5 (benchmark)"}
        if self.user:
            headers["Authorization"] = "Basic " + base64.b64encode(self.user.encode()).decode()
        if offset:
            headers["Range"] = f"bytes={offset}-"
        asked = time.monotonic()
        kept = connection.sock is not None
        target = f"{urlsplit(self.url).path}/v2/{path}"
        try:
            connection.request(method, target, headers=headers)
            answer = connection.getresponse()
        except ConnectionError:
            # The other side closed an idle connection, as a server that reloads does: Go's client, which is Docker's, asks anew at once.
            if not kept:
                raise
            connection.close()
            connection.request(method, target, headers=headers)
            answer = connection.getresponse()
        self.waited(time.monotonic() - asked)
        if answer.status not in (200, 206):
            said = f"{method} {path}: {answer.status} {answer.read(500).decode(errors='replace')}"
            connection.close()
            raise Broken(said) if answer.status in TEMPORARY else PullError(said)
        return answer

    def waited(self, seconds: float, received: int = 0) -> None:
        with self.lock:
            self.report.bytes += received
            self.report.longest_wait = max(self.report.longest_wait, seconds)

    def manifest(self, connection: http.client.HTTPConnection, image: str) -> dict[str, Any]:
        repository, _colon, tag = image.rpartition(":")
        self.ask(connection, "GET", "").read()
        head = self.ask(connection, "HEAD", f"{repository}/manifests/{tag}")
        head.read()
        digest = head.headers.get("Docker-Content-Digest", "")
        content = self.ask(connection, "GET", f"{repository}/manifests/{digest or tag}").read()
        self.waited(0, len(content))
        if digest and digest != f"sha256:{hashlib.sha256(content).hexdigest()}":
            raise PullError(f"{image}: wrong bytes in the manifest")
        return dict(json.loads(content))


class Blob:
    """A blob as far as it has come."""

    def __init__(self, registry: Registry, repository: str, digest: str, size: int) -> None:
        self.registry, self.repository, self.digest, self.size = registry, repository, digest, size
        self.received, self.hash = 0, hashlib.sha256()

    def pull(self, connection: http.client.HTTPConnection) -> None:
        for attempt in range(1, ATTEMPTS + 1):
            try:
                self._transfer(connection)
                break
            except (Broken, OSError, http.client.HTTPException) as error:
                connection.close()
                if attempt == ATTEMPTS:
                    raise PullError(f"{type(error).__name__}: {error}") from error
                self.registry.report.retries += 1
                time.sleep(PAUSE * attempt)
        if self.digest != f"sha256:{self.hash.hexdigest()}":
            raise PullError(f"{self.digest}: wrong bytes")

    def _transfer(self, connection: http.client.HTTPConnection) -> None:
        answer = self.registry.ask(connection, "GET", f"{self.repository}/blobs/{self.digest}", self.received)
        if self.received and answer.status == 200:
            self.received, self.hash = 0, hashlib.sha256()
        buffer = memoryview(bytearray(CHUNK))
        pace = Pace(connection.sock)
        before = time.monotonic()
        while self.received < self.size:
            came = _read(answer, buffer)
            now = time.monotonic()
            self.registry.waited(now - before, came)
            if not came:
                raise Broken(f"{self.digest}: ended after {self.received} of {self.size} bytes")
            self.hash.update(buffer[:came])
            self.received += came
            pace.follow(came / max(now - before, 1e-6), self.size - self.received)
            before = now
        if answer.read():
            raise PullError(f"{self.digest}: more than {self.size} bytes")


class Pace:
    """How many bytes must have come before a reader is woken (SO_RCVLOWAT, socket(7)).

    Only for sockets with a time-out, which poll and then read: a blocking read could wait for more than is left.
    """

    def __init__(self, connection: socket.socket | None) -> None:
        # None: the server closes after this answer.
        self._connection, self._bytes = connection, 1

    def follow(self, rate: float, left: int) -> None:
        """``rate``: bytes a second; ``left``: what is still to come. At the end it is one byte again, for the next answer."""
        # TLS counts otherwise, one record at a time.
        if self._connection is None or isinstance(self._connection, ssl.SSLSocket):
            return
        wanted = max(1, min(int(rate * PACE), CHUNK // 2, left))
        wanted = 1 << (wanted.bit_length() - 1)
        if wanted != self._bytes:
            self._connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, wanted)
            self._bytes = wanted


def _read(answer: http.client.HTTPResponse, buffer: memoryview) -> int:
    """What has come, as read1 does, but into a buffer that is there already: half the cost."""
    if answer.length is None:
        chunk = answer.read1(len(buffer))
        buffer[:len(chunk)] = chunk
        return len(chunk)
    came = answer.fp.readinto1(buffer[:answer.length])
    answer.length -= came
    return came


def pull(registry: Registry, image: str) -> None:
    """One image. Raises PullError."""
    connection = registry.connect()
    manifest = registry.manifest(connection, image)
    connection.close()
    waiting: queue.SimpleQueue[Blob] = queue.SimpleQueue()
    for each in (manifest["config"], *manifest["layers"]):
        waiting.put(Blob(registry, image.rpartition(":")[0], each["digest"], each["size"]))
    failures: list[str] = []

    def work() -> None:
        connection = registry.connect()
        try:
            while not failures:
                waiting.get_nowait().pull(connection)
        except queue.Empty:
            pass
        except Exception as error:
            failures.append(str(error))
        finally:
            connection.close()

    threads = [threading.Thread(target=work) for _number in range(BLOBS_AT_ONCE)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise PullError(failures[0])


def client(url: str, user: str, image: str, begin: float, results: multiprocessing.Queue[Report]) -> None:
    """A docker host; it begins at the given reading of the monotonic clock, which all processes share."""
    registry = Registry(url, user)
    time.sleep(max(0.0, begin - time.monotonic()))
    began = time.monotonic()
    try:
        pull(registry, image)
    except Exception as error:
        registry.report.error = str(error) or type(error).__name__
    registry.report.seconds = time.monotonic() - began
    results.put(registry.report)


def pull_all(urls: list[str], user: str, images: list[str], clients: int, over: float) -> dict[str, Any]:
    """What all clients saw together; ``seconds`` from the first one's start to the last one's end."""
    results: multiprocessing.Queue[Report] = multiprocessing.Queue()
    # Long enough for every process to be there.
    start = time.monotonic() + 0.2 + 0.01 * clients
    begins = [start + over * number / max(1, clients - 1) for number in range(clients)]
    processes = [
        multiprocessing.Process(target=client, args=(urls[number % len(urls)], user, images[number % len(images)], begin, results), daemon=True)
        for number, begin in enumerate(begins)
    ]
    for process in processes:
        process.start()
    reports = [results.get() for _process in processes]
    seconds = time.monotonic() - start
    for process in processes:
        process.join()
    errors = [report.error for report in reports if report.error]
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {
        "clients": clients,
        "seconds": seconds,
        "slowest_client": max(report.seconds for report in reports),
        "longest_wait": max(report.longest_wait for report in reports),
        "bytes": sum(report.bytes for report in reports),
        "retries": sum(report.retries for report in reports),
        "failures": len(errors),
        "cpu_seconds": used.ru_utime + used.ru_stime,
        "errors": sorted(set(errors))[:5],
        "each": [asdict(report) for report in reports],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("urls", metavar="URL[,URL…]")
    parser.add_argument("images", metavar="IMAGE", nargs="+")
    parser.add_argument("--clients", type=int, default=1)
    parser.add_argument("--over", type=float, default=0.0, metavar="SECONDS", help="clients arrive spread over so many seconds")
    parser.add_argument("--user", default="", metavar="NAME:PASSWORD")
    options = parser.parse_args()
    print(json.dumps(pull_all(options.urls.split(","), options.user, options.images, options.clients, options.over)))


if __name__ == "__main__":
    main()
