# Copyright (c) 2026, mirrorfleet contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0
"""The backup of a registry that is pushed to meanwhile. One call is one run; systemd calls it.

Distribution writes an image from the bottom up: blobs, links to them, manifests, indexes, the tag. Links are read from the top
down, into one file for each repository, and only then restic reads that file and the blobs. So whatever a tag in the backup needs
was there before its link was read, and is in the backup, too: nothing is removed from a registry of the scope prod, and the store's
lock keeps out who might. Blobs that come meanwhile are in it without a link, which does no harm.

A link's file is named by the digest that it holds; so that of a repository, `_links`, is a list, one line each:

    PATH DIGEST BYTES [DIGEST …]

the path of the link below the repository, the digest it holds, the bytes of that blob, and of a manifest what it needs. The order is
the one they are written in: from the bottom up.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple, Sequence

from ansible_collections.mirrorfleet.registry.plugins.module_utils.errors import RegistryFleetError
from ansible_collections.mirrorfleet.registry.plugins.module_utils.host_program import exposition, labels, replace, say
from ansible_collections.mirrorfleet.registry.plugins.module_utils.image_manifest import Manifest
from ansible_collections.mirrorfleet.registry.plugins.module_utils.image_reference import is_digest
from ansible_collections.mirrorfleet.registry.plugins.module_utils.restic import Restic, ResticError, Secrets, Snapshot
from ansible_collections.mirrorfleet.registry.plugins.module_utils.storage import Store
from ansible_collections.mirrorfleet.registry.plugins.module_utils.store_catalog import ManifestReader
from ansible_collections.mirrorfleet.registry.plugins.module_utils.store_state import as_owner, locked
from ansible_collections.mirrorfleet.registry.plugins.module_utils.times import utc

LINKS = "links"
LIST = "_links"
RECORD = "record.json"
STDIN = "-"
_STATE = "state.json"
METRICS = "mirrorfleet_backup_{name}.prom"
# What is younger may be being written.
_BEING_WRITTEN = 60.0
_LOCK_SECONDS = 300.0
# Distribution 2.8 writes a link in place, so for a moment it may be empty.
_LOOKS, _PAUSE_SECONDS = 20, 0.1
_SHOWN = 20
_TAG = r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}"
_PLACE = re.compile(
    rf"(?:_layers|_manifests/revisions|_manifests/tags/{_TAG}/index)/(?P<digest>[a-z0-9]+/[0-9a-f]+)/link|_manifests/tags/(?P<tag>{_TAG})/current/link"
)
_BYTES = re.compile(r"[0-9]{1,19}")


@dataclass(frozen=True)
class Settings:
    """What the role writes for a registry.

    name, host: whose backup it is; storage: the store; target: the restic repository; keep: rule -> how many, as restic's --keep-…;
    check_parts: in so many runs all of the repository is read; state, cache, metrics: directories; user: who runs the backup; ca: a file, or empty
    """

    name: str
    host: str
    storage: str
    target: str
    keep: dict[str, int]
    check_parts: int
    state: str
    cache: str
    metrics: str
    user: str = ""
    ca: str = ""


def settings_of(path: str) -> Settings:
    """Raises RegistryFleetError."""
    return Settings(**_read(path, "settings"))


def secrets_of(path: str) -> Secrets:
    """Raises RegistryFleetError, which shows nothing of them."""
    return Secrets(**_read(path, "secrets"))


def _read(path: str, what: str) -> dict[str, Any]:
    kind: type = Settings if what == "settings" else Secrets
    try:
        with open(0 if path == STDIN else path, encoding="utf-8", closefd=path != STDIN) as file:
            values = json.load(file)
        kind(**values)
    except OSError as error:
        raise RegistryFleetError(f"{path}, the {what} of the backup, can't be read: {error.strerror}. Run site.yml.") from None
    except (ValueError, TypeError):
        raise RegistryFleetError(f"{path} is not as the role registry writes it. Run site.yml.") from None
    return dict(values)


def repository_of(settings: Settings, secrets: Secrets, source: str = "") -> Restic:
    """The restic repository of a registry, or another one that was named."""
    return Restic(source or settings.target, secrets, settings.cache, settings.user, settings.ca)


@dataclass
class State:
    """What a registry remembers of its backups. repository: its identity, by which another one, or an empty disk, is told from it; heritage: whose backups
    it goes on with; turn: which part of the data was checked last."""

    repository: str = ""
    heritage: list[str] = field(default_factory=list)
    turn: int = 0

    @classmethod
    def of(cls, directory: str) -> State:
        """What was kept; nothing where nothing was. Raises RegistryFleetError."""
        path = os.path.join(directory, _STATE)
        try:
            with open(path, encoding="utf-8") as file:
                return cls(**json.load(file))
        except FileNotFoundError:
            return cls()
        except (OSError, ValueError, TypeError) as error:
            raise RegistryFleetError(f"{path} can't be read: {error}. Remove it, and the next backup writes it anew.") from None

    def keep(self, directory: str) -> None:
        """Write it down."""
        with as_owner(directory):
            replace(os.path.join(directory, _STATE), json.dumps(asdict(self)), durable=True)


class Line(NamedTuple):
    """A link: its path below the repository, the digest it holds, the bytes of that blob, and the digests that a manifest names."""

    path: str
    digest: str
    bytes: int
    needs: tuple[str, ...] = ()

    def __str__(self) -> str:
        return " ".join((self.path, self.digest, str(self.bytes), *self.needs))

    @property
    def tag(self) -> str:
        """The tag that this link is, or nothing for any other one."""
        place = _PLACE.fullmatch(self.path)
        return (place["tag"] or "") if place else ""

    @property
    def is_manifest(self) -> bool:
        return self.path.startswith("_manifests/revisions/")


def parse_line(text: str) -> Line:
    """Raises RegistryFleetError for what no backup has written: a path leads nowhere else."""
    words = text.split(" ")
    place = _PLACE.fullmatch(words[0])
    if not place or len(words) < 3 or not _BYTES.fullmatch(words[2]) or not all(map(is_digest, (words[1], *words[3:]))):
        raise RegistryFleetError(f"The backup has a list of links with a line that no backup writes: {text[:200]!r}.")
    if place["digest"] and place["digest"].replace("/", ":") != words[1]:
        raise RegistryFleetError(f"The backup has a link that leads elsewhere than its name says: {text[:200]!r}.")
    return Line(words[0], words[1], int(words[2]), tuple(words[3:]))


@dataclass
class Links:
    """What a repository has, or what of it is whole. problems: what is not, a line for each tag or manifest."""

    lines: list[Line]
    problems: list[str]


class Collector:
    """Reads the links of a store, and leaves out what is not whole."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._manifests = ManifestReader(store)
        # blob -> bytes. One that was there stays.
        self._sizes: dict[str, int] = {}
        # Blobs of a length that no image wants.
        self._wrong: set[str] = set()

    def collect(self, repository: str) -> Links:
        """Looked at again, when something seems to be missing: it may just be written."""
        for look in range(_LOOKS):
            found = self._look(repository)
            if not found.problems:
                break
            time.sleep(_PAUSE_SECONDS if look + 1 < _LOOKS else 0)
            self._manifests, self._sizes = ManifestReader(self._store), {}
        return found

    def _look(self, repository: str) -> Links:
        store = self._store
        # From the top down.
        tags = store.tag_links(repository, broken=True)
        history = {tag: [path.split("/")[-3:-1] for path in store.tag_index(repository, tag)] for tag in tags}
        revisions = store.revisions(repository)
        layers = store.layers(repository)
        ranks: dict[str, int] = {}
        lacks: dict[str, str] = {}
        self._wrong = set()
        for digest in sorted(revisions):
            self._judge(digest, revisions, layers, ranks, lacks)
        problems = [f"{repository}@{digest} is not whole: {why}" for digest, why in sorted(lacks.items()) if why]
        lines = [
            Line(f"_layers/{digest.replace(':', '/')}/link", digest, self._sizes[digest])
            for digest in sorted(layers) if self._size(digest) is not None and digest not in self._wrong
        ]
        whole = [digest for digest in revisions if not lacks[digest]]
        for digest in sorted(whole, key=lambda each: (ranks[each], each)):
            manifest = self._manifests.get(digest)
            lines.append(Line(f"_manifests/revisions/{digest.replace(':', '/')}/link", digest, self._sizes[digest], _needs(manifest)))
        named = []
        for tag, link in sorted(tags.items()):
            if link.digest not in whole:
                why = lacks.get(link.digest) or f"its manifest {link.digest} is not there"
                problems.append(f"{repository}:{tag} is not whole: {why}")
                continue
            for algorithm, encoded in sorted(history[tag]):
                digest = f"{algorithm}:{encoded}"
                if digest in whole:
                    lines.append(Line(f"_manifests/tags/{tag}/index/{algorithm}/{encoded}/link", digest, self._sizes[digest]))
            named.append(Line(f"_manifests/tags/{tag}/current/link", link.digest, self._sizes[link.digest]))
        return Links(lines + named, problems)

    def _judge(self, digest: str, revisions: set[str], layers: set[str], ranks: dict[str, int], lacks: dict[str, str]) -> None:
        """Find out how far above the blobs a manifest is, and what it lacks: nothing, if it is whole."""
        if digest in lacks:
            return
        # An index that names itself can't be, but a file may say anything.
        lacks[digest], ranks[digest] = "it is part of itself", 0
        if digest not in revisions or self._size(digest) is None:
            lacks[digest] = f"the manifest {digest} is not there"
            return
        manifest = self._manifests.get(digest)
        why = "" if self._sizes[digest] else f"the manifest {digest} is empty"
        for blob in manifest.blobs if manifest else ():
            # Layers that may not be distributed are had from elsewhere.
            if "foreign" in blob.media_type or "nondistributable" in blob.media_type:
                continue
            size = self._size(blob.digest)
            if blob.digest not in layers or size is None:
                why = f"the blob {blob.digest} is not there"
            elif size != blob.size:
                why = f"the blob {blob.digest} has {size} bytes instead of {blob.size}"
                self._wrong.add(blob.digest)
        for part in manifest.manifests if manifest else ():
            self._judge(part.digest, revisions, layers, ranks, lacks)
            ranks[digest] = max(ranks[digest], ranks[part.digest] + 1)
            why = why or lacks[part.digest]
        lacks[digest] = why

    def _size(self, digest: str) -> int | None:
        if digest not in self._sizes:
            held = self._store.held(self._store.blob_path(digest))
            if held is None:
                return None
            self._sizes[digest] = held.bytes
        return self._sizes[digest]


