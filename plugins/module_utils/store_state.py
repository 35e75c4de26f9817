# Copyright (c) 2026, mirrorfleet contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0
"""What there is of a store besides distribution's files: who may change it now, and what earlier runs have left to know.

The lock is flock(2) on the store's directory, so there is nothing to make where the disk is full and nothing to clean up
after a kill. All else is in the directory .mirrorfleet below it, and a store without it is a store that nobody has changed.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import os
import time
from typing import Any, Iterator

from ansible_collections.mirrorfleet.registry.plugins.module_utils.errors import RegistryFleetError
from ansible_collections.mirrorfleet.registry.plugins.module_utils.host_program import replace
from ansible_collections.mirrorfleet.registry.plugins.module_utils.times import utc

DIRECTORY = ".mirrorfleet"
DRAINED = "drained"
_HOLDER = "holder.json"
_WAIT_SECONDS = 0.1
# Who changes a store for long lets others have it in between, each time for so long that one who waits notices.
_TURN_SECONDS, _GAP_SECONDS = 5.0, 2 * _WAIT_SECONDS
_MAX_STATE_BYTES = 1024 * 1024


class LockedError(RegistryFleetError):
    """Somebody else changes the store."""


@contextlib.contextmanager
def as_owner(root: str) -> Iterator[None]:
    """What root does in a store, it does as the store's owner: whatever is put there can't lead it to other files.

    Who is not root stays who he is.
    """
    status = os.stat(root)
    if os.geteuid() != 0 or status.st_uid == 0:
        yield
        return
    groups, gid = os.getgroups(), os.getegid()
    os.setgroups([])
    os.setegid(status.st_gid)
    os.seteuid(status.st_uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(gid)
        os.setgroups(groups)


class Lock:
    """A store's lock while somebody has it. ``directory`` is a descriptor of the store's directory."""

    def __init__(self, directory: int, root: str, who: str) -> None:
        self._directory, self._root, self._who = directory, root, who

    def take(self, timeout: float) -> None:
        """Raises LockedError, which names the one that has it, after ``timeout`` seconds."""
        end = time.monotonic() + timeout
        while not self._is_free():
            if time.monotonic() >= end:
                raise LockedError(
                    f"{self._root}: {_holder(self._root)} changes this store, and has not been done within {timeout:g} seconds. Try again when it is, or "
                    "wait longer where there is a lock_timeout."
                )
            time.sleep(_WAIT_SECONDS)
        self._since = time.monotonic()
        save(self._root, _HOLDER, {"who": self._who, "pid": os.getpid(), "since": time.time()})

    def give_way(self) -> None:
        """Now and then, let those who wait have it first. What was read of the store before may have gone afterwards."""
        if time.monotonic() - self._since < _TURN_SECONDS:
            return
        fcntl.flock(self._directory, fcntl.LOCK_UN)
        time.sleep(_GAP_SECONDS)
        self.take(math.inf)

    def _is_free(self) -> bool:
        try:
            fcntl.flock(self._directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


@contextlib.contextmanager
def locked(root: str, who: str, timeout: float) -> Iterator[Lock]:
    """Be the only one that changes the store. Raises LockedError, which names the one that does, after ``timeout`` seconds."""
    directory = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        lock = Lock(directory, root, who)
        lock.take(timeout)
        yield lock
    finally:
        os.close(directory)


def _holder(root: str) -> str:
    holder = load(root, _HOLDER)
    try:
        return f"{holder['who']} (process {holder['pid']}, since {utc(holder['since'])})"
    except (KeyError, TypeError, ValueError, OverflowError):
        return "another process"


def is_drained(root: str) -> bool:
    """Whether the guard has taken the cache out of service: the edge then sends docker hosts and siblings elsewhere."""
    return os.path.lexists(os.path.join(root, DIRECTORY, DRAINED))


def load(root: str, name: str) -> dict[str, Any]:
    """What was saved; nothing where that can't be read."""
    try:
        descriptor = os.open(os.path.join(root, DIRECTORY, name), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            state = json.loads(file.read(_MAX_STATE_BYTES))
    except (OSError, ValueError, RecursionError):
        return {}
    return state if isinstance(state, dict) else {}


def save(root: str, name: str, state: dict[str, Any]) -> str:
    """Replace what was saved, at once; why it could not be, or nothing. A full disk keeps nobody from making room on it."""
    directory = os.path.join(root, DIRECTORY)
    try:
        with contextlib.suppress(FileExistsError):
            # The edge may see whether the cache is out of service.
            os.mkdir(directory, 0o711)
        replace(os.path.join(directory, name), json.dumps(state), durable=True)
    except OSError as error:
        return f"{directory}/{name} can't be written: {error.strerror}"
    return ""
