# Copyright (c) 2026, mirrorfleet contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0
"""Files as a whole: seen, replaced at once, put aside, brought back, compared."""

from __future__ import annotations

import contextlib
import glob
import grp
import os
import pwd
import stat
import time
from typing import Iterator, NamedTuple

from ansible_collections.mirrorfleet.registry.plugins.module_utils.errors import RegistryFleetError

SECRET = "(the content is secret)\n"


class Attributes(NamedTuple):
    """Owner, group and mode. None stands for a user or group that is yet to be created, which only check mode allows."""

    uid: int | None
    gid: int | None
    mode: int


# What a directory gets that is made because something is to be below it.
COMMON = Attributes(0, 0, 0o755)


class Seen(NamedTuple):
    """What is at a path. `content` is None for what is no regular file: a link, a socket."""

    content: bytes | None
    attributes: Attributes


def user_id(name: str) -> int | None:
    """The id of a user given by name or number; None when the host does not know the name."""
    try:
        return int(name) if name.isdigit() else pwd.getpwnam(name).pw_uid
    except KeyError:
        return None


def primary_group(name: str) -> int | None:
    """The group that a user logs in with; None when the host does not know the user."""
    try:
        return (pwd.getpwuid(int(name)) if name.isdigit() else pwd.getpwnam(name)).pw_gid
    except KeyError:
        return None


def group_id(name: str) -> int | None:
    """The id of a group given by name or number; None when the host does not know the name."""
    try:
        return int(name) if name.isdigit() else grp.getgrnam(name).gr_gid
    except KeyError:
        return None


def look(path: str) -> Seen | None:
    """What is at `path`, links not followed; None when nothing is. Raises RegistryFleetError for a directory."""
    try:
        status = os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    if stat.S_ISDIR(status.st_mode):
        raise RegistryFleetError(f"{path} is a directory, and a file is to be written there: move the directory away.")
    content = None
    if stat.S_ISREG(status.st_mode):
        with open(path, "rb") as stream:
            content = stream.read()
    return Seen(content, _attributes(status))


def content(path: str) -> bytes | None:
    """The content of a regular file; None where there is none."""
    seen = look(path)
    return None if seen is None else seen.content


def directory_attributes(path: str) -> Attributes | None:
    """Owner, group and mode of a directory, links followed; None where there is none."""
    try:
        status = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return _attributes(status) if stat.S_ISDIR(status.st_mode) else None


def _attributes(status: os.stat_result) -> Attributes:
    return Attributes(status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode))


def set_attributes(path: str, attributes: Attributes) -> None:
    """Give a path its owner, group and mode; the mode last, as a change of owner clears some bits."""
    uid, gid, mode = attributes
    os.chown(path, -1 if uid is None else uid, -1 if gid is None else gid)
    os.chmod(path, mode)


def make_directory(path: str, attributes: Attributes = COMMON) -> None:
    """Make a directory whose parent is there; one that is there is left as it is."""
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        return
    set_attributes(path, attributes)


def remove_directory(path: str) -> bool:
    """Remove a directory if it is empty; whether it is gone."""
    try:
        os.rmdir(path)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def temporary(path: str) -> str:
    """The name under which the next content of `path` is written. It is fixed, so what a killed run left is found again."""
    return os.path.join(os.path.dirname(path), f".{os.path.basename(path)}.mirrorfleet-new")


def sync_directory(path: str) -> None:
    """Make renames and removals in the directory of `path` survive a power cut."""
    directory = os.open(os.path.dirname(path) or ".", os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def discard(path: str) -> None:
    """Remove the file at `path`, if there is one."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        os.unlink(path)


def write(path: str, content: bytes, uid: int = 0, gid: int = 0, mode: int = 0o644) -> None:
    """Replace `path` at once: a reader sees the old file or the new one, also after a crash.

    The owner and the mode are set before the first byte, so a secret is never readable by others.
    """
    new = temporary(path)
    discard(new)
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    try:
        with open(descriptor, "wb") as stream:
            os.fchown(descriptor, uid, gid)
            os.fchmod(descriptor, mode)
            stream.write(content)
            stream.flush()
            os.fsync(descriptor)
        os.rename(new, path)
    except BaseException:
        discard(new)
        raise
    sync_directory(path)


def put_aside(path: str) -> str:
    """Keep what is at `path` beside it, under a second name (a hard link: owner, mode and content stay), and return that name.

    What a killed run has already put aside is not put aside again.
    """
    for backup in glob.glob(f"{glob.escape(path)}.*.mirrorfleet~"):
        if _same(path, backup):
            return backup
    backup = f"{path}.{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}.mirrorfleet~"
    os.link(path, backup, follow_symlinks=False)
    sync_directory(path)
    return backup


def bring_back(path: str, backup: str) -> None:
    """Make `path` again what was put aside. `backup` stays, so that this can be repeated after a crash; discard it afterwards."""
    if not os.path.lexists(backup) or _same(path, backup):
        return
    new = temporary(path)
    discard(new)
    os.link(backup, new, follow_symlinks=False)
    os.rename(new, path)
    sync_directory(path)


def _same(one: str, other: str) -> bool:
    try:
        return os.path.samestat(os.lstat(one), os.lstat(other))
    except FileNotFoundError:
        return False


def ancestors(path: str) -> Iterator[str]:
    """The directories above `path`, the nearest first, without the root."""
    parent = os.path.dirname(path)
    while parent not in ("", "/"):
        yield parent
        parent = os.path.dirname(parent)


def difference(path: str, before: bytes | None, after: bytes | None, secret: bool = False) -> dict[str, str]:
    """One entry of a module's `diff`. None stands for no file; of a secret file it only says that it differs."""
    if secret:
        old = "" if before is None else SECRET
        new = "" if after is None else SECRET if before is None else "(the content is secret, and differs)\n"
    else:
        old, new = ((value or b"").decode("utf-8", "replace") for value in (before, after))
    return {"before_header": path, "after_header": path, "before": old, "after": new}


def describe(attributes: Attributes) -> str:
    """Owner, group and mode in one line, for a diff."""
    owner = group = "(to be created)"
    if attributes.uid is not None:
        try:
            owner = pwd.getpwuid(attributes.uid).pw_name
        except KeyError:
            owner = str(attributes.uid)
    if attributes.gid is not None:
        try:
            group = grp.getgrgid(attributes.gid).gr_name
        except KeyError:
            group = str(attributes.gid)
    return f"owner {owner}, group {group}, mode {attributes.mode:04o}\n"
