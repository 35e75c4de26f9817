# Copyright (c) 2026, mirrorfleet contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0
"""Files of a store are removed while distribution and the edge use it.

Why nobody gets a wrong byte, in whatever order and wherever it is cut off: a file goes by unlink(2), and who has it open
reads it to its end. What finds no file asks on: the edge asks distribution, and distribution its upstream, for a blob without
its data as for one without its link (linkedblobstore.go: Stat; proxyblobstore.go: serveLocal). Only a file that is there and
wrong would be served, so none is ever written to, truncated or renamed.
"""

from __future__ import annotations

import fcntl
import os
import signal

from ansible_collections.mirrorfleet.registry.plugins.module_utils.storage import PARTS, Held, StorageError, Store, Upload, open_unnoticed


def remove_data(store: Store, digest: str, seen: Held | None) -> bool:
    """Remove a blob's bytes, if they are still those that were seen; whether they were."""
    path = store.blob_path(digest)
    held = store.held(path)
    if held is not None and (seen is None or held.inode != seen.inode):
        return False
    return _remove(store, path)


def remove_link(store: Store, directory: str) -> bool:
    """Remove the link in a directory, and the directory; whether there was one."""
    return _remove(store, f"{directory}/link")


def remove_tag(store: Store, repository: str, tag: str) -> None:
    """Remove a tag. What makes it one goes last, so that a run that was killed here is finished by the next one."""
    directory = store.tag_path(repository, tag)
    for link in store.tag_index(repository, tag):
        _remove(store, link)
        remove_empty(os.path.dirname(os.path.dirname(link)))
    remove_empty(f"{directory}/index")
    _remove(store, f"{directory}/current/link")
    remove_empty(directory)


def remove_upload(store: Store, upload: Upload) -> None:
    """Remove an upload and the state of its hashing, as distribution writes them (paths.go: uploadDataPathSpec)."""
    directory = store.upload_path(upload)
    for inner, _directories, names in os.walk(directory, topdown=False):
        for name in names:
            _remove(store, f"{inner}/{name}")
        remove_empty(inner)


def remove_repository(store: Store, repository: str) -> None:
    """Remove the directories of a repository that hold nothing, and if nothing is left, those above that held nothing else."""
    for part in PARTS:
        # Symbolic links are not followed.
        for directory, _directories, _files in os.walk(f"{store.repository_path(repository)}/{part}", topdown=False):
            remove_empty(directory)
    while repository and remove_empty(store.repository_path(repository)):
        repository = os.path.dirname(repository)


def remove_empty(directory: str) -> bool:
    """Remove a directory unless it holds something; whether it is gone.

    A fill that is about to write there fails at this: its pull goes on, and the next one stores it.
    """
    try:
        os.rmdir(directory)
    except OSError:
        return not os.path.lexists(directory)
    return True


def is_open(path: str) -> bool:
    """Whether any process has the file open, also in a container; False where the file system can't tell.

    A write lease is given only for a file that nobody else has open (fcntl(2), "Leases"). It is given back at once.
    """
    # Who opens the file just now makes the kernel tell us by this signal, which would end us.
    before = signal.signal(signal.SIGIO, signal.SIG_IGN)
    try:
        descriptor = open_unnoticed(path)
        try:
            fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
    except OSError:
        return False
    finally:
        signal.signal(signal.SIGIO, before)
    return False


def _remove(store: Store, path: str) -> bool:
    """Remove a regular file that no symbolic link led to, and its directory if nothing else is in it."""
    directory = os.path.dirname(path)
    if os.path.realpath(directory) != directory:
        return False
    is_there = store.held(path) is not None
    try:
        if is_there:
            os.unlink(path)
    except FileNotFoundError:
        is_there = False
    except OSError as error:
        raise StorageError(f"{path} can't be removed: {error.strerror}. Run as the store's owner, or as root (become: true).") from None
    # Also where a run was killed before it came to this.
    remove_empty(directory)
    return is_there
