# Copyright (c) 2026, mirrorfleet contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0
"""Brings back what a registry had from its backup, while it serves and is pushed to: all of it, a repository, or one image by its tag.

Nothing is overwritten but a blob that is damaged, and a tag where that is asked for. Blobs come first, each verified on its way to a
place of its own and then put in place by renaming; then links in the order of the backup, which is from the bottom up. So a run that
is killed anywhere leaves no tag that is not whole, and the next one goes on. registry_backup.py says how a backup is made.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import tarfile
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from typing import IO, Iterable, Iterator, Sequence

from ansible_collections.mirrorfleet.registry.plugins.module_utils.errors import RegistryFleetError
from ansible_collections.mirrorfleet.registry.plugins.module_utils.image_reference import is_digest, is_repository, is_tag
from ansible_collections.mirrorfleet.registry.plugins.module_utils.promotion import history_tag
from ansible_collections.mirrorfleet.registry.plugins.module_utils.registry_backup import LINKS, LIST, Line, Settings, State, parse_line, repository_of
from ansible_collections.mirrorfleet.registry.plugins.module_utils.restic import Restic, ResticError, Secrets, Snapshot
from ansible_collections.mirrorfleet.registry.plugins.module_utils.retention import subject
from ansible_collections.mirrorfleet.registry.plugins.module_utils.storage import Store, open_unnoticed
from ansible_collections.mirrorfleet.registry.plugins.module_utils.store_state import DIRECTORY, as_owner, locked
from ansible_collections.mirrorfleet.registry.plugins.module_utils.times import utc

_COMING = "restore"
_CHUNK_BYTES = 1024 * 1024
# A link takes a block of the disk, and so do its directory and a new one's parent.
_LINK_BYTES = 12288
# To ask for one blob takes as long as reading so many bytes of a stream of all of them.
_ASKING_BYTES = 50 * 1024 * 1024
_DATE = re.compile(r"(\d{4}-\d\d-\d\d)(?:[T ](\d\d:\d\d(?::\d\d)?)Z?)?")
_SNAPSHOT = re.compile(r"[0-9a-f]{8,64}")
LATEST = "latest"


@dataclass(frozen=True)
class Wanted:
    """What is to come back: a repository, one tag of it, or with neither all there is. force: whether a tag that leads elsewhere is moved."""

    snapshot: str = LATEST
    repository: str = ""
    tag: str = ""
    force: bool = False

    @property
    def name(self) -> str:
        return f"{self.repository}:{self.tag}" if self.tag else self.repository or "the whole registry"


def parse_wanted(snapshot: str, repository: str, tag: str, force: bool) -> Wanted:
    """Raises RegistryFleetError. tag: PATH:TAG."""
    if repository and tag:
        raise RegistryFleetError("restore_repository and restore_tag: write one of them, or neither for the whole registry.")
    path, colon, name = tag.rpartition(":")
    if tag and (not colon or not is_repository(path) or not is_tag(name)):
        raise RegistryFleetError(f"restore_tag: {tag!r} is no tag of a repository. Write PATH:TAG, like svc/app:2.7.0.")
    if repository and not is_repository(repository):
        raise RegistryFleetError(f"restore_repository: {repository!r} is no repository. Write its path, like svc/app.")
    if snapshot != LATEST and not _SNAPSHOT.fullmatch(snapshot) and _date(snapshot) is None:
        raise RegistryFleetError(
            f"restore_snapshot: {snapshot!r}: write {LATEST}, a backup's ID (8 hexadecimal digits), or a time in UTC, like 2026-05-20 or 2026-05-20T10:30Z."
        )
    return Wanted(snapshot, path or repository, name, force)


def _date(text: str) -> float | None:
    """The last moment that a date, or a time, means."""
    found = _DATE.fullmatch(text)
    if not found:
        return None
    try:
        moment = datetime.fromisoformat(f"{found[1]}T{found[2] or '00:00'}").replace(tzinfo=timezone.utc)
    except ValueError:
        return None
    length = timedelta(days=1) if not found[2] else timedelta(minutes=1) if found[2].count(":") == 1 else timedelta(seconds=1)
    return (moment + length).timestamp()


def choose(snapshots: Sequence[Snapshot], wanted: str, target: str) -> Snapshot:
    """The backup that is meant: of a time, the newest that is no later. Raises RegistryFleetError."""
    if not snapshots:
        raise RegistryFleetError(f"{target} has no backup yet. Run backup.yml where the images are.")
    shown = ", ".join(f"{each.id[:8]} ({utc(each.at)})" for each in snapshots[-5:])
    if wanted == LATEST:
        return snapshots[-1]
    before = _date(wanted)
    # What may be both is a time only if it is written with its dashes, which no ID has.
    found = [each for each in snapshots if (each.at < before if before is not None else each.id.startswith(wanted))]
    if not found:
        what = "no backup is that old" if before is not None else "no backup has this ID"
        raise RegistryFleetError(f"restore_snapshot: {wanted}: {what}. {target} has {len(snapshots)}, the last of which are {shown}.")
    return found[-1]


@dataclass(frozen=True)
class Conflict:
    """A tag that leads to `there`, and in the backup to `wanted`."""

    repository: str
    tag: str
    there: str
    wanted: str

    def move(self) -> dict[str, str]:
        """What it is to move the tag: tag, from, to, and the history tag under which the former digest stays."""
        name = history_tag(self.tag, self.there, datetime.now(timezone.utc))
        return {"tag": f"{self.repository}:{self.tag}", "from": self.there, "to": self.wanted, "history": f"{self.repository}:{name}"}


@dataclass
class Outcome:
    """What was, or in check mode would be, done. blobs, bytes: that came; damaged: the digests of those that took the place of a wrong one.

    links: that were written; tags: those set, by name; moved: tag, from, to and history of those that led elsewhere; verified, verified_bytes: the
    blobs whose digest was computed from what is on the disk now, and is right.
    """

    snapshot: str
    taken: str
    owner: str
    repositories: int = 0
    images: int = 0
    blobs: int = 0
    bytes: int = 0
    damaged: list[str] = field(default_factory=list)
    links: int = 0
    tags: list[str] = field(default_factory=list)
    moved: list[dict[str, str]] = field(default_factory=list)
    verified: int = 0
    verified_bytes: int = 0

    @property
    def changed(self) -> bool:
        return bool(self.blobs or self.links)


def restore(
    settings: Settings, secrets: Secrets, wanted: Wanted, *, source: str = "", lock_timeout: float = 300, check_mode: bool = False,
) -> Outcome:
    """Raises RegistryFleetError; before anything is changed, where that can be known before. source: a repository other than the registry's own."""
    restic = repository_of(settings, secrets, source)
    identity = restic.identify()
    if identity is None:
        raise RegistryFleetError(f"There is no repository at {restic.repository}. Is the disk or share mounted, is restore_from right?")
    snapshots = restic.snapshots()
    snapshot = choose(snapshots, wanted.snapshot, restic.repository)
    lists = dict(_lists(restic, snapshot))
    chosen = _choose_lines(lists, wanted, snapshot)
    # A share may let nobody in but its owner.
    with as_owner(os.path.realpath(settings.storage)) if os.path.isdir(settings.storage) else contextlib.nullcontext():
        store = Store(settings.storage)
    outcome = Outcome(snapshot.id[:8], utc(snapshot.at), snapshot.owner, len(chosen), sum(1 for lines in chosen.values() for line in lines if line.tag))
    run = _Run(restic, snapshot, store, chosen, wanted, outcome)
    with contextlib.ExitStack() as stack:
        with as_owner(store.root):
            if not check_mode:
                stack.enter_context(locked(store.root, "a restore", lock_timeout))
                # What one that was killed may have left, even if nothing but this was left to do.
                run.tidy()
            run.look()
        if check_mode:
            outcome.moved = run.moves()
        elif outcome.changed:
            run.change(sum({line.digest: line.bytes for lines in lists.values() for line in lines}.values()))
    if not check_mode and not source and not wanted.repository:
        # The registry takes the place of the one whose backups these are.
        state = State.of(settings.state)
        if state.repository in ("", identity):
            State(identity, sorted({*state.heritage, *(each.owner for each in snapshots)}), state.turn).keep(settings.state)
    return outcome


