# Copyright (c) 2026, mirrorfleet contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0
"""Images leave stores that are in use.

An image goes in the order blobs, their links, manifests, their links, tag: it is listed until all else of it is gone, so a
run that was killed is finished by the next one. What another image needs stays.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Iterator, Sequence

from ansible_collections.mirrorfleet.registry.plugins.module_utils.errors import RegistryFleetError, at_least
from ansible_collections.mirrorfleet.registry.plugins.module_utils.storage import Held, Store
from ansible_collections.mirrorfleet.registry.plugins.module_utils.store_catalog import (
    CachedImage,
    ManifestReader,
    RepositoryImages,
    check_patterns,
    exact_names,
    loose_blob,
    matcher,
    names_of,
)
from ansible_collections.mirrorfleet.registry.plugins.module_utils.store_removal import is_open, remove_data, remove_link, remove_repository, remove_tag
from ansible_collections.mirrorfleet.registry.plugins.module_utils.store_state import as_owner, locked

# A fill that has brought nothing for so long has been given up: the coalescer does after 300 s.
FILL_STALLS_SECONDS = 600
# For so long after a blob has come, distribution may still be about to open it for whoever asked before: the edge sends it
# to all others. Without its file distribution would break off the answer, or say 404 (blobserver.go: ServeBlob).
ARRIVING_SECONDS = 10
# How old the knowledge of what has come meanwhile may be.
_LOOK_AGAIN_SECONDS = 5.0


@dataclass(frozen=True)
class Criteria:
    """Which images go, and until when; without a limit all that are meant.

    images, pinned: patterns of store_catalog.matcher; no images: all
    unused_for, grace: seconds. What was used within grace stays, unless it is meant by images
    max_bytes: of each store; free_bytes, free_percent: of its file system, to be free
    """

    images: tuple[str, ...] = ()
    unused_for: float | None = None
    max_bytes: int | None = None
    free_bytes: int | None = None
    free_percent: float | None = None
    pinned: tuple[str, ...] = ()
    grace: float = 3600

    def check(self) -> None:
        """Raises RegistryFleetError that names the wrong option."""
        if not self.images and self.unused_for is None and not self.has_limit:
            raise RegistryFleetError("This would evict everything. Give images, unused_for, max_bytes, free_bytes or free_percent.")
        at_least(0, max_bytes=self.max_bytes, free_bytes=self.free_bytes)
        if self.free_percent is not None and not 0 <= self.free_percent <= 100:
            raise RegistryFleetError(f"free_percent: {self.free_percent:g}: write a number from 0 to 100.")
        check_patterns(self.images, "images")
        check_patterns(self.pinned, "pinned")

    @property
    def has_limit(self) -> bool:
        return any(limit is not None for limit in (self.max_bytes, self.free_bytes, self.free_percent))


@dataclass
class FileSystem:
    """The disk that stores are on, as it is and as it will be: the bytes that users who are not root can have, and those free of them."""

    total: int
    free: int

    @classmethod
    def of(cls, path: str) -> FileSystem:
        figures = os.statvfs(path)
        return cls((figures.f_blocks - figures.f_bfree + figures.f_bavail) * figures.f_frsize, figures.f_bavail * figures.f_frsize)

    @property
    def used_percent(self) -> float:
        """As df(1) says it."""
        return 100 - 100 * self.free / self.total if self.total else 100.0

    def wanted(self, criteria: Criteria) -> int:
        """The bytes that are to be free."""
        return max(criteria.free_bytes or 0, int(self.total * (criteria.free_percent or 0) / 100))


@dataclass
class Outcome:
    """What happened to a cache's store. evicted: (image, bytes freed); kept: (image, why); bytes_lacking: bytes that a limit still lacks.

    absent: images that were meant by their whole name, and are not there
    """

    name: str
    path: str
    bytes_before: int
    bytes_after: int = 0
    evicted: list[tuple[CachedImage, int]] = field(default_factory=list)
    kept: list[tuple[CachedImage, str]] = field(default_factory=list)
    bytes_lacking: int = 0
    absent: set[str] = field(default_factory=set)


def evict(caches: Sequence[tuple[str, str]], criteria: Criteria, who: str, lock_timeout: float, check_mode: bool = False) -> list[Outcome]:
    """Evict from caches, given as (name, path of the store). Least recently used images go first, over all caches of a file system.

    Raises RegistryFleetError; what went before that is gone, and everything is still served right.
    """
    criteria.check()
    stores = [(name, Store(path)) for name, path in caches]
    roots = [store.root for _name, store in stores]
    for root in roots:
        if roots.count(root) > 1:
            raise RegistryFleetError(f"caches: {root} is named twice. Name each store once.")
    with contextlib.ExitStack() as locks:
        # In one order, so that two who want several do not wait for each other. A look needs no lock.
        for root in sorted([] if check_mode else roots):
            with as_owner(root):
                locks.enter_context(locked(root, who, lock_timeout))
        evictions = [_Eviction(name, store, criteria, check_mode) for name, store in stores]
        _evict(evictions, criteria)
        return [each.finish() for each in evictions]


def _evict(evictions: Sequence[_Eviction], criteria: Criteria) -> None:
    disks: dict[int, FileSystem] = {}
    for each in evictions:
        each.disk = disks.setdefault(os.stat(each.store.root).st_dev, FileSystem.of(each.store.root))
    candidates = [(image, each) for each in evictions for image in each.candidates()]
    for image, eviction in sorted(candidates, key=lambda item: (item[0].last_used, item[0].name)):
        if not criteria.has_limit or eviction.lacks():
            eviction.consider(image)


class _Eviction:
    """One store, what is in it and who needs that."""

    disk: FileSystem

    def __init__(self, name: str, store: Store, criteria: Criteria, check_mode: bool) -> None:
        self.store = store
        self._criteria, self._check_mode = criteria, check_mode
        self._pinned = matcher(criteria.pinned)
        self._now = time.time()
        self._known: dict[CachedImage, RepositoryImages] = {}
        # How many images of the store, and of a repository, need a digest.
        self._users: Counter[str] = Counter()
        self._repository_users: Counter[tuple[str, str]] = Counter()
        with as_owner(store.root):
            self._look()
            # The blobs last: what has come meanwhile is young, and stays.
            self._files: dict[str, Held] = store.blob_files()
        self.bytes = sum(held.bytes for held in self._files.values())
        self._outcome = Outcome(name, store.path, self.bytes, absent=exact_names(criteria.images))

    def candidates(self) -> Iterator[CachedImage]:
        """What may be evicted."""
        meant = matcher(self._criteria.images)
        noted = self.store.reads_are_noted
        loose = [loose_blob(digest, held, noted) for digest, held in self._files.items() if not self._users[digest]]
        for image in [*self._known, *loose]:
            self._outcome.absent -= names_of(image)
            if self._criteria.images and not meant(image):
                continue
            if self._criteria.unused_for is not None and self._now - image.last_used < self._criteria.unused_for:
                continue
            yield image

    def lacks(self) -> int:
        """The bytes by which a limit is missed; 0 when all are met."""
        over = self.bytes - self._criteria.max_bytes if self._criteria.max_bytes is not None else 0
        return max(0, over, self.disk.wanted(self._criteria) - self.disk.free)

    def consider(self, image: CachedImage) -> None:
        """Evict an image, unless something keeps it."""
        with as_owner(self.store.root):
            if not self._check_mode and time.monotonic() - self._looked > _LOOK_AGAIN_SECONDS:
                self._look()
            freed = [digest for digest in image.needs if digest in self._files and self._users[digest] <= 1]
            why = self._why_kept(image, freed)
            if why:
                self._outcome.kept.append((image, why))
                return
            gone = {digest: self._files.pop(digest) for digest in freed}
            if not self._check_mode:
                self._remove(image, gone)
        self._known.pop(image, None)
        for digest in image.needs:
            self._users[digest] -= 1
            self._repository_users[image.repository, digest] -= 1
        size = sum(held.bytes for held in gone.values())
        self._outcome.evicted.append((image, size))
        self.bytes -= size
        self.disk.free += sum(held.disk_bytes for held in gone.values())

    def finish(self) -> Outcome:
        self._outcome.bytes_after = self.bytes
        self._outcome.bytes_lacking = self.lacks() if self._criteria.has_limit else 0
        if not self._check_mode:
            with as_owner(self.store.root):
                left = {image.repository for image in self._known}
                for repository in sorted(set(self.store.repositories()) - left, reverse=True):
                    remove_repository(self.store, repository)
        return self._outcome

    def _look(self) -> None:
        """Count the images that are there; those already counted stay so until they are evicted."""
        manifests = ManifestReader(self.store)
        names = {(image.repository, image.tag, image.digest) for image in self._known}
        for repository in self.store.repositories():
            images = RepositoryImages(self.store, manifests, repository)
            for image in images.all():
                if (image.repository, image.tag, image.digest) not in names:
                    self._known[image] = images
                    self._users.update(image.needs)
                    self._repository_users.update((repository, digest) for digest in image.needs)
        self._looked = time.monotonic()

    def _why_kept(self, image: CachedImage, freed: Sequence[str]) -> str:
        if self._pinned(image):
            return "pinned"
        # Nothing tells whether somebody is about to need a blob that no image names, but its age.
        spare_young = not self._criteria.images or not image.repository
        if spare_young and self._now - image.last_used < self._criteria.grace:
            return "used within grace"
        if image.repository and self._used_since(image):
            return "used meanwhile"
        if image.repository and any(time.time() - upload.written < FILL_STALLS_SECONDS for upload in self.store.uploads(image.repository)):
            return "its repository is being filled"
        for digest in freed:
            age = time.time() - self._files[digest].written
            if age < ARRIVING_SECONDS or (spare_young and age < self._criteria.grace):
                return "a blob of it has just come"
            if is_open(self.store.blob_path(digest)):
                return "being served"
        return ""

    def _used_since(self, image: CachedImage) -> bool:
        """Whether the links are other ones than when they were looked at."""
        links = self._known[image]
        if image.tag:
            link = self.store.held(f"{self.store.tag_path(image.repository, image.tag)}/current/link")
            if link is not None and link.written != links.tags[image.tag].written:
                return True
        revision, known = self.store.held(f"{self.store.revision_path(image.repository, image.digest)}/link"), links.revisions.get(image.digest)
        return revision is not None and (known is None or revision[2:4] != known[1:])

    def _remove(self, image: CachedImage, gone: dict[str, Held]) -> None:
        for digest in image.blobs:
            if self._users[digest] <= 1:
                remove_data(self.store, digest, gone.get(digest))
        if not image.repository:
            for repository in self.store.repositories():
                remove_link(self.store, self.store.layer_path(repository, image.digest))
            return
        unlinked = {digest for digest in image.needs if self._repository_users[image.repository, digest] <= 1}
        for digest in image.blobs:
            if digest in unlinked:
                remove_link(self.store, self.store.layer_path(image.repository, digest))
        for digest in image.manifests:
            if self._users[digest] <= 1:
                remove_data(self.store, digest, gone.get(digest))
            if digest in unlinked:
                remove_link(self.store, self.store.revision_path(image.repository, digest))
        if image.tag:
            remove_tag(self.store, image.repository, image.tag)
