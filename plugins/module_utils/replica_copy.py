# Copyright (c) 2026, mirrorfleet contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0
"""Brings images from one registry into another by that one's own door, and of their bytes only those that it lacks.

Blobs come first, then the manifests from the bottom up, the tag last: whoever looks meanwhile, or after a kill, sees an image that is
whole or none. Distribution verifies each digest before it stores. Uploads: github.com/opencontainers/distribution-spec (spec.md, "Push").
"""

from __future__ import annotations

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import BinaryIO, Callable
from urllib.parse import quote, urlsplit

from ansible_collections.mirrorfleet.registry.plugins.module_utils.image_manifest import Descriptor, Manifest
from ansible_collections.mirrorfleet.registry.plugins.module_utils.registry_client import RegistryClient, RegistryError

_BLOBS_AT_ONCE = 3
# A registry of which more tags can't be read is what fails.
_MOST_BROKEN = 100


class Door(RegistryClient):
    """A registry's own door: distribution behind a Unix socket, which asks for no login. ``parts`` is where blobs are until they are whole."""

    def __init__(self, socket: str, parts: str) -> None:
        # Storage may take its time at the end of a large blob.
        super().__init__("http://localhost", address=socket, timeout=300, retries=2)
        self._parts = parts
        os.makedirs(parts, mode=0o700, exist_ok=True)

    def __enter__(self) -> Door:
        return self

    def named(self, repository: str, target: str) -> str | None:
        """The digest of what a tag or digest names; empty when that is nothing, None when it can't be read."""
        try:
            found = self.head_manifest(repository, target)
        except RegistryError as error:
            if error.status is None:
                raise
            return None
        return found.digest if found else ""

    def mount(self, repository: str, digest: str, other: str) -> bool:
        """Give the repository a blob that another one has."""
        status, place = self._upload("POST", repository, f"/v2/{repository}/blobs/uploads/?mount={quote(digest)}&from={quote(other)}")
        if status == 202:
            self._upload("DELETE", repository, place)
        return status == 201

    def fetch(self, repository: str, blob: Descriptor, source: RegistryClient, came: Callable[[int], None]) -> None:
        """Bring a blob; what had come of it when that broke off, or when the process was killed, does not come again."""
        path = self._part(blob.digest)
        with open(path, "ab") as part:
            if part.tell() > blob.size:
                part.truncate(0)
                # It still tells the old end.
                part.seek(0)

            def take(chunk: bytes) -> None:
                part.write(chunk)
                came(len(chunk))

            source.rest_of_blob(repository, blob, part.tell(), take)
        place = self._upload("POST", repository, f"/v2/{repository}/blobs/uploads/")[1]
        try:
            with open(path, "rb") as whole:
                self._upload("PUT", repository, f"{place}{'&' if '?' in place else '?'}digest={quote(blob.digest)}", whole, blob.size)
        except RegistryError as error:
            # The digest is another one. A full disk is no fault of the bytes.
            if error.status == 400:
                self.forget(blob.digest)
            raise
        self.forget(blob.digest)

    def forget(self, digest: str) -> None:
        """What has come of a blob goes, if there is anything."""
        with suppress(FileNotFoundError):
            os.unlink(self._part(digest))

    def _part(self, digest: str) -> str:
        return os.path.join(self._parts, digest.replace(":", "-"))

    def tidy(self, seconds: float) -> None:
        """Forget parts that nobody has added to for so long."""
        for entry in os.scandir(self._parts):
            if time.time() - entry.stat().st_mtime > seconds:
                os.unlink(entry.path)

    def _upload(self, method: str, repository: str, target: str, body: BinaryIO | None = None, size: int = 0) -> tuple[int, str]:
        """Status and Location of a step of an upload."""
        headers = {"Content-Length": str(size), **({"Content-Type": "application/octet-stream"} if body else {})}
        with self._get(repository, self.url + target, headers, method, also=(201, 202, 204), body=body) as answer:
            answer.read(0)
        parts = urlsplit(answer.headers.get("Location", ""))
        return answer.status, f"{parts.path}?{parts.query}" if parts.query else parts.path