def _needs(manifest: Manifest | None) -> tuple[str, ...]:
    return tuple(item.digest for item in (*manifest.blobs, *manifest.manifests)) if manifest else ()


@dataclass
class Record:
    """What a run did, for people, playbooks and metrics. problems: what is not as it should be, though there may be a backup; error: why there is none.

    snapshot: empty where none was made; bytes_new: what came into the repository for it; bytes: of all that is in it; times in seconds since 1970;
    success: when the last backup was made, by this run or an earlier one.
    """

    name: str
    host: str
    target: str
    began: float = 0.0
    ended: float = 0.0
    error: str = ""
    problems: list[str] = field(default_factory=list)
    snapshot: str = ""
    bytes_new: int = 0
    bytes: int = 0
    repositories: int = 0
    tags: int = 0
    blobs: int = 0
    snapshots: int = 0
    success: float = 0.0


def back_up(settings: Settings, secrets: Secrets) -> Record:
    """One run, which is in the record whatever happens."""
    run = _Run(settings, secrets)
    try:
        run.run()
    except (RegistryFleetError, OSError) as error:
        run.record.error = str(error)
    run.record.ended = time.time()
    for path, text in (
        (os.path.join(settings.state, RECORD), json.dumps(asdict(run.record))),
        (os.path.join(settings.metrics, METRICS.format(name=settings.name)), metrics_text(run.record)),
    ):
        try:
            replace(path, text, 0o644, durable=True)
        except OSError as error:
            run.record.problems.append(f"{path} can't be written: {error.strerror}")
    return run.record


