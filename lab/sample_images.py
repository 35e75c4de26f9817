# Copyright (c) 2026, mirrorfleet contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0
"""Makes the images that the lab pulls and runs, as OCI layouts (image-layout.md of the OCI image specification).

usage: sample_images.py DIR

    DIR/oci/busybox        busybox-static alone, about 1 MB
    DIR/oci/app            a service of two layers: a base of 160 MB, an application of 60 MB; it answers on port 8080
    DIR/oci/small          the same of 16 MB and 6 MB, for tests
Layers are gzip, and what fills them is random, so that they cross a link at the size they say. A layout that is
there is left alone.
"""

from __future__ import annotations

import fcntl
import gzip
import hashlib
import io
import json
import os
import platform
import random
import shutil
import sys
import tarfile
from pathlib import Path

MEGA = 1_000_000
BUSYBOX = "/usr/bin/busybox" if os.path.exists("/usr/bin/busybox") else "/bin/busybox"
ARCHITECTURE = {"x86_64": "amd64", "aarch64": "arm64"}[platform.machine()]


def layer(files: dict[str, bytes], links: dict[str, str]) -> tuple[bytes, str]:
    """A gzip layer and the digest of its uncompressed tar (its diff_id)."""
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(content), 0o755
            tar.addfile(member, io.BytesIO(content))
        for name, target in links.items():
            member = tarfile.TarInfo(name)
            member.type, member.linkname = tarfile.SYMTYPE, target
            tar.addfile(member)
    tarred = plain.getvalue()
    return gzip.compress(tarred, compresslevel=1, mtime=0), "sha256:" + hashlib.sha256(tarred).hexdigest()


def write_layout(target: Path, layers: list[tuple[bytes, str]], command: list[str]) -> None:
    partial = target.with_name(target.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    blobs = partial / "blobs" / "sha256"
    blobs.mkdir(parents=True)

    def put(content: bytes, media_type: str) -> dict[str, object]:
        digest = hashlib.sha256(content).hexdigest()
        (blobs / digest).write_bytes(content)
        return {"mediaType": media_type, "digest": "sha256:" + digest, "size": len(content)}

    config = {
        "architecture": ARCHITECTURE,
        "os": "linux",
        "config": {"Cmd": command, "Env": ["PATH=/bin"]},
        "rootfs": {"type": "layers", "diff_ids": [diff_id for content, diff_id in layers]},
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": put(json.dumps(config).encode(), "application/vnd.oci.image.config.v1+json"),
        "layers": [put(content, "application/vnd.oci.image.layer.v1.tar+gzip") for content, diff_id in layers],
    }
    descriptor = put(json.dumps(manifest).encode(), "application/vnd.oci.image.manifest.v1+json")
    (partial / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [descriptor]}))
    (partial / "oci-layout").write_text(json.dumps({"imageLayoutVersion": "1.0.0"}))
    partial.rename(target)


def main(directory: str) -> None:
    root = Path(directory) / "oci"
    root.mkdir(parents=True, exist_ok=True)
    # Scenarios that run side by side all want them.
    with open(root / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        write_missing(root)


def write_missing(root: Path) -> None:
    with open(BUSYBOX, "rb") as program:
        shell = {"bin/busybox": program.read()}
    applets = {"bin/" + name: "busybox" for name in ("sh", "httpd", "ls", "cat", "sleep", "true", "wget", "sha256sum")}

    def service(seed: int, base: int, application: int) -> list[tuple[bytes, str]]:
        filler = random.Random(seed)
        return [
            layer({**shell, "usr/lib/base.bin": filler.randbytes(base)}, applets),
            layer({"srv/index.html": b"the service answers\n", "srv/app.bin": filler.randbytes(application)}, {}),
        ]

    serve = ["/bin/httpd", "-f", "-p", "8080", "-h", "/srv"]
    wanted = {
        "busybox": lambda: ([layer(shell, applets)], ["/bin/sh"]),
        "small": lambda: (service(1, 16 * MEGA, 6 * MEGA), serve),
        "app": lambda: (service(2, 160 * MEGA, 60 * MEGA), serve),
    }
    for name, make in wanted.items():
        if not (root / name).exists():
            write_layout(root / name, *make())


if __name__ == "__main__":
    main(sys.argv[1])
