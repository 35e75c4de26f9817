# Copyright (c) 2026, mirrorfleet contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0
"""How fast a large store is read: cache_info from the files against the API of a real distribution, cache_info over the API against curl, and
cache_scrub against disk and processor.

usage: PYTHONPATH=.collections .venv/bin/python benchmarks/stores.py info [REPOSITORIES IMAGES BLOBS]     default 200 2000 100000
       PYTHONPATH=.collections .venv/bin/python benchmarks/stores.py scrub [MEGABYTES]                    default 4096

Results go to standard output as JSON. Run as root: what is cached in memory is dropped before the disk is measured.
"""

from __future__ import annotations

import concurrent.futures
import hashlib
import http.client
import json
import os
import random
import resource
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, Iterator

from ansible_collections.mirrorfleet.registry.plugins.module_utils.cache_api import report_registry
from ansible_collections.mirrorfleet.registry.plugins.module_utils.cache_report import Filter, report_cache
from ansible_collections.mirrorfleet.registry.plugins.module_utils.storage import Store, open_unnoticed
from ansible_collections.mirrorfleet.registry.plugins.module_utils.store_scrub import Budget, scrub

OCI = "application/vnd.oci.image"
THREADS = 8


class Writer:
    """Writes a store as distribution lays it out."""

    def __init__(self, root: Path) -> None:
        self._v2 = root / "docker/registry/v2"

    def blob(self, content: bytes) -> dict[str, Any]:
        encoded = hashlib.sha256(content).hexdigest()
        self._put(self._v2 / "blobs/sha256" / encoded[:2] / encoded / "data", content)
        return {"digest": f"sha256:{encoded}", "size": len(content)}

    def image(self, repository: str, tag: str, layers: list[dict[str, Any]]) -> None:
        config = self.blob(json.dumps({"os": "linux", "architecture": "amd64", "rootfs": {"type": "layers"}, "name": f"{repository}:{tag}"}).encode())
        manifest = self.blob(json.dumps({
            "schemaVersion": 2, "mediaType": f"{OCI}.manifest.v1+json", "config": {"mediaType": f"{OCI}.config.v1+json", **config},
            "layers": [{"mediaType": f"{OCI}.layer.v1.tar+gzip", **layer} for layer in layers],
        }).encode())
        directory, digest = self._v2 / "repositories" / repository, manifest["digest"]
        for blob in (config, *layers):
            self._link(directory / "_layers", blob["digest"])
        self._link(directory / "_manifests/revisions", digest)
        self._put(directory / f"_manifests/tags/{tag}/current/link", digest.encode())
        self._link(directory / f"_manifests/tags/{tag}/index", digest)

    def _link(self, directory: Path, digest: str) -> None:
        self._put(directory / digest.replace(":", "/") / "link", digest.encode())

    def _put(self, path: Path, content: bytes) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def build(root: Path, repositories: int, images: int, blobs: int) -> list[tuple[str, str]]:
    """A store of so many; an image has its own layers and shares a base with those of its repository. Its images."""
    writer, chance, names = Writer(root), random.Random(1), []
    own = max(1, (blobs - 2 * images - repositories) // images)
    bases = [writer.blob(chance.randbytes(64)) for _number in range(repositories)]
    for number in range(images):
        repository, tag = f"team{number % repositories // 10}/svc{number % repositories}", str(number // repositories)
        writer.image(repository, tag, [bases[number % repositories], *(writer.blob(chance.randbytes(64)) for _layer in range(own))])
        names.append((repository, tag))
    return names


def ask(port: int, names: list[tuple[str, str]]) -> float:
    """Seconds to get every image's manifest, config, and a HEAD of each of its blobs, over connections that are kept, by eight threads."""
    local = threading.local()

    def get(target: str, method: str = "GET") -> bytes:
        if not hasattr(local, "connection"):
            local.connection = http.client.HTTPConnection("127.0.0.1", port)
        local.connection.request(method, target, headers={"Accept": f"{OCI}.manifest.v1+json"})
        answer = local.connection.getresponse()
        body: bytes = answer.read()
        assert answer.status == 200, (target, answer.status)
        return body

    def one(name: tuple[str, str]) -> None:
        repository, tag = name
        manifest = json.loads(get(f"/v2/{repository}/manifests/{tag}"))
        get(f"/v2/{repository}/blobs/{manifest['config']['digest']}")
        for layer in manifest["layers"]:
            get(f"/v2/{repository}/blobs/{layer['digest']}", "HEAD")

    began = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(one, names))
    return time.monotonic() - began


def one_by_one(port: int, names: list[tuple[str, str]]) -> float:
    """Seconds to get what cache_info asks the API for, with one curl after the other."""
    base = f"http://127.0.0.1:{port}/v2"
    targets = ["_catalog", *(f"{repository}/tags/list" for repository in sorted({repository for repository, _tag in names}))]
    targets += [f"{repository}/manifests/{tag}" for repository, tag in names]
    began = time.monotonic()
    for target in targets:
        subprocess.run(["curl", "--silent", "--fail", "--header", f"Accept: {OCI}.manifest.v1+json", f"{base}/{target}"], check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - began


def registry(root: Path) -> tuple[subprocess.Popen[bytes], int]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    configuration = root.with_suffix(".json")
    configuration.write_text(json.dumps({
        "version": 0.1, "log": {"level": "error", "accesslog": {"disabled": True}}, "storage": {"filesystem": {"rootdirectory": str(root)}},
        "http": {"addr": f"127.0.0.1:{port}"},
    }))
    process = subprocess.Popen(["docker-registry", "serve", str(configuration)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return process, port
        except OSError:
            time.sleep(0.05)


def info(directory: Path, repositories: int, images: int, blobs: int) -> dict[str, Any]:
    names = build(directory / "store", repositories, images, blobs)
    # In a process of its own, whose memory is cache_info's; the best of three, as the API's is.
    command = [sys.executable, __file__, "report", str(directory / "store")]
    reports = [json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout) for _number in range(3)]
    best = min(reports, key=lambda report: float(report["seconds"]))
    process, port = registry(directory / "store")
    try:
        api = min(ask(port, names) for _number in range(2))
        curl = one_by_one(port, names)
        began = time.monotonic()
        assert report_registry(Filter(), url=f"http://127.0.0.1:{port}")["counts"]["tags"] == len(names)
        over_api = time.monotonic() - began
    finally:
        process.terminate()
        process.wait(10)
    return {
        **best, "api_seconds": round(api, 3), "times_faster": round(api / best["seconds"], 1),
        "over_api_seconds": round(over_api, 3), "curl_seconds": round(curl, 3), "over_api_times_faster": round(curl / over_api, 1),
    }


def report(path: str) -> dict[str, Any]:
    began = time.monotonic()
    found = report_cache("store", path)
    seconds = time.monotonic() - began
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"seconds": round(seconds, 3), "memory_mb": round(memory, 1), "counts": found["counts"]}


def chunks(path: str) -> Iterator[int]:
    buffer = memoryview(bytearray(1 << 20))
    with os.fdopen(open_unnoticed(path), "rb", 0) as file:
        while size := file.readinto(buffer):
            yield size


def drop_caches() -> None:
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3")


def measure_scrub(directory: Path, megabytes: int) -> dict[str, Any]:
    writer, left = Writer(directory / "store"), megabytes
    while left > 0:
        size = min(left, random.Random(left).choice([1, 4, 16, 64, 256]))
        writer.blob(os.urandom(size << 20))
        left -= size
    store = Store(str(directory / "store"))
    blobs = store.blobs()
    drop_caches()
    began = time.monotonic()
    size = sum(sum(chunks(store.blob_path(digest))) for digest in blobs)
    disk = size / (time.monotonic() - began)
    content = os.urandom(1 << 20)
    began, hashing = time.monotonic(), hashlib.sha256()
    for _number in range(512):
        hashing.update(content)
    processor = (512 << 20) / (time.monotonic() - began)
    drop_caches()
    result = scrub(store, Budget())
    assert result.bytes == size and not result.findings
    rate = size / result.seconds
    return {
        "disk_mb_per_second": round(disk / 1e6), "sha256_mb_per_second": round(processor / 1e6), "scrub_mb_per_second": round(rate / 1e6),
        "bounded_by": "the disk" if disk < processor else "sha256 of one core", "of_the_bound": round(rate / min(disk, processor), 2),
    }


def main(arguments: list[str]) -> None:
    if arguments[0] == "report":
        print(json.dumps(report(arguments[1])))
        return
    numbers = [int(each) for each in arguments[1:]]
    directory = Path(tempfile.mkdtemp(prefix="mirrorfleet-stores-", dir="/var/tmp"))
    try:
        result = info(directory, *(numbers or (200, 2000, 100_000))) if arguments[0] == "info" else measure_scrub(directory, *(numbers or [4096]))
        print(json.dumps(result, indent=2))
    finally:
        shutil.rmtree(directory)


if __name__ == "__main__":
    main(sys.argv[1:])