class Copier:
    """Copies images into a door. Not for several threads, of which it takes its own."""

    def __init__(self, door: Door) -> None:
        self._door = door
        self._homes: dict[str, str] = {}  # blob -> a repository that has it
        self._lock = threading.Lock()
        self._homes_known = False
        self.received = 0  # bytes of blobs that came

    def copy(self, source: RegistryClient, repository: str, digest: str, tag: str = "") -> None:
        """Bring a manifest with all that it needs, and give it the tag if there is one."""
        tree: dict[str, tuple[Manifest, bytes]] = {}
        self._collect(source, repository, digest, tree)
        blobs = {blob.digest: blob for manifest, _body in tree.values() for blob in manifest.blobs}
        with ThreadPoolExecutor(_BLOBS_AT_ONCE) as pool:
            for done in [pool.submit(self._blob, source, repository, blob) for blob in blobs.values()]:
                done.result()
        # An index comes after what it names: dictionaries keep the order of coming, and _collect goes down first.
        for each, (manifest, body) in tree.items():
            if each != digest and not self._door.named(repository, each):
                self._door.put_manifest(repository, each, body, manifest.media_type)
        manifest, body = tree[digest]
        self._door.put_manifest(repository, tag or digest, body, manifest.media_type)
        # Distribution keeps what it has of a manifest, broken or not.
        self._door.head_manifest(repository, tag or digest)
        self._homes.update(dict.fromkeys(blobs, repository))

    def _collect(self, source: RegistryClient, repository: str, digest: str, tree: dict[str, tuple[Manifest, bytes]]) -> None:
        if digest not in tree:
            manifest, body = source.manifest_body(repository, digest)
            for each in manifest.manifests:
                self._collect(source, repository, each.digest, tree)
            tree[digest] = manifest, body

    def _blob(self, source: RegistryClient, repository: str, blob: Descriptor) -> None:
        try:
            if self._door.head_blob(repository, blob.digest):
                # A process that was killed may have handed it in, and no more.
                self._door.forget(blob.digest)
                return
        except RegistryError as error:
            # What can't be read comes anew.
            if error.status is None:
                raise
        home = self._home(blob.digest)
        if home and self._door.mount(repository, blob.digest, home):
            return
        try:
            self._door.fetch(repository, blob, source, self._count)
        except RegistryError as error:
            # Layers that a registry need not have, and that a push leaves out.
            if error.status != 404 or not ("foreign" in blob.media_type or "nondistributable" in blob.media_type):
                raise

    def _count(self, size: int) -> None:
        with self._lock:
            self.received += size

    def _home(self, digest: str) -> str:
        with self._lock:
            if not self._homes_known:
                self._look_around()
                self._homes_known = True
            return self._homes.get(digest, "")

    def _look_around(self) -> None:
        """What the registry here has, by its tags. One that can't be read costs bytes, no more."""
        waiting = [(repository, tag) for repository in self._door.repositories() for tag in _tags(self._door, repository)]
        seen: set[tuple[str, str]] = set()
        while waiting:
            repository, target = waiting.pop()
            if (repository, target) not in seen:
                seen.add((repository, target))
                with suppress(RegistryError):
                    manifest = self._door.manifest(repository, target)[0]
                    self._homes.update(dict.fromkeys((blob.digest for blob in manifest.blobs), repository))
                    waiting.extend((repository, each.digest) for each in manifest.manifests)


def tags_of(registry: RegistryClient) -> tuple[dict[tuple[str, str], str], dict[tuple[str, str], str]]:
    """What each tag of a registry names, by repository and tag, and why some can't be read."""
    names = [(repository, tag) for repository in registry.repositories() for tag in _tags(registry, repository)]
    broken: dict[tuple[str, str], str] = {}

    def named(name: tuple[str, str]) -> str:
        try:
            found = registry.head_manifest(*name)
        except RegistryError as error:
            if error.status is None or len(broken) >= _MOST_BROKEN:
                raise
            broken[name] = str(error)
            return ""
        return found.digest if found else ""

    with ThreadPoolExecutor(8) as pool:
        digests = list(pool.map(named, names))
    return {name: digest for name, digest in zip(names, digests) if digest}, broken


def _tags(registry: RegistryClient, repository: str) -> list[str]:
    try:
        return list(registry.tags(repository))
    except RegistryError as error:
        # Somebody has begun to push into it.
        if error.status != 404:
            raise
        return []
