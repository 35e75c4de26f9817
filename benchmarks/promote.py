# Copyright (c) 2026, mirrorfleet contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0
"""What a promotion takes: ninety in a row, the day of a company of 400 services, by how many of an image's layers the target has already.

usage: PYTHONPATH=.collections .venv/bin/python benchmarks/promote.py [--images 90] [--layers 10] [--megabytes 2] [--shared 0 5 9]

Two real registries on loopback. For each number of shared layers: so many images, each in a repository of its own, with so many layers of
so many megabytes, of which the first ones are the same for all; signed by one key. Each is promoted by a run of its own, as it comes: the
signature is verified, the image is signed again, the record is written. After each, `skopeo copy` alone brings it into another registry, without
policy and signatures, as the floor: what else the machine does meanwhile slows both. At the end all are promoted once more in one run, which finds
nothing to do.

Results go to standard output as JSON: seconds of a promotion (first, median, 95th percentile, last ten), blobs and megabytes that the target
received for one promotion, those that it had in another repository, seconds of `skopeo copy`, the median of how many times as long a promotion
took as the copy after it, and the seconds of the run that finds nothing to do, for each image.
"""

from __future__ import annotations

import argparse
import hashlib
import http.client
import json
import os
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from ansible_collections.mirrorfleet.registry.plugins.module_utils.image_promote import failure, promote

OCI = "application/vnd.oci.image"
PASSWORD = "benchmark"