def _lists(restic: Restic, snapshot: Snapshot) -> Iterator[tuple[str, list[Line]]]:
    """The links of each repository of a snapshot."""
    root = _path(snapshot, LINKS)
    with restic.dump(snapshot.id, root) as stream, _tar(stream) as archive:
        for member in archive:
            path, _slash, name = f"/{member.name.lstrip('/')}".rpartition("/")
            file = archive.extractfile(member) if member.isreg() and name == LIST else None
            if file is None:
                continue
            repository = path[len(root) + 1:]
            if not is_repository(repository):
                raise RegistryFleetError(f"The backup {snapshot.id[:8]} has a repository whose name is none: {repository[:200]!r}.")
            yield repository, [parse_line(line) for line in file.read().decode("utf-8", "replace").splitlines()]


def _path(snapshot: Snapshot, last: str) -> str:
    """That of the two directories of a snapshot with this name. Raises RegistryFleetError."""
    found = [path for path in snapshot.paths if path.endswith(f"/{last}")]
    if len(snapshot.paths) != 2 or len(found) != 1:
        raise RegistryFleetError(f"The backup {snapshot.id[:8]} is not one of a registry: it is of {', '.join(snapshot.paths)[:300]}. Is restore_from right?")
    return found[0]


@contextlib.contextmanager
def _tar(stream: IO[bytes]) -> Iterator[tarfile.TarFile]:
    with tarfile.open(fileobj=stream, mode="r|", bufsize=_CHUNK_BYTES) as archive:
        yield archive


