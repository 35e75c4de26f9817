# Copyright (c) 2026, mirrorfleet contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0
"""Puts sets of ten images into the registry at 127.0.0.1:5000, as faults/SET-0:1 to faults/SET-9:1. Each has a layer of its own.

usage: publish.py BYTES SET …
"""

from __future__ import annotations

import hashlib
import http.client
import json
import random
import sys

from sample_images import ARCHITECTURE, layer

OCI = "application/vnd.oci.image"
REGISTRY = http.client.HTTPConnection("127.0.0.1", 5000)


def put(method: str, path: str, content: bytes = b"", media_type: str = "application/octet-stream") -> str:
    """Where the answer says that it goes on."""
    REGISTRY.request(method, path, content, {"Content-Type": media_type})
    answer = REGISTRY.getresponse()
    said = answer.read()
    assert answer.status in (201, 202), said
    return answer.headers["Location"]


def push(repository: str, content: bytes, media_type: str) -> dict[str, object]:
    digest = "sha256:" + hashlib.sha256(content).hexdigest()
    there = put("POST", f"/v2/{repository}/blobs/uploads/")
    put("PUT", f"{there}&digest={digest}", content)
    return {"mediaType": media_type, "digest": digest, "size": len(content)}


def publish(repository: str, size: int) -> None:
    content, diff_id = layer({"faults.bin": random.Random(repository).randbytes(size)}, {})
    config = {"architecture": ARCHITECTURE, "os": "linux", "config": {}, "rootfs": {"type": "layers", "diff_ids": [diff_id]}}
    manifest = {
        "schemaVersion": 2,
        "mediaType": f"{OCI}.manifest.v1+json",
        "config": push(repository, json.dumps(config).encode(), f"{OCI}.config.v1+json"),
        "layers": [push(repository, content, f"{OCI}.layer.v1.tar+gzip")],
    }
    put("PUT", f"/v2/{repository}/manifests/1", json.dumps(manifest).encode(), f"{OCI}.manifest.v1+json")


for name in sys.argv[2:]:
    for number in range(10):
        publish(f"faults/{name}-{number}", int(sys.argv[1]))
