# Copyright (c) 2026, mirrorfleet contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0
"""Directories of a store are set aside before they are removed, so that whoever used them at that moment gets them back.

A rename is one step: who comes later finds nothing and writes anew, who had the file open has left a trace in its times. Setting
aside, waiting, and looking at the times is therefore enough to remove something from a registry that is being written to.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from dataclasses import dataclass

from ansible_collections.mirrorfleet.registry.plugins.module_utils.storage import Held, StorageError, Store
from ansible_collections.mirrorfleet.registry.plugins.module_utils.store_state import DIRECTORY

_ASIDE = "aside"
# A symbolic link beside what is aside holds where it was, below the store's directory.
_ORIGIN = ".was"
# On a disk that is full there is not even room for such links. This file gives its own, which is enough for a thousand.
_BALLAST = "ballast"
_BALLAST_BYTES = 4 * 1024 * 1024


@dataclass(frozen=True)
class Taken:
    """A directory that was set aside. `file` is the one in it whose times tell; `reads`: whether a reading is a use."""

    path: str
    aside: str
    file: str
    seen: Held
    reads: bool


class Aside:
    """What was set aside from one store. The caller holds the store's lock."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._root = os.path.join(store.root, DIRECTORY, _ASIDE)
        self._ballast = os.path.join(store.root, DIRECTORY, _BALLAST)
        self.taken: list[Taken] = []

    def recover(self) -> int:
        """Put back what a run that was killed has left; how many directories."""
        found = 0
        for entry in self._left():
            link = f"{entry}{_ORIGIN}"
            if os.path.isdir(entry) and os.path.islink(link):
                self._return(os.path.join(self._store.root, os.readlink(link)), entry)
                found += 1
        shutil.rmtree(self._root, ignore_errors=True)
        return found

    def keep_ballast(self) -> None:
        """Take the room that a run needs on a full disk, while there is plenty."""
        with contextlib.suppress(OSError):
            disk = os.statvfs(self._store.root)
            if os.path.lexists(self._ballast) or disk.f_bavail * disk.f_frsize < 10 * _BALLAST_BYTES:
                return
            descriptor = os.open(self._ballast, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                os.posix_fallocate(descriptor, 0, _BALLAST_BYTES)
            finally:
                os.close(descriptor)

    def take(self, path: str, file: str, seen: Held, reads: bool) -> bool:
        """Set a directory aside; False where the disk has no room to note where it belongs. One that has gone meanwhile needs nothing more."""
        try:
            self._take(path, file, seen, reads)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise StorageError(f"{path} can't be set aside: {error.strerror}.") from None
            try:
                os.unlink(self._ballast)
            except OSError:
                return False
            return self.take(path, file, seen, reads)
        return True

    def _take(self, path: str, file: str, seen: Held, reads: bool) -> None:
        aside = os.path.join(self._root, str(len(self.taken)))
        try:
            os.makedirs(self._root, exist_ok=True)
            # Where it belongs is written down first, in one step.
            os.symlink(os.path.relpath(path, self._store.root), f"{aside}{_ORIGIN}")
            os.rename(path, aside)
        except FileNotFoundError:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(f"{aside}{_ORIGIN}")
            return
        self.taken.append(Taken(path, aside, file, seen, reads))

    def is_used(self, taken: Taken) -> bool:
        """Whether somebody wrote it, or read it where that counts, since it was seen; or has made it anew."""
        now = self._store.held(os.path.join(taken.aside, taken.file))
        same = now is not None and (now.inode, now.bytes, now.written) == (taken.seen.inode, taken.seen.bytes, taken.seen.written)
        return os.path.lexists(taken.path) or not same or (taken.reads and now is not None and now.read != taken.seen.read)

    def put_back(self, taken: Taken) -> None:
        """Where it was."""
        self._return(taken.path, taken.aside)

    def forget(self) -> None:
        """Remove all that is still aside."""
        self.taken.clear()
        shutil.rmtree(self._root, ignore_errors=True)

    def _left(self) -> list[str]:
        try:
            return [os.path.join(self._root, name) for name in sorted(os.listdir(self._root)) if name.isdigit()]
        except FileNotFoundError:
            return []

    def _return(self, path: str, aside: str) -> None:
        """What was made anew meanwhile is newer, and stays."""
        os.makedirs(os.path.dirname(path), exist_ok=True)
        try:
            os.rename(aside, path)
        except OSError as error:
            if not os.path.lexists(path):
                raise StorageError(f"{aside} can't be put back: {error.strerror}. Move it to {path}.") from None
            shutil.rmtree(aside, ignore_errors=True)
