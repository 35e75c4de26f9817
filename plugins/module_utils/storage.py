# Copyright (c) 2026, mirrorfleet contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0
"""The store: what distribution's filesystem driver writes below its rootdirectory, the same in 2.8 and 3.x.

Layout: registry/storage/paths.go in github.com/distribution/distribution.
"""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass
from typing import NamedTuple

from ansible_collections.mirrorfleet.registry.plugins.module_utils.errors import RegistryFleetError
from ansible_collections.mirrorfleet.registry.plugins.module_utils.image_reference import is_digest, is_repository, is_tag

_MAX_LINK_BYTES = 256
PARTS = ("_manifests", "_layers", "_uploads")
_NOT_FOLLOWED = "a symbolic link, which distribution never makes; not followed"


class StorageError(RegistryFleetError):
    """The store as a whole can't be read."""


@dataclass(frozen=True)
class Problem:
    """Something in the store that is not as distribution leaves it; ``path`` is below the rootdirectory. unreadable: what is in it is not known."""

    path: str
    why: str
    unreadable: bool = False


@dataclass(frozen=True)
class Upload:
    """A blob on its way into the store; ``bytes`` have come, the last of them at ``written`` (seconds since 1970)."""

    repository: str
    id: str
    bytes: int
    written: float


class Held(NamedTuple):
    """A file of the store: its bytes, what it takes of the disk, and when it was last written and read (seconds since 1970).

    How exact ``read`` is, the mount decides: see Store.reads_are_noted. ``inode`` tells it from one that comes in its place.
    """

    bytes: int
    disk_bytes: int
    written: float
    read: float
    inode: int


class Link(NamedTuple):
    """A link file: the digest it holds, and when it was written and read."""

    digest: str
    written: float
    read: float


def open_unnoticed(path: str, flags: int = 0) -> int:
    """Open a file for reading. That it is read is noted nowhere where we may ask for that: a look at an image is no use of it.

    A symbolic link is not followed, a pipe not waited for.
    """
    flags |= os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        return os.open(path, flags | os.O_NOATIME)
    except OSError as error:
        if error.errno != errno.EPERM:
            raise
        return os.open(path, flags)