class _Run:
    def __init__(self, settings: Settings, secrets: Secrets) -> None:
        self._settings = settings
        self._restic = repository_of(settings, secrets)
        self.record = Record(settings.name, settings.host, settings.target, began=time.time(), success=_last_success(settings.state))

    def run(self) -> None:
        """Raises RegistryFleetError where there is no backup."""
        settings, record = self._settings, self.record
        store = Store(settings.storage)
        with locked(store.root, "the backup", _LOCK_SECONDS):
            snapshots = self._open()
            has_images = self._write_links(store)
            odd = store.old_problems(record.began - _BEING_WRITTEN)
            unreadable = [f"{problem.path} ({problem.why})" for problem in odd if problem.unreadable]
            if unreadable:
                raise RegistryFleetError(
                    f"{settings.storage} can't be read as a whole: {', '.join(unreadable[:_SHOWN])}. There is no backup, which would not have what is there. "
                    "Mend the disk, or let the backup's user read it."
                )
            record.problems += [f"{problem.path}: {problem.why}" for problem in odd]
            if not has_images and not snapshots:
                return
            if not has_images:
                raise RegistryFleetError(
                    f"The registry {settings.name} has no image, and its newest backup, of {utc(snapshots[-1].at)}, has: is its storage {settings.storage} "
                    "mounted? Bring the images back by restore.yml."
                )
            made = self._restic.backup([self._links, os.path.join(store.v2, "blobs")], settings.host, settings.name)
        record.snapshot, record.bytes_new, record.bytes = made.snapshot, made.bytes_new, made.bytes
        record.success = time.time()
        self._tidy()

    @property
    def _links(self) -> str:
        return os.path.join(self._settings.state, LINKS)

    def _open(self) -> list[Snapshot]:
        """Make sure that the repository is there, and this registry's; what it holds."""
        state, target = State.of(self._settings.state), self._settings.target
        identity = self._restic.identify()
        if identity is None and state.repository:
            raise RegistryFleetError(
                f"The backups of {self._settings.name} at {target} are gone: there is no repository. Is a disk or share not mounted? "
                f"If they are lost, remove {self._settings.state}/{_STATE}, and the next run begins anew."
            )
        if identity is None:
            self._restic.init()
            identity = self._restic.identify() or ""
        if state.repository not in ("", identity):
            raise RegistryFleetError(
                f"Another repository is at {target} than the one of the backups of {self._settings.name} before. Is another disk or share mounted? "
                f"If it is meant, remove {self._settings.state}/{_STATE}."
            )
        snapshots = self._restic.snapshots()
        mine = {f"{self._settings.host}/{self._settings.name}", *state.heritage}
        owners = {each.owner for each in snapshots}
        strangers = sorted(owners - mine)
        if strangers:
            raise RegistryFleetError(
                f"{target} has the backups of {', '.join(strangers)} (host/registry), so {self._settings.name} of {self._settings.host} has no place there. "
                "Write another backup_target; or if it takes their place, restore it (restore.yml), or write -e backup_take_over=true (backup.yml)."
            )
        if owners and not state.repository:
            raise RegistryFleetError(
                f"{target} has backups of {', '.join(sorted(owners))} (host/registry), and {self._settings.name} of {self._settings.host} knows none. Is this "
                "host a new one, or its disk? Bring back what they hold (restore.yml), or write -e backup_take_over=true (backup.yml) to go on with them."
            )
        state.repository = identity
        state.keep(self._settings.state)
        self._restic.unlock()
        return snapshots

    def _write_links(self, store: Store) -> bool:
        """Write down the links of all repositories; whether there is any image. A list that is the same is not touched, so restic need not read it."""
        collector = Collector(store)
        wanted: set[str] = set()
        blobs: set[str] = set()
        gone: list[str] = []
        for repository in store.repositories():
            found = collector.collect(repository)
            self.record.problems += found.problems
            if not found.lines:
                continue
            path = os.path.join(self._links, repository, LIST)
            text = "".join(f"{line}\n" for line in found.lines)
            before = _content(path)
            if before != text:
                gone += _lost(repository, before, found.lines)
                os.makedirs(os.path.dirname(path), exist_ok=True)
                replace(path, text)
            wanted.add(path)
            blobs.update(line.digest for line in found.lines)
            self.record.repositories += 1
            self.record.tags += sum(1 for line in found.lines if line.tag)
        self.record.blobs = len(blobs)
        for directory, _directories, names in os.walk(self._links, topdown=False):
            for name in names:
                path = os.path.join(directory, name)
                if path not in wanted:
                    gone += _lost(os.path.relpath(directory, self._links), _content(path), ())
                    os.unlink(path)
            with contextlib.suppress(OSError):
                os.rmdir(directory)
        # Nobody but a hand or a disk deletes what is backed up.
        self.record.problems += [
            f"{image} was in the backup before, and is not there as a whole any more: restore.yml brings it back" for image in gone[:_SHOWN]
        ]
        if len(gone) > _SHOWN:
            self.record.problems.append(f"and {len(gone) - _SHOWN} more are not there any more")
        return bool(wanted)

    def _tidy(self) -> None:
        """Old backups go, and a part of the repository is read. The backup is made, whatever fails here."""
        state, parts = State.of(self._settings.state), self._settings.check_parts
        try:
            self._restic.forget(self._settings.keep)
            state.turn = state.turn % parts + 1
            self._restic.check(state.turn, parts)
            state.keep(self._settings.state)
        except ResticError as error:
            self.record.problems.append(str(error))
        try:
            self.record.snapshots = len(self._restic.snapshots())
        except ResticError as error:
            self.record.problems.append(str(error))