class Registry:
    """A distribution that stores what is pushed, and writes down what it is asked for."""

    def __init__(self, directory: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        directory.mkdir()
        self._log = directory / "log"
        (directory / "config.json").write_text(json.dumps({
            "version": 0.1, "log": {"level": "error"}, "storage": {"filesystem": {"rootdirectory": str(directory / "store")}},
            "http": {"addr": f"127.0.0.1:{self.port}"},
        }))
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(["docker-registry", "serve", str(directory / "config.json")], stdout=log, stderr=log)
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return
            except OSError:
                time.sleep(0.05)

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"

    def __enter__(self) -> Registry:
        return self

    def __exit__(self, *_unused: object) -> None:
        self.process.terminate()
        self.process.wait(10)

    def uploads(self) -> tuple[list[str], int]:
        """The digests of the blobs that were sent to it, and how many it took from another of its repositories."""
        text = self._log.read_text(errors="replace")
        sent = [unquote(each) for each in re.findall(r'"PUT /v2/\S+/blobs/uploads/\S*?digest=(sha256\S+?)(?:&\S*)? HTTP/1.1" 201', text)]
        return sent, len(re.findall(r'"POST /v2/\S+/blobs/uploads/\?\S*mount=\S* HTTP/1.1" 201', text))

    def push(self, repository: str, layers: list[bytes]) -> str:
        """An image with the tag 1; its digest."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port)

        def ask(method: str, target: str, body: bytes = b"", media_type: str = "application/octet-stream") -> str:
            connection.request(method, target, body, {"Content-Type": media_type})
            answer = connection.getresponse()
            said = answer.read()
            assert answer.status in (201, 202), (method, target, answer.status, said)
            return answer.headers.get("Location", "").partition(self.host)[2]

        def blob(content: bytes) -> dict[str, Any]:
            digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
            ask("PUT", f"{ask('POST', f'/v2/{repository}/blobs/uploads/')}&digest={digest}", content)
            return {"digest": digest, "size": len(content)}

        config = {"architecture": "amd64", "os": "linux", "config": {}, "rootfs": {"type": "layers", "diff_ids": []}, "name": repository}
        manifest = json.dumps({
            "schemaVersion": 2, "mediaType": f"{OCI}.manifest.v1+json",
            "config": {"mediaType": f"{OCI}.config.v1+json", **blob(json.dumps(config).encode())},
            "layers": [{"mediaType": f"{OCI}.layer.v1.tar", **blob(layer)} for layer in layers],
        }).encode()
        ask("PUT", f"/v2/{repository}/manifests/1", manifest, f"{OCI}.manifest.v1+json")
        connection.close()
        return f"sha256:{hashlib.sha256(manifest).hexdigest()}"


def cosign(*arguments: str) -> None:
    subprocess.run(["cosign", *arguments], env={**os.environ, "COSIGN_PASSWORD": PASSWORD}, check=True, capture_output=True, stdin=subprocess.DEVNULL)


def measure(directory: Path, images: int, layers: int, megabytes: float, shared: int) -> dict[str, Any]:
    """One series, with registries of its own."""
    size, repositories = int(megabytes * 1e6), [f"team{number // 10}/svc{number}" for number in range(images)]
    base = [os.urandom(size) for _number in range(shared)]
    with ExitStack() as stack:
        source, target, floor = (stack.enter_context(Registry(directory / name)) for name in ("source", "target", "floor"))
        for repository in repositories:
            digest = source.push(repository, [*base, *(os.urandom(size) for _number in range(layers - shared))])
            cosign("sign", f"--key={directory / 'ci.key'}", "--tlog-upload=false", "--yes", f"{source.host}/{repository}@{digest}")
        given: dict[str, Any] = {
            "source": {"url": f"http://{source.host}"}, "target": {"url": f"http://{target.host}"},
            "policy": {"signed_by": [str(directory / "ci.pub")], "sources": [f"{source.host}/**"]},
            "sign": {"key": str(directory / "prod.key"), "password": PASSWORD}, "record": str(directory / "record.jsonl"), "promoted_by": "benchmark",
        }
        seconds, copies = [], []
        for repository in repositories:
            began = time.monotonic()
            report = promote([f"{repository}:1"], **given)
            seconds.append(time.monotonic() - began)
            assert not failure(report) and report["counts"]["promoted"] == 1, report
            began = time.monotonic()
            places = [f"docker://{each.host}/{repository}:1" for each in (source, floor)]
            options = ["--quiet", "--all", "--preserve-digests", "--src-tls-verify=false", "--dest-tls-verify=false"]
            subprocess.run(["skopeo", "copy", *options, *places], check=True, capture_output=True)
            copies.append(time.monotonic() - began)
        sent, mounted = target.uploads()
        began = time.monotonic()
        again = promote([f"{repository}:1" for repository in repositories], **given)
        nothing = time.monotonic() - began
        assert again["counts"] == {"images": images, "promoted": 0, "failed": 0}, again
    of_layers = {path.parent.name: path.stat().st_size for path in (directory / "target/store").rglob("data")}
    received = sum(of_layers[digest.partition(":")[2]] for digest in sent)
    return {
        "shared_layers": shared, "own_layers": layers - shared, "first": round(seconds[0], 3), "median": round(statistics.median(seconds), 3),
        "percentile_95": round(statistics.quantiles(seconds, n=20)[18], 3), "last_ten": round(statistics.mean(seconds[-10:]), 3), "sum": round(sum(seconds), 1),
        "blobs_received": round(len(sent) / images, 2), "megabytes_received": round(received / images / 1e6, 3), "blobs_mounted": round(mounted / images, 2),
        "skopeo_copy_median": round(statistics.median(copies), 3),
        "times_skopeo_copy": round(statistics.median(one / other for one, other in zip(seconds, copies)), 2), "nothing_to_do": round(nothing / images, 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--images", type=int, default=90)
    parser.add_argument("--layers", type=int, default=10)
    parser.add_argument("--megabytes", type=float, default=2, help="of each layer")
    parser.add_argument("--shared", type=int, nargs="+", default=[0, 5, 9])
    given = parser.parse_args()
    if given.images < 2 or not all(0 <= shared <= given.layers for shared in given.shared):
        parser.error("there are two images at least, and no more layers are shared than there are")
    series = []
    for shared in given.shared:
        directory = Path(tempfile.mkdtemp(prefix="mirrorfleet-promote-", dir="/var/tmp"))
        try:
            for name in ("ci", "prod"):
                cosign("generate-key-pair", f"--output-key-prefix={directory / name}")
            series.append(measure(directory, given.images, given.layers, given.megabytes, shared))
            print(f"{shared} of {given.layers} layers shared: {series[-1]['median']} s", file=sys.stderr)
        finally:
            shutil.rmtree(directory)
    print(json.dumps({"images": given.images, "layers": given.layers, "megabytes_of_a_layer": given.megabytes, "series": series}, indent=2))


if __name__ == "__main__":
    main()
