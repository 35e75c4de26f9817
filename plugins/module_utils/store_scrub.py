# Copyright (c) 2026, mirrorfleet contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0
"""Blobs are read again and compared with their digests, links with what they link to; what is wrong goes, and the next pull heals it.

Blobs take turns in the order of their digests, so the next one is always the one whose check is the longest ago. Where a run
has come to stands in .mirrorfleet/scrub.json; without that it begins anew.
"""

from __future__ import annotations

import errno
import hashlib
import mmap
import os
import time
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Callable, Iterator

from ansible_collections.mirrorfleet.registry.plugins.module_utils.errors import at_least
from ansible_collections.mirrorfleet.registry.plugins.module_utils.image_manifest import MAX_MANIFEST_BYTES
from ansible_collections.mirrorfleet.registry.plugins.module_utils.storage import Held, Link, Store, open_unnoticed
from ansible_collections.mirrorfleet.registry.plugins.module_utils.store_catalog import CachedImage, ManifestReader, RepositoryImages
from ansible_collections.mirrorfleet.registry.plugins.module_utils.store_removal import remove_data, remove_link, remove_repository, remove_tag
from ansible_collections.mirrorfleet.registry.plugins.module_utils.store_state import load, save

STATE = "scrub.json"
_CHUNK_BYTES = 1024 * 1024
# distribution 2.8 writes manifests and links in place: what is younger may be half written.
_WRITTEN_SECONDS = 60
_SAVE_SECONDS = 10.0
# Whoever waits for the rate looks up so often.
_STEP_SECONDS = 0.5

EMPTY, TRUNCATED, WRONG, UNREADABLE, BROKEN_LINK, NOTHING = "empty", "truncated", "wrong bytes", "unreadable", "broken link", "link to nothing"


@dataclass(frozen=True)
class Budget:
    """How much one run may do: seconds of reading and bytes of all blobs, and bytes a second; None for no limit.

    A blob that was begun is finished, so that a large one is checked at all. ``stop`` is asked between two chunks and each half second.
    """

    max_seconds: float | None = None
    max_bytes: int | None = None
    bytes_per_second: int | None = None
    stop: Callable[[], bool] = lambda: False

    def __post_init__(self) -> None:
        """Raises RegistryFleetError that names the wrong option."""
        at_least(0, max_seconds=self.max_seconds, max_bytes=self.max_bytes)
        at_least(1, bytes_per_second=self.bytes_per_second)


@dataclass(frozen=True)
class Finding:
    """Something wrong that was removed. path: below the store; images: the names that led to it, in order."""

    kind: str
    path: str
    digest: str
    images: tuple[str, ...]


@dataclass
class Scrubbed:
    """What a run did. complete: whether a whole turn over the blobs ended in it; incomplete_images: images of which a blob is gone"""

    blobs: int = 0
    bytes: int = 0
    seconds: float = 0.0
    complete: bool = False
    findings: list[Finding] = field(default_factory=list)
    incomplete_images: list[str] = field(default_factory=list)
    state_problem: str = ""


class _StoppedError(Exception):
    """The run is to end within a blob."""


def scrub(store: Store, budget: Budget, check_mode: bool = False, give_way: Callable[[], None] = lambda: None) -> Scrubbed:
    """Check the links, and blobs as far as the budget goes. The caller holds the store's lock, and is its owner.

    ``give_way`` is called as often as ``stop`` of the budget is asked, and may let others change the store. Raises StorageError when
    something can't be removed.
    """
    return _Scrub(store, budget, check_mode, give_way).run()