def _lost(repository: str, before: str | None, lines: Sequence[Line]) -> list[str]:
    """The tags that the list had before, and these lines have not."""
    tags = {line.tag for line in lines}
    with contextlib.suppress(RegistryFleetError):
        return [f"{repository}:{line.tag}" for line in map(parse_line, (before or "").splitlines()) if line.tag and line.tag not in tags]
    return []


def take_over(settings: Settings, secrets: Secrets) -> list[str]:
    """From now on the registry goes on with the backups that are at its target, whosever they are; whose."""
    restic = repository_of(settings, secrets)
    identity = restic.identify()
    if identity is None:
        raise RegistryFleetError(f"There is no repository at {settings.target} that could be taken over. Write backup.yml without backup_take_over.")
    heirs = sorted({each.owner for each in restic.snapshots()})
    State(identity, heirs, State.of(settings.state).turn).keep(settings.state)
    return heirs


def _last_success(directory: str) -> float:
    try:
        return float(json.loads(_content(os.path.join(directory, RECORD)) or "{}")["success"])
    except (ValueError, KeyError, TypeError):
        return 0.0


def _content(path: str) -> str | None:
    try:
        # A power cut may have left anything of it.
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except FileNotFoundError:
        return None


def metrics_text(record: Record) -> str:
    """Prometheus' text format."""
    rows: list[tuple[str, str, float]] = [
        ("last_success_timestamp_seconds", "When the last backup was made; 0 before.", record.success),
        ("last_run_timestamp_seconds", "When the last run ended.", record.ended),
        ("last_run_problems", "What went wrong in it.", len(record.problems) + bool(record.error)),
        ("last_run_seconds", "How long it took.", round(record.ended - record.began, 3)),
        ("new_bytes", "Bytes that came into the repository by it.", record.bytes_new),
        ("size_bytes", "Bytes of all that is in the backup that it made.", record.bytes),
        ("tags", "Tags that are in it.", record.tags),
        ("snapshots", "Backups that are kept.", record.snapshots),
    ]
    return exposition("mirrorfleet_backup", [(name, "gauge", meaning, {labels(registry=record.name): value}) for name, meaning, value in rows])


def main(arguments: Sequence[str]) -> int:
    """``backup.py [--take-over] SETTINGS SECRETS``, two files; - for secrets is what was opened for us. 0 if all went well."""
    *options, settings_path, secrets_path = arguments
    try:
        settings, secrets = settings_of(settings_path), secrets_of(secrets_path)
        if options:
            say(f"{settings.name} goes on with the backups of {', '.join(take_over(settings, secrets)) or 'nobody'}")
            return 0
    except (RegistryFleetError, OSError) as error:
        say(f"<3>{error}")
        return 1
    record = back_up(settings, secrets)
    for problem in record.problems[:_SHOWN]:
        say(f"<4>{problem}")
    if record.error:
        say(f"<3>{record.error}")
    elif not record.snapshot:
        say(f"{record.name}: there is no image yet, so there is nothing to back up")
    else:
        say(
            f"{record.name}: the backup {record.snapshot} has {record.tags} tags of {record.repositories} repositories, {record.bytes} bytes, "
            f"{record.bytes_new} of them new; {record.snapshots} backups are kept"
        )
    return int(bool(record.error or record.problems))
