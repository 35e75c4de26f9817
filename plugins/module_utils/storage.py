# Copyright (c) 2026, mirrorfleet contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0
"""The store: what distribution's filesystem driver writes below its rootdirectory, the same in 2.8 and 3.x.

Layout: registry/storage/paths.go in github.com/distribution/distribution.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass

from ansible_collections.mirrorfleet.registry.plugins.module_utils.errors import RegistryFleetError
from ansible_collections.mirrorfleet.registry.plugins.module_utils.image_reference import is_digest, is_repository, is_tag

_MAX_LINK_BYTES = 256
_PARTS = ("_manifests", "_layers", "_uploads")
_NOT_FOLLOWED = "a symbolic link, which distribution never makes; not followed"


class StorageError(RegistryFleetError):
    """The store as a whole can't be read."""


@dataclass(frozen=True)
class Problem:
    """Something in the store that is not as distribution leaves it; ``path`` is below the rootdirectory."""

    path: str
    why: str


@dataclass(frozen=True)
class Upload:
    """A blob on its way into the store; ``bytes`` have come."""

    repository: str
    id: str
    bytes: int


class Store:
    """Reads a store that may be written to meanwhile: what vanishes is not there, what is odd goes to ``problems``.

    Symbolic links below ``root`` are not followed, ``root`` may be one. Raises StorageError, and only when it is opened.
    """

    def __init__(self, root: str) -> None:
        self.root = os.path.realpath(root)
        self.problems: list[Problem] = []
        try:
            os.scandir(self.root).close()
        except FileNotFoundError:
            raise StorageError(f"There is no directory {root}. Give the rootdirectory of a distribution as path.") from None
        except OSError as error:
            raise StorageError(f"{root} can't be read: {error.strerror}. Run as a user who may, such as root (become: true).") from None
        self._repositories = self._below("repositories")
        self._blobs = self._below("blobs")

    def blob_path(self, digest: str) -> str:
        """Where a blob is, if it is there."""
        algorithm, _colon, encoded = digest.partition(":")
        return f"{self._blobs}/{algorithm}/{encoded[:2]}/{encoded}/data"

    def blobs(self) -> dict[str, int]:
        """All blobs, manifests and configs included, with their sizes in bytes."""
        sizes: dict[str, int] = {}
        for algorithm in self._directories(self._blobs):
            for shard in self._directories(algorithm.path):
                for entry in self._directories(shard.path):
                    digest = f"{algorithm.name}:{entry.name}"
                    if not is_digest(digest) or entry.name[:2] != shard.name:
                        self._report(entry.path, "its name is no digest's")
                        continue
                    size = self._size(f"{entry.path}/data")
                    if size is not None:
                        sizes[digest] = size
        return sizes

    def repositories(self) -> list[str]:
        """The names of all repositories, in order."""
        found: list[str] = []
        waiting = [""]
        while waiting:
            name = waiting.pop()
            for entry in self._directories(f"{self._repositories}/{name}" if name else self._repositories):
                inner = f"{name}/{entry.name}" if name else entry.name
                if name and entry.name in _PARTS:
                    if found[-1:] != [name]:
                        found.append(name)
                elif is_repository(inner):
                    waiting.append(inner)
                else:
                    self._report(entry.path, "its name is no repository's")
        return sorted(found)

    def tags(self, repository: str) -> dict[str, str]:
        """The digest that each tag names."""
        found: dict[str, str] = {}
        for entry in self._directories(f"{self._repositories}/{repository}/_manifests/tags"):
            if not is_tag(entry.name):
                self._report(entry.path, "its name is no tag's")
                continue
            digest = self._link(f"{entry.path}/current/link")
            if digest:
                found[entry.name] = digest
        return found

    def revisions(self, repository: str) -> set[str]:
        """The digests of the manifests that the repository serves."""
        return self._links(f"{self._repositories}/{repository}/_manifests/revisions")

    def layers(self, repository: str) -> set[str]:
        """The digests of the blobs that the repository serves: layers and configs."""
        return self._links(f"{self._repositories}/{repository}/_layers")

    def uploads(self, repository: str) -> list[Upload]:
        """What is on its way in, or was when distribution was stopped."""
        entries = self._directories(f"{self._repositories}/{repository}/_uploads")
        return [Upload(repository, entry.name, self._size(f"{entry.path}/data") or 0) for entry in entries]

    def read_blob(self, digest: str, limit: int) -> bytes | None:
        """A blob's bytes; None when it is not there, can't be read or is longer than ``limit``."""
        content = self._read(self.blob_path(digest), limit + 1)
        return content if content is not None and len(content) <= limit else None

    def _below(self, name: str) -> str:
        path = os.path.join(self.root, "docker/registry/v2", name)
        if os.path.realpath(path) != path:
            raise StorageError(f"{path} is, or is below, a symbolic link. Link or mount the whole of {self.root} instead.")
        return path

    def _links(self, path: str) -> set[str]:
        """The digests below ``path`` that have a link."""
        found: set[str] = set()
        for algorithm in self._directories(path):
            for entry in self._directories(algorithm.path):
                digest = f"{algorithm.name}:{entry.name}"
                if not is_digest(digest):
                    self._report(entry.path, "its name is no digest's")
                elif self._size(f"{entry.path}/link"):
                    found.add(digest)
        return found

    def _link(self, path: str) -> str:
        content = self._read(path, _MAX_LINK_BYTES)
        if content is None:
            return ""
        digest = content.decode("ascii", "replace").strip()
        if not is_digest(digest):
            self._report(path, "a link that holds no digest")
            return ""
        return digest

    def _directories(self, path: str) -> list[os.DirEntry[str]]:
        """The directories in a directory that holds nothing else; anything else is reported."""
        directories: list[os.DirEntry[str]] = []
        try:
            with os.scandir(path) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        directories.append(entry)
                    else:
                        self._report(entry.path, _NOT_FOLLOWED if entry.is_symlink() else "a file that distribution does not put there")
        except FileNotFoundError:
            pass
        except OSError as error:
            self._report(path, error.strerror or str(error))
        return directories

    def _size(self, path: str) -> int | None:
        try:
            status = os.lstat(path)
        except FileNotFoundError:
            return None
        except OSError as error:
            self._report(path, error.strerror or str(error))
            return None
        if not stat.S_ISREG(status.st_mode):
            self._report(path, _NOT_FOLLOWED if stat.S_ISLNK(status.st_mode) else "no file")
            return None
        return status.st_size

    def _read(self, path: str, limit: int) -> bytes | None:
        if self._size(path) is None:
            return None
        try:
            # What is there now may be another thing: a link is not followed, a pipe not waited for.
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            with os.fdopen(descriptor, "rb") as file:
                return file.read(limit)
        except FileNotFoundError:
            return None
        except OSError as error:
            self._report(path, error.strerror or str(error))
            return None

    def _report(self, path: str, why: str) -> None:
        # A name on disk need not be UTF-8, an answer must.
        shown = os.path.relpath(path, self.root).encode("utf-8", "surrogateescape").decode("utf-8", "replace")
        self.problems.append(Problem(shown, why))
