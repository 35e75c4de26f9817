# Copyright (c) 2026, mirrorfleet contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0
"""The images of a store: what each needs, and when each was last used.

distribution in proxy mode writes a tag's link anew at each pull by the tag while its upstream answers (proxytagservice.go:
Get calls localTags.Tag), and reads a revision's link at each pull, by tag or digest (linkedblobstore.go: Stat). So the
link's times tell of the image's last use, for each repository by itself; those of the blobs, which the edge sends from a
mount that may be read-only, do not.
"""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass
from typing import Callable, Iterable

from ansible_collections.mirrorfleet.registry.plugins.module_utils.errors import RegistryFleetError
from ansible_collections.mirrorfleet.registry.plugins.module_utils.image_manifest import MAX_MANIFEST_BYTES, Manifest, ManifestError, parse_manifest
from ansible_collections.mirrorfleet.registry.plugins.module_utils.image_reference import ImageReferenceError, is_digest, parse_image_reference
from ansible_collections.mirrorfleet.registry.plugins.module_utils.storage import Held, Link, Store

PULL, READ, WRITTEN = "pull", "atime", "mtime"
# A pull writes the tag's link, and then reads the revision's.
_ONE_PULL_SECONDS = 60


@dataclass(frozen=True)
class CachedImage:
    """An image by one of its names: a tag, or its digest where no tag leads to it; or a blob that no image needs.

    manifests: of it, those that the repository links, its own last; blobs: its configs and layers, there or not
    last_used: seconds since 1970, and where that is known from: ``pull`` (exact), ``atime`` (to a day), ``mtime`` (its arrival)
    """

    repository: str
    tag: str
    digest: str
    manifests: tuple[str, ...]
    blobs: tuple[str, ...]
    last_used: float
    last_used_source: str

    @property
    def name(self) -> str:
        return f"{self.repository}:{self.tag}" if self.tag else f"{self.repository}@{self.digest}" if self.repository else self.digest

    @property
    def needs(self) -> tuple[str, ...]:
        return self.blobs + self.manifests


class ManifestReader:
    """Manifests of a store, each read once however many repositories and tags name it."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._read: dict[str, Manifest | None] = {}

    def get(self, digest: str) -> Manifest | None:
        """None when it is not there, or is no manifest."""
        if digest not in self._read:
            body = self._store.read_blob(digest, MAX_MANIFEST_BYTES)
            try:
                self._read[digest] = parse_manifest(body) if body is not None else None
            except ManifestError:
                self._read[digest] = None
        return self._read[digest]


class RepositoryImages:
    """The images of one repository, as its links are at this moment."""

    def __init__(self, store: Store, manifests: ManifestReader, repository: str) -> None:
        self.repository = repository
        self.tags = store.tag_links(repository)
        self.revisions = store.revision_links(repository)
        self._manifests = manifests
        self._reads_are_noted = store.reads_are_noted
        self._needs: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {}

    def all(self) -> list[CachedImage]:
        return [*self._tagged(), *self._untagged()]

    def _tagged(self) -> Iterable[CachedImage]:
        for tag, link in self.tags.items():
            yield self._image(tag, link.digest, self.last_used(link.digest, link))

    def _untagged(self) -> Iterable[CachedImage]:
        for digest in self.untagged():
            yield self._image("", digest, self.last_used(digest))

    def untagged(self) -> list[str]:
        """The manifests that neither a tag nor an index leads to."""
        led_to = {link.digest for link in self.tags.values()}
        for digest in self.revisions:
            manifest = self._manifests.get(digest)
            if manifest is not None:
                led_to.update(item.digest for item in manifest.manifests)
        return sorted(digest for digest in self.revisions if digest not in led_to)

    def without_tag(self) -> list[str]:
        """The manifests that no tag leads to, directly or by an index."""
        led_to = {link.digest for link in self.tags.values()}
        for digest in [digest for digest in led_to if digest in self.revisions]:
            manifest = self._manifests.get(digest)
            if manifest is not None:
                led_to.update(item.digest for item in manifest.manifests)
        return sorted(set(self.revisions) - led_to)

    def last_used(self, digest: str, tag: Link | None = None) -> tuple[float, str]:
        """When, in seconds since 1970, and from where it is known."""
        known = [(0.0, WRITTEN)]
        revision = self.revisions.get(digest)
        if revision is not None:
            known.append((revision.written, WRITTEN))
            # A link that nobody has read since it was written has an older time of reading, or the same.
            if self._reads_are_noted and revision.read > revision.written:
                known.append((revision.read, READ))
        at, source = max(known)
        if tag is not None and tag.written > at - _ONE_PULL_SECONDS:
            return max(at, tag.written), PULL
        return at, source

    def _image(self, tag: str, digest: str, used: tuple[float, str]) -> CachedImage:
        if digest not in self._needs:
            self._needs[digest] = self._what_it_needs(digest)
        return CachedImage(self.repository, tag, digest, *self._needs[digest], *used)

    def _what_it_needs(self, digest: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
        manifests, blobs = [digest], []
        manifest = self._manifests.get(digest)
        if manifest is not None:
            manifests = [item.digest for item in manifest.manifests if item.digest in self.revisions] + [digest]
        for each in manifests:
            found = self._manifests.get(each)
            if found is not None:
                blobs += [blob.digest for blob in found.blobs]
        return tuple(dict.fromkeys(manifests)), tuple(dict.fromkeys(blobs))


def loose_blob(digest: str, held: Held, reads_are_noted: bool) -> CachedImage:
    """A blob that no image needs."""
    noted = reads_are_noted and held.read > held.written
    return CachedImage("", "", digest, (), (digest,), *((held.read, READ) if noted else (held.written, WRITTEN)))


def check_patterns(patterns: Iterable[str], option: str) -> None:
    """Refuse what would match nothing, or not what it seems to. Raises RegistryFleetError."""
    for pattern in patterns:
        if is_digest(pattern) or set("*?[") & set(pattern):
            continue
        try:
            reference = parse_image_reference(pattern, default_domain="")
        except ImageReferenceError as error:
            raise RegistryFleetError(f"{option}: {error}, svc/* or sha256:…") from None
        if reference.domain:
            raise RegistryFleetError(f"{option}: {pattern!r} names a registry, and images in a cache have none. Write {pattern[len(reference.domain) + 1:]}.")
        if not reference.tag and not reference.digest:
            raise RegistryFleetError(f"{option}: {pattern!r} has neither tag nor digest. Write {pattern}:latest for one image, {pattern}[:@]* for all of them.")


def exact_names(patterns: Iterable[str]) -> set[str]:
    """Those of the patterns that mean one image and nothing else."""
    return {pattern for pattern in patterns if not set("*?[") & set(pattern)}


def names_of(image: CachedImage) -> set[str]:
    """What an image may be called where one is meant: its name, repository@digest, or the digest alone."""
    return {image.name, f"{image.repository}@{image.digest}", image.digest}


def matcher(patterns: Iterable[str]) -> Callable[[CachedImage], bool]:
    """Whether an image is meant by one of the patterns: as one of its names, or as what its name is like."""
    patterns = list(patterns)
    exact = exact_names(patterns)
    shell = [pattern for pattern in patterns if pattern not in exact]

    def matches(image: CachedImage) -> bool:
        return bool(names_of(image) & exact) or any(fnmatch.fnmatchcase(image.name, pattern) for pattern in shell)

    return matches