class Store:
    """Reads a store that may be written to meanwhile: what vanishes is not there, what is odd goes to ``problems``.

    Symbolic links below ``root`` are not followed, ``root`` may be one. Raises StorageError, and only when it is opened.
    """

    def __init__(self, root: str) -> None:
        # As it was given, for what is told.
        self.path = root
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

    @property
    def v2(self) -> str:
        """The directory that blobs and repositories are in."""
        return os.path.dirname(self._blobs)

    @property
    def reads_are_noted(self) -> bool:
        """Whether the file system notes when a file is read; with relatime, which is usual, to a day."""
        return not os.statvfs(self.root).f_flag & os.ST_NOATIME

    def repository_path(self, repository: str) -> str:
        return f"{self._repositories}/{repository}"

    def tag_path(self, repository: str, tag: str) -> str:
        """The directory of a tag, which holds ``current/link`` and ``index/<algorithm>/<hex>/link``."""
        return f"{self._repositories}/{repository}/_manifests/tags/{tag}"

    def revision_path(self, repository: str, digest: str) -> str:
        """The directory of a repository's link to a manifest."""
        return f"{self._repositories}/{repository}/_manifests/revisions/{digest.replace(':', '/')}"

    def layer_path(self, repository: str, digest: str) -> str:
        """The directory of a repository's link to a blob."""
        return f"{self._repositories}/{repository}/_layers/{digest.replace(':', '/')}"

    def upload_path(self, upload: Upload) -> str:
        """The directory of an upload."""
        return f"{self._repositories}/{upload.repository}/_uploads/{upload.id}"

    def blobs(self) -> dict[str, int]:
        """All blobs, manifests and configs included, with their sizes in bytes."""
        return {digest: held.bytes for digest, held in self.blob_files().items()}

    def blob_files(self) -> dict[str, Held]:
        """All blobs, manifests and configs included, with what the file system knows of each."""
        files: dict[str, Held] = {}
        for algorithm in self._directories(self._blobs):
            for shard in self._directories(algorithm.path):
                for entry in self._directories(shard.path):
                    digest = f"{algorithm.name}:{entry.name}"
                    if not is_digest(digest) or entry.name[:2] != shard.name:
                        self._report(entry.path, "its name is no digest's")
                        continue
                    held = self.held(f"{entry.path}/data")
                    if held is not None:
                        files[digest] = held
        return files

    def repositories(self) -> list[str]:
        """The names of all repositories, in order."""
        found: list[str] = []
        waiting = [""]
        while waiting:
            name = waiting.pop()
            for entry in self._directories(f"{self._repositories}/{name}" if name else self._repositories):
                inner = f"{name}/{entry.name}" if name else entry.name
                if name and entry.name in PARTS:
                    if found[-1:] != [name]:
                        found.append(name)
                elif is_repository(inner):
                    waiting.append(inner)
                else:
                    self._report(entry.path, "its name is no repository's")
        return sorted(found)

    def tags(self, repository: str) -> dict[str, str]:
        """The digest that each tag names."""
        return {tag: link.digest for tag, link in self.tag_links(repository).items()}

    def tag_links(self, repository: str, broken: bool = False) -> dict[str, Link]:
        """What each tag names, and since when: distribution in proxy mode writes the link anew at each pull by the tag.

        With ``broken`` tags are among them whose link holds no digest.
        """
        found: dict[str, Link] = {}
        for entry in self._directories(f"{self._repositories}/{repository}/_manifests/tags"):
            if not is_tag(entry.name):
                self._report(entry.path, "its name is no tag's")
                continue
            path = f"{entry.path}/current/link"
            held, digest = self.held(path), self._link(path)
            if held and (digest or broken):
                found[entry.name] = Link(digest, held.written, held.read)
        return found

    def revisions(self, repository: str) -> set[str]:
        """The digests of the manifests that the repository serves."""
        return set(self.revision_links(repository))

    def revision_links(self, repository: str) -> dict[str, Link]:
        """The manifests that the repository serves, and when each link was written, and read for a pull."""
        return self._links(f"{self._repositories}/{repository}/_manifests/revisions")

    def layers(self, repository: str) -> set[str]:
        """The digests of the blobs that the repository serves: layers and configs."""
        return set(self._links(f"{self._repositories}/{repository}/_layers"))

    def written_links(self, repository: str) -> dict[str, Link]:
        """Every link of a repository to a blob or manifest by its directory, with what it really holds: no digest, if it is broken."""
        found: dict[str, Link] = {}
        for part in ("_layers", "_manifests/revisions"):
            for algorithm in self._directories(f"{self._repositories}/{repository}/{part}"):
                for entry in self._directories(algorithm.path):
                    held = self.held(f"{entry.path}/link")
                    if held is not None and is_digest(f"{algorithm.name}:{entry.name}"):
                        found[entry.path] = Link(self._link(f"{entry.path}/link"), held.written, held.read)
        return found

    def uploads(self, repository: str) -> list[Upload]:
        """What is on its way in, or was when distribution was stopped."""
        entries = self._directories(f"{self._repositories}/{repository}/_uploads")
        return [Upload(repository, entry.name, *self._upload(entry.path)) for entry in entries]

    def _upload(self, path: str) -> tuple[int, float]:
        """The bytes that have come, and when the last did; before the first one, when the upload began."""
        data = self.held(f"{path}/data")
        begun = data or self.held(f"{path}/startedat")
        return data.bytes if data else 0, begun.written if begun else 0.0

    def read_blob(self, digest: str, limit: int) -> bytes | None:
        """A blob's bytes; None when it is not there, can't be read or is longer than ``limit``."""
        content = self._read(self.blob_path(digest), limit + 1)
        return content if content is not None and len(content) <= limit else None

    def tag_index(self, repository: str, tag: str) -> list[str]:
        """The links to what a tag names and has named."""
        index = f"{self.tag_path(repository, tag)}/index"
        return [f"{entry.path}/link" for algorithm in self._directories(index) for entry in self._directories(algorithm.path)]

    def _below(self, name: str) -> str:
        path = os.path.join(self.root, "docker/registry/v2", name)
        if os.path.realpath(path) != path:
            raise StorageError(f"{path} is, or is below, a symbolic link. Link or mount the whole of {self.root} instead.")
        return path

    def _links(self, path: str) -> dict[str, Link]:
        """The digests below ``path`` that have a link."""
        found: dict[str, Link] = {}
        for algorithm in self._directories(path):
            for entry in self._directories(algorithm.path):
                digest = f"{algorithm.name}:{entry.name}"
                if not is_digest(digest):
                    self._report(entry.path, "its name is no digest's")
                    continue
                held = self.held(f"{entry.path}/link")
                if held and held.bytes:
                    found[digest] = Link(digest, held.written, held.read)
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
        if os.path.realpath(path) != path:
            self._report(path, _NOT_FOLLOWED)
            return directories
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
            self._report(path, error.strerror or str(error), unreadable=True)
        return directories

    def held(self, path: str) -> Held | None:
        """What the file system knows of a file; None when there is none."""
        try:
            status = os.lstat(path)
        except FileNotFoundError:
            return None
        except OSError as error:
            self._report(path, error.strerror or str(error), unreadable=True)
            return None
        if not stat.S_ISREG(status.st_mode):
            self._report(path, _NOT_FOLLOWED if stat.S_ISLNK(status.st_mode) else "no file")
            return None
        return Held(status.st_size, status.st_blocks * 512, status.st_mtime, status.st_atime, status.st_ino)

    def _read(self, path: str, limit: int) -> bytes | None:
        if self.held(path) is None:
            return None
        try:
            descriptor = open_unnoticed(path)
            with os.fdopen(descriptor, "rb") as file:
                return file.read(limit)
        except FileNotFoundError:
            return None
        except OSError as error:
            self._report(path, error.strerror or str(error), unreadable=True)
            return None

    def old_problems(self, before: float) -> list[Problem]:
        """Those of ``problems`` that were there then (seconds since 1970), each once: a link that is being written is empty for a moment."""
        found: dict[Problem, None] = {}
        for problem in self.problems:
            try:
                if problem.unreadable or os.lstat(os.path.join(self.root, problem.path)).st_mtime < before:
                    found[problem] = None
            except FileNotFoundError:
                continue
            except OSError:
                found[problem] = None
        return list(found)

    def _report(self, path: str, why: str, unreadable: bool = False) -> None:
        # A name on disk need not be UTF-8, an answer must.
        shown = os.path.relpath(path, self.root).encode("utf-8", "surrogateescape").decode("utf-8", "replace")
        self.problems.append(Problem(shown, why, unreadable))