class _Scrub:
    def __init__(self, store: Store, budget: Budget, check_mode: bool, give_way: Callable[[], None]) -> None:
        self._store, self._budget, self._check_mode, self._give_way = store, budget, check_mode, give_way
        self._result = Scrubbed()
        self._began = self._saved = time.monotonic()
        manifests = ManifestReader(store)
        self._repositories = [RepositoryImages(store, manifests, name) for name in store.repositories()]
        # The images that need a digest, and the bytes that a manifest says it has.
        self._images: dict[str, list[CachedImage]] = {}
        self._promised: dict[str, int] = {}
        for repository in self._repositories:
            for image in repository.all():
                for digest in image.needs:
                    self._images.setdefault(digest, []).append(image)
            for revision in repository.revisions:
                manifest = manifests.get(revision)
                if manifest is not None:
                    self._promised.update((item.digest, item.size) for item in (*manifest.blobs, *manifest.manifests))
        # The blobs last: what a link names is there by then.
        self._files = store.blob_files()
        self._gone: set[str] = set()

    def run(self) -> Scrubbed:
        # To read the index takes its time, too, which is none to catch up on.
        self._reading_since = time.monotonic()
        with _Reader() as self._reader:
            self._check_blobs()
        self._check_links()
        self._result.seconds = time.monotonic() - self._began
        return self._result

    def _check_blobs(self) -> None:
        cursor = load(self._store.root, STATE).get("cursor")
        digests = sorted(self._files)
        ahead = [digest for digest in digests if isinstance(cursor, str) and digest > cursor]
        for digest in ahead + digests[: len(digests) - len(ahead)]:
            if self._is_spent():
                break
            try:
                self._check_blob(digest)
            except _StoppedError:
                break
            cursor = digest
            self._result.complete = self._result.complete or digest == digests[-1]
            if time.monotonic() - self._saved > _SAVE_SECONDS:
                self._save(cursor)
        self._save(cursor)

    def _save(self, cursor: object) -> None:
        if not self._check_mode and isinstance(cursor, str):
            self._result.state_problem = save(self._store.root, STATE, {"cursor": cursor})
        self._saved = time.monotonic()

    def _is_spent(self) -> bool:
        seconds, size = self._budget.max_seconds, self._budget.max_bytes
        return (
            (seconds is not None and time.monotonic() - self._reading_since >= seconds)
            or (size is not None and self._result.bytes >= size)
            or self._budget.stop()
        )

    def _check_blob(self, digest: str) -> None:
        held = self._store.held(self._store.blob_path(digest))
        if held is None:
            return
        try:
            kind = self._what_is_wrong(digest)
        except FileNotFoundError:
            return
        except OSError as error:
            # What file systems say of a bad disk. Who may not read it has found nothing wrong.
            if error.errno not in (errno.EIO, errno.EBADMSG, errno.EUCLEAN):
                return
            kind = UNREADABLE
        self._result.blobs += 1
        # A layer comes to its place by a rename, whole.
        if kind and (held.bytes > MAX_MANIFEST_BYTES or time.time() - held.written >= _WRITTEN_SECONDS):
            self._remove_blob(kind, digest, held)

    def _what_is_wrong(self, digest: str) -> str:
        algorithm = digest.partition(":")[0]
        hashing, size = hashlib.new(algorithm), 0
        for chunk in self._reader.chunks(self._store.blob_path(digest)):
            hashing.update(chunk)
            size += len(chunk)
            self._result.bytes += len(chunk)
            self._pause()
        if f"{algorithm}:{hashing.hexdigest()}" == digest:
            return ""
        return EMPTY if size == 0 else TRUNCATED if size < self._promised.get(digest, 0) else WRONG

    def _pause(self) -> None:
        """Until the rate allows to go on."""
        rate = self._budget.bytes_per_second
        due = self._reading_since + self._result.bytes / rate if rate else 0.0
        while True:
            if self._budget.stop():
                raise _StoppedError
            self._give_way()
            left = due - time.monotonic()
            if left <= 0:
                return
            time.sleep(min(left, _STEP_SECONDS))

    def _remove_blob(self, kind: str, digest: str, held: Held) -> None:
        self._report(kind, self._store.blob_path(digest), digest)
        self._gone.add(digest)
        if self._check_mode:
            return
        # From here on it is fetched again. Then what leads to it.
        remove_data(self._store, digest, held)
        for repository in self._repositories:
            remove_link(self._store, self._store.layer_path(repository.repository, digest))
            if digest in repository.revisions:
                remove_link(self._store, self._store.revision_path(repository.repository, digest))
            # As they are now: a pull may have moved one.
            for tag, now in self._store.tags(repository.repository).items():
                if now == digest:
                    remove_tag(self._store, repository.repository, tag)

    def _check_links(self) -> None:
        """Remove what is no link, and links to what is not there; distribution answers 500 of the first."""
        incomplete = {image.name for digest in self._gone for image in self._images.get(digest, ())}
        for repository in self._repositories:
            for directory, link in self._store.written_links(repository.repository).items():
                digest = ":".join(directory.split("/")[-2:])
                if not self._is_to_go(digest, link, digest):
                    continue
                self._report(BROKEN_LINK if link.digest != digest else NOTHING, f"{directory}/link", digest)
                incomplete.update(image.name for image in self._images.get(digest, ()) if image.repository == repository.repository)
                if not self._check_mode:
                    remove_link(self._store, directory)
            for tag, link in self._store.tag_links(repository.repository, broken=True).items():
                if self._is_to_go(link.digest, link, link.digest):
                    self._report(NOTHING if link.digest else BROKEN_LINK, f"{self._store.tag_path(repository.repository, tag)}/current/link", link.digest)
                    if not self._check_mode:
                        remove_tag(self._store, repository.repository, tag)
            if not self._check_mode and not repository.all():
                remove_repository(self._store, repository.repository)
        self._result.incomplete_images = sorted(incomplete)

    def _is_to_go(self, digest: str, link: Link, wanted: str) -> bool:
        """Whether a link does not hold what is wanted, or what it leads to is gone; one that is being written may be empty."""
        if time.time() - link.written < _WRITTEN_SECONDS or digest in self._gone:
            return False
        if not digest or link.digest != wanted:
            return True
        return digest not in self._files and self._store.held(self._store.blob_path(digest)) is None

    def _report(self, kind: str, path: str, digest: str) -> None:
        images = tuple(sorted(image.name for image in self._images.get(digest, ())))
        self._result.findings.append(Finding(kind, os.path.relpath(path, self._store.root), digest, images))


class _Reader:
    """Files in chunks, from the disk and not from the memory that the edge serves from, where the file system can do that.

    While one chunk is worked on, the next one is read.
    """

    def __enter__(self) -> _Reader:
        # Direct reads want memory that begins with a page.
        self._buffers = [memoryview(mmap.mmap(-1, _CHUNK_BYTES)) for _number in range(2)]
        self._thread = ThreadPoolExecutor(1)
        return self

    def __exit__(self, *_error: object) -> None:
        self._thread.shutdown()

    def chunks(self, path: str) -> Iterator[memoryview]:
        try:
            descriptor = open_unnoticed(path, os.O_DIRECT)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            descriptor = open_unnoticed(path)
        offset, turn = 0, 0
        reading = self._thread.submit(os.preadv, descriptor, [self._buffers[turn]], offset)
        try:
            while True:
                size = reading.result()
                if not size:
                    return
                chunk = self._buffers[turn][:size]
                offset, turn = offset + size, 1 - turn
                # A short read was the last one: a direct one could not go on from there.
                if size == _CHUNK_BYTES:
                    reading = self._thread.submit(os.preadv, descriptor, [self._buffers[turn]], offset)
                yield chunk
                if size < _CHUNK_BYTES:
                    return
        finally:
            wait([reading])
            os.close(descriptor)