def _choose_lines(lists: dict[str, list[Line]], wanted: Wanted, snapshot: Snapshot) -> dict[str, list[Line]]:
    """The links that are to come back. Raises RegistryFleetError where the backup has not what is wanted."""
    if not wanted.repository:
        return lists
    if wanted.repository not in lists:
        near = [name for name in sorted(lists) if name.split("/")[-1] == wanted.repository.split("/")[-1]] or sorted(lists)
        raise RegistryFleetError(
            f"The backup {snapshot.id[:8]} of {utc(snapshot.at)} has no repository {wanted.repository}. It has {len(lists)}, like {', '.join(near[:5])}."
        )
    lines = lists[wanted.repository]
    if not wanted.tag:
        return {wanted.repository: lines}
    tags = {line.tag: line.digest for line in lines if line.tag}
    if wanted.tag not in tags:
        raise RegistryFleetError(
            f"The backup {snapshot.id[:8]} of {utc(snapshot.at)} has no {wanted.name}. {wanted.repository} has {len(tags)} tags there, like "
            f"{', '.join(list(tags)[-5:])}."
        )
    return {wanted.repository: _lines_of(lines, tags, wanted.tag)}


def _lines_of(lines: Sequence[Line], tags: dict[str, str], tag: str) -> list[Line]:
    """The links of one image: with all its platforms, and the signatures and attestations that are tags about one of them."""
    needs = {line.digest: line.needs for line in lines if line.is_manifest}
    digests: set[str] = set()
    names = {tag}

    def take(digest: str) -> None:
        if digest not in digests:
            digests.add(digest)
            for each in needs.get(digest, ()):
                take(each)

    take(tags[tag])
    # What is about an image may have something about itself.
    while True:
        companions = {name for name in tags if name not in names and subject(name) in digests}
        if not companions:
            break
        names |= companions
        for name in companions:
            take(tags[name])
    return [line for line in lines if line.digest in digests and (line.tag in names if line.tag else _tag_of_index(line, tags, names))]


def _tag_of_index(line: Line, tags: dict[str, str], names: set[str]) -> bool:
    """Whether a link that is no tag comes with these tags: of what a tag has led to, only what it leads to."""
    parts = line.path.split("/")
    return parts[1] != "tags" or (parts[2] in names and tags[parts[2]] == line.digest)


