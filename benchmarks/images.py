# Copyright (c) 2026, mirrorfleet contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0
"""The images that the benchmark pulls: layers of random bytes, so that they cross a link at the size they say.

usage: images.py URL FAMILY …        publish families of images to the registry at URL, and print what they hold as JSON
"""

from __future__ import annotations

import hashlib
import http.client
import json
import random
import sys
from dataclasses import dataclass
from typing import Iterator
from urllib.parse import urlsplit

MEGA = 1_000_000
OCI = "application/vnd.oci.image"
MANIFEST = f"{OCI}.manifest.v1+json"

# An image is its repository and its layers; a layer is its seed and its bytes.
Layers = list[tuple[int, int]]
FAMILIES: dict[str, dict[str, Layers]] = {
    "big": {"svc/app": [(1, 160 * MEGA), (2, 60 * MEGA)]},
    "mini": {"svc/mini": [(3, 16 * MEGA), (4, 6 * MEGA)]},
    # Twenty services on one base.
    "shared": {f"team/service-{number:02}": [(1, 160 * MEGA), (100 + number, 3 * MEGA)] for number in range(20)},
    "shared-mini": {f"team/small-{number:02}": [(3, 16 * MEGA), (200 + number, MEGA // 3)] for number in range(20)},
    # What warm.py brings: a release of fifty services on five bases, and one large blob.
    "release": {f"release/service-{number:02}": [(10 + number % 5, 40 * MEGA), (300 + number, 8 * MEGA)] for number in range(50)},
    "release-mini": {f"release/small-{number:02}": [(20 + number % 5, 2 * MEGA), (400 + number, MEGA // 2)] for number in range(50)},
    "huge": {"svc/huge": [(5, 1000 * MEGA)]},
    "huge-mini": {"svc/less-huge": [(6, 100 * MEGA)]},
}
TAG = "1"


@dataclass(frozen=True)
class Family:
    """What a family holds, once published. ``blobs`` are the layers' bytes by digest, ``bytes`` counts each distinct blob and manifest once."""

    repositories: list[str]
    bytes: int
    blobs: dict[str, int]
    manifests: dict[str, str]

    @property
    def references(self) -> list[str]:
        return [f"{repository}:{TAG}" for repository in self.repositories]


def digest_of(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


class Publisher:
    """Pushes to a registry without TLS and credentials (distribution-spec, "Push")."""

    def __init__(self, url: str) -> None:
        self._address = urlsplit(url).netloc
        self._connection = http.client.HTTPConnection(self._address, timeout=60)
        self._homes: dict[str, str] = {}  # digest: a repository that has it

    def blob(self, repository: str, digest: str, content: bytes) -> None:
        home = self._homes.setdefault(digest, repository)
        query = "" if home == repository else f"?mount={digest}&from={home}"
        status, location = self._send("POST", f"/v2/{repository}/blobs/uploads/{query}")
        if status == 201:
            return
        target = urlsplit(location)
        self._send("PUT", f"{target.path}?{target.query}&digest={digest}", content)

    def manifest(self, repository: str, content: bytes) -> None:
        self._send("PUT", f"/v2/{repository}/manifests/{TAG}", content, MANIFEST)

    def _send(self, method: str, target: str, body: bytes = b"", media_type: str = "application/octet-stream") -> tuple[int, str]:
        self._connection.request(method, target, body, {"Content-Type": media_type})
        answer = self._connection.getresponse()
        said = answer.read()
        if answer.status not in (201, 202):
            sys.exit(f"{method} {target}: {answer.status} {said.decode(errors='replace')[:500]}")
        return answer.status, answer.headers.get("Location", "")


def publish(publisher: Publisher, images: dict[str, Layers], layers: dict[tuple[int, int], tuple[str, bytes]]) -> Family:
    distinct: dict[str, int] = {}
    blobs: dict[str, int] = {}
    manifests: dict[str, str] = {}
    for repository, wanted in images.items():
        made = [layers.setdefault(each, layer(*each)) if each not in layers else layers[each] for each in wanted]
        config = json.dumps({
            "architecture": "amd64", "os": "linux", "config": {"Labels": {"repository": repository}},
            "rootfs": {"type": "layers", "diff_ids": [digest for digest, _content in made]},
        }).encode()
        for digest, content in [(digest_of(config), config), *made]:
            publisher.blob(repository, digest, content)
            distinct[digest] = len(content)
        blobs.update({digest: len(content) for digest, content in made})
        manifest = json.dumps({
            "schemaVersion": 2, "mediaType": MANIFEST, "config": descriptor(f"{OCI}.config.v1+json", digest_of(config), config),
            "layers": [descriptor(f"{OCI}.layer.v1.tar", *each) for each in made],
        }).encode()
        publisher.manifest(repository, manifest)
        manifests[repository] = digest_of(manifest)
        distinct[digest_of(manifest)] = len(manifest)
    return Family(list(images), sum(distinct.values()), blobs, manifests)


def layer(seed: int, size: int) -> tuple[str, bytes]:
    # The most that randbytes gives at once is 256 MB.
    chosen = random.Random(seed)
    content = b"".join(chosen.randbytes(min(MEGA, size - start)) for start in range(0, size, MEGA))
    return digest_of(content), content


def descriptor(media_type: str, digest: str, content: bytes) -> dict[str, object]:
    return {"mediaType": media_type, "digest": digest, "size": len(content)}


def families(published: str) -> Iterator[tuple[str, Family]]:
    """What main printed."""
    for name, values in json.loads(published).items():
        yield name, Family(**values)


def main() -> None:
    publisher = Publisher(sys.argv[1])
    layers: dict[tuple[int, int], tuple[str, bytes]] = {}
    print(json.dumps({name: vars(publish(publisher, FAMILIES[name], layers)) for name in sys.argv[2:]}))


if __name__ == "__main__":
    main()