class _Run:
    def __init__(self, restic: Restic, snapshot: Snapshot, store: Store, lines: dict[str, list[Line]], wanted: Wanted, outcome: Outcome) -> None:
        self._restic, self._snapshot, self._store, self._lines, self._wanted, self._outcome = restic, snapshot, store, lines, wanted, outcome
        self._sizes = {line.digest: line.bytes for each in lines.values() for line in each}
        self._missing: list[str] = []
        # Blobs that are wrong in the backup; and these with all that needs them.
        self._wrong: list[str] = []
        self._bad: set[str] = set()
        self._conflicts: list[Conflict] = []
        self._coming = os.path.join(store.root, DIRECTORY, _COMING)

    def look(self) -> None:
        """Find out all that there is to do. Raises RegistryFleetError where it can't, or must not, be done."""
        outcome = self._outcome
        for digest, size in self._sizes.items():
            kind = self._what_is_there(digest, size)
            if kind != "right":
                self._missing.append(digest)
                outcome.bytes += size
            if kind == "wrong":
                outcome.damaged.append(digest)
        outcome.blobs = len(self._missing)
        outcome.verified = len(self._sizes) - len(self._missing)
        outcome.verified_bytes = sum(self._sizes.values()) - outcome.bytes
        for repository, lines in self._lines.items():
            for line in lines:
                there = self._read_link(repository, line)
                if there == line.digest:
                    continue
                outcome.links += 1
                if line.tag:
                    outcome.tags.append(f"{repository}:{line.tag}")
                if line.tag and is_digest(there):
                    self._conflicts.append(Conflict(repository, line.tag, there, line.digest))
        self._refuse()

    def moves(self) -> list[dict[str, str]]:
        """The tags that are to be moved."""
        return [each.move() for each in self._conflicts]

    def _refuse(self) -> None:
        if self._conflicts and not self._wanted.force:
            shown = "; ".join(f"{each.repository}:{each.tag} is at {each.there}, in the backup at {each.wanted}" for each in self._conflicts[:5])
            more = f"; and {len(self._conflicts) - 5} more" if len(self._conflicts) > 5 else ""
            raise RegistryFleetError(
                f"Tags of the registry that lead elsewhere than in the backup: {shown}{more}. Nothing was changed. Restore less of it by restore_tag or "
                "restore_repository, or write -e restore_force=true: a tag is then moved, and its digest of now stays under a history tag."
            )
        disk = os.statvfs(self._store.root)
        free, needed = disk.f_bavail * disk.f_frsize, self._outcome.bytes + self._outcome.links * _LINK_BYTES
        if needed > free:
            raise RegistryFleetError(
                f"{self._store.root}: {needed} bytes would come, and {free} are free. Nothing was changed. Make room for {needed - free} more."
            )

    def change(self, stream_bytes: int) -> None:
        """Do it. stream_bytes: of all blobs of the snapshot. Raises RegistryFleetError; what has come by then is whole, and stays."""
        # As distribution makes them: the group of the store reads, for one the backup.
        umask = os.umask(0o007)
        try:
            with as_owner(self._store.root):
                os.makedirs(self._coming)
            if len(self._missing) * _ASKING_BYTES + self._outcome.bytes < stream_bytes:
                self._fetch_each()
            elif self._missing:
                self._fetch_all()
            with as_owner(self._store.root):
                self._verify()
                # What leads to something is on the disk after it, should power fail.
                os.sync()
                for are_tags in (False, True):
                    for repository, lines in self._lines.items():
                        self._write_links(repository, [line for line in lines if bool(line.tag) == are_tags])
                    os.sync()
                self.tidy()
            self._tell_of_bad()
        except OSError as error:
            raise RegistryFleetError(
                f"{error.filename or self._store.root} can't be written: {error.strerror}. What has come stays, and the next run goes on from there."
            ) from None
        finally:
            os.umask(umask)

    def tidy(self) -> None:
        """Nothing that came is anywhere but in its place."""
        shutil.rmtree(self._coming, ignore_errors=True)

    def _what_is_there(self, digest: str, size: int) -> str:
        held = self._store.held(self._store.blob_path(digest))
        if held is None:
            return "nothing"
        return "right" if held.bytes == size and self._is_right(digest) else "wrong"

    def _is_right(self, digest: str) -> bool:
        """Whether what is on the disk has this digest."""
        hashing = hashlib.new(digest.partition(":")[0])
        try:
            with os.fdopen(open_unnoticed(self._store.blob_path(digest)), "rb") as file:
                # What was just written comes from the disk, not from memory.
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                while True:
                    chunk = file.read(_CHUNK_BYTES)
                    if not chunk:
                        break
                    hashing.update(chunk)
        except OSError:
            return False
        return digest.endswith(f":{hashing.hexdigest()}")

    def _fetch_each(self) -> None:
        for digest in self._missing:
            path = f"{_path(self._snapshot, 'blobs')}/{self._below(digest)}"
            with self._restic.dump(self._snapshot.id, path) as stream, as_owner(self._store.root):
                self._take(digest, stream)

    def _fetch_all(self) -> None:
        root = _path(self._snapshot, "blobs")
        missing = {f"{root}/{self._below(digest)}": digest for digest in self._missing}
        with self._restic.dump(self._snapshot.id, root) as stream, _tar(stream) as archive, as_owner(self._store.root):
            for member in archive:
                digest = missing.pop(f"/{member.name.lstrip('/')}", "")
                file = archive.extractfile(member) if digest and member.isreg() else None
                if file is not None:
                    self._take(digest, file)
                if not missing:
                    break
        if missing:
            raise ResticError(f"The backup {self._snapshot.id[:8]} lacks {len(missing)} blobs that it lists, like {next(iter(missing.values()))}.")

    def _below(self, digest: str) -> str:
        """Where a blob is below the directory of blobs."""
        algorithm, _colon, encoded = digest.partition(":")
        return f"{algorithm}/{encoded[:2]}/{encoded}/data"

    def _take(self, digest: str, stream: IO[bytes]) -> None:
        """Bring one blob to its place, if it is what it should be."""
        coming, hashing, size = os.path.join(self._coming, digest.partition(":")[2]), hashlib.new(digest.partition(":")[0]), 0
        with open(coming, "wb") as file:
            while True:
                chunk = stream.read(_CHUNK_BYTES)
                if not chunk:
                    break
                hashing.update(chunk)
                size += len(chunk)
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
        if size < self._sizes[digest]:
            # restic says why.
            raise EOFError
        if not digest.endswith(f":{hashing.hexdigest()}"):
            self._wrong.append(digest)
            self._bad.add(digest)
            return
        path = self._store.blob_path(digest)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        os.rename(coming, path)

    def _verify(self) -> None:
        """What came is read from the disk once more; what was there has been."""
        for digest in self._missing:
            if digest not in self._bad and not self._is_right(digest):
                raise RegistryFleetError(f"{self._store.blob_path(digest)} was written, and can't be read again as it was. Check the disk.")
        self._outcome.verified = len(self._sizes)
        self._outcome.verified_bytes = sum(self._sizes.values())

    def _write_links(self, repository: str, lines: Iterable[Line]) -> None:
        conflicts = {each.tag: each for each in self._conflicts if each.repository == repository}
        for line in lines:
            if not self._bad.isdisjoint((line.digest, *line.needs)):
                # What needs it comes later in the list.
                self._bad.add(line.digest)
                continue
            there = self._read_link(repository, line)
            if there == line.digest:
                continue
            if line.tag and is_digest(there):
                self._keep_history(conflicts.get(line.tag), Conflict(repository, line.tag, there, line.digest))
            self._write_link(f"{self._store.repository_path(repository)}/{line.path}", line.digest)

    def _tell_of_bad(self) -> None:
        if not self._bad:
            return
        names = [f"{repository}:{line.tag}" for repository, lines in self._lines.items() for line in lines if line.tag and line.digest in self._bad]
        raise ResticError(
            f"The backup {self._snapshot.id[:8]} has other bytes than the digest says for {len(self._wrong)} blobs, which were damaged when they were "
            f"backed up. What needs them was not restored: {', '.join(names[:10]) or 'no tag'}{' …' if len(names) > 10 else ''}. All else was. "
            "Try an older backup (restore_snapshot)."
        )

    def _keep_history(self, known: Conflict | None, now: Conflict) -> None:
        """What a tag leads to stays under a tag of its own before it is moved. Raises RegistryFleetError if somebody else has just set it."""
        if known != now:
            raise RegistryFleetError(f"{now.repository}:{now.tag} was set to {now.there} meanwhile, and stays so. What else has come stays, too.")
        move = now.move()
        directory = self._store.tag_path(now.repository, move["history"].rpartition(":")[2])
        self._write_link(f"{directory}/index/{now.there.replace(':', '/')}/link", now.there)
        self._write_link(f"{directory}/current/link", now.there)
        self._outcome.moved.append(move)

    def _read_link(self, repository: str, line: Line) -> str:
        try:
            with open(f"{self._store.repository_path(repository)}/{line.path}", encoding="utf-8", errors="replace") as file:
                return file.read(256).strip()
        except OSError:
            return ""

    def _write_link(self, path: str, digest: str) -> None:
        coming = os.path.join(self._coming, "link")
        with open(coming, "w", encoding="utf-8") as file:
            file.write(digest)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        os.rename(coming, path)
