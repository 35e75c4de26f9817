# Copyright (c) 2026, mirrorfleet contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0
"""What goes from a host's registries when its time has come, while they are pushed to. One call is one run; systemd calls it.

Distribution's own garbage-collect knows of no push that is under way: it removes layers that have come and whose manifest has
not, so it needs a registry that takes no pushes for as long as the longest of them. Here nothing stands still. What goes must be
unused for the grace, and every use leaves a trace: a push reads or writes the link of each blob that its manifest names
(distribution 2.8, registry/storage/linkedblobstore.go: Stat, linkBlob), and relatime, which is Linux' default, notes at least
one reading a day. So the grace is longer than a day, and what is used at the very moment is put back, see store_aside.py.
A blob itself shows no use: a push that finds it there writes a link and nothing else. So links that came meanwhile count, too.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass, field
from typing import Mapping, Sequence, Tuple

from ansible_collections.mirrorfleet.registry.plugins.module_utils.errors import RegistryFleetError
from ansible_collections.mirrorfleet.registry.plugins.module_utils.host_program import say
from ansible_collections.mirrorfleet.registry.plugins.module_utils.retention import Rule, Tag, expired
from ansible_collections.mirrorfleet.registry.plugins.module_utils.storage import Held, Link, Store
from ansible_collections.mirrorfleet.registry.plugins.module_utils.store_aside import Aside
from ansible_collections.mirrorfleet.registry.plugins.module_utils.store_catalog import ManifestReader
from ansible_collections.mirrorfleet.registry.plugins.module_utils.store_state import locked
from ansible_collections.mirrorfleet.registry.plugins.module_utils.times import parse_age

# Between finding a file's place and using it, distribution takes no longer.
SETTLE_SECONDS = 10.0
_LOCK_SECONDS = 10.0
_SHOWN = 20


@dataclass
class Outcome:
    """What went: tags by name, how many manifests and blobs, and the bytes of these; and why something did not.

    used: of the manifests and blobs that were to go, one that was used at that moment, so that all of them stay until the next run.
    """

    tags: list[str] = field(default_factory=list)
    manifests: int = 0
    blobs: int = 0
    bytes: int = 0
    used: str = ""
    problems: list[str] = field(default_factory=list)


def keep(path: str, rule: Rule, grace: float, settle: float) -> Outcome:
    """One run on the store at `path`; grace and settle in seconds. Raises RegistryFleetError."""
    store = Store(path)
    with locked(store.root, "the keeper", _LOCK_SECONDS):
        return _Run(store, rule, grace, settle).run()


# What `Aside.take` is given.
_Wanted = Tuple[str, str, Held, bool]


class _Run:
    def __init__(self, store: Store, rule: Rule, grace: float, settle: float) -> None:
        self._store, self._rule, self._grace, self._settle = store, rule, grace, settle
        self._manifests = ManifestReader(store)
        # The file system's clock, which has written all times that are compared here: that of a share is its server's.
        os.utime(store.root)
        self._now = os.stat(store.root).st_mtime
        self._outcome = Outcome()

    def run(self) -> Outcome:
        # What another run had set aside when it was killed; whether it goes is found out anew.
        Aside(self._store).recover()
        try:
            self._tags()
            while self._garbage():
                pass
        finally:
            # Nothing is aside, unless something failed.
            Aside(self._store).recover()
            Aside(self._store).keep_ballast()
        return self._outcome

    def _tags(self) -> None:
        """Tags whose time has come; one that is pushed at this moment stays."""
        aside = Aside(self._store)
        names: dict[str, str] = {}
        wanted: list[_Wanted] = []
        for repository in self._store.repositories():
            links = self._store.tag_links(repository)
            tags = [Tag(name, link.digest, link.written) for name, link in links.items()]
            used = self._used_lately(self._store.revision_links(repository))
            for name in sorted(expired(tags, self._rule, self._now, self._parts, self._grace, used)):
                path = self._store.tag_path(repository, name)
                seen = self._store.held(f"{path}/current/link")
                # It may have been pushed since it was read.
                if seen is not None and seen.written == links[name].written:
                    names[path] = f"{repository}:{name}"
                    wanted.append((path, "current/link", seen, False))
        self._take(aside, wanted)
        self._wait(aside)
        for taken in aside.taken:
            if aside.is_used(taken):
                aside.put_back(taken)
            else:
                self._outcome.tags.append(names[taken.path])
        aside.forget()

    def _take(self, aside: Aside, wanted: Sequence[_Wanted]) -> bool:
        """Set aside as much as there is room to note; whether that is all."""
        is_all = all(aside.take(*each) for each in wanted)
        if not is_all and not aside.taken:
            self._outcome.problems.append("The disk is full: there is no room to note what is to be removed. Make room for some kilobytes.")
        return is_all

    def _parts(self, digest: str) -> set[str]:
        """The manifests that an index leads to, through indexes in it as well."""
        found: set[str] = set()
        rest = [digest]
        while rest:
            manifest = self._manifests.get(rest.pop())
            new = {item.digest for item in manifest.manifests} - found if manifest is not None else set()
            found |= new
            rest.extend(new)
        return found

    def _garbage(self) -> bool:
        """Manifests that no tag leads to, and blobs that no manifest needs; all of it, or nothing when some of it is in use.

        On a disk that is full, as much as there is room to note; whether more can go now.
        """
        before: dict[str, Link] = {}
        revisions: dict[str, Held] = {}
        layers: dict[str, Held] = {}
        needed: set[str] = set()
        for repository in self._store.repositories():
            # What comes after this look is seen by the next one of them.
            links = self._store.written_links(repository)
            before.update(links)
            own = self._needs(repository, self._kept(repository))
            if own is None:
                return False
            needed |= own
            for path in links:
                digest = _digest(path)
                seen = self._store.held(f"{path}/link")
                if digest in own or seen is None or self._is_new(seen):
                    needed.add(digest)
                else:
                    (revisions if _is_revision(path) else layers)[path] = seen
        blobs = {
            digest: held for digest, held in self._store.blob_files().items() if digest not in needed and self._now - held.written >= self._grace
        }
        odd = self._store.old_problems(self._now - self._grace)
        if odd:
            # A link that can't be read may lead to any of them. One that is new leads to what is new as well.
            self._outcome.problems += [*(f"{problem.path}: {problem.why}" for problem in odd[:_SHOWN])]
            self._outcome.problems.append("Because of that no manifest and no blob is removed. Mend it, or remove what is not distribution's.")
            return False
        aside = Aside(self._store)
        # Links before what they lead to: wherever this ends, what is left is garbage still.
        wanted: list[_Wanted] = [(path, "link", seen, True) for path, seen in (*revisions.items(), *layers.items())]
        wanted += [(os.path.dirname(self._store.blob_path(digest)), "data", held, False) for digest, held in blobs.items()]
        is_all = self._take(aside, wanted)
        if aside.taken:
            # At once as well: an image that came while all of this was set aside is whole again as soon as may be.
            self._outcome.used = self._used(aside, before)
            if not self._outcome.used:
                self._wait(aside)
                self._outcome.used = self._used(aside, before)
        if self._outcome.used:
            for taken in reversed(aside.taken):
                aside.put_back(taken)
        else:
            went = [taken for taken in aside.taken if taken.file == "data"]
            self._outcome.manifests += sum(1 for taken in aside.taken if taken.path in revisions)
            self._outcome.blobs += len(went)
            self._outcome.bytes += sum(taken.seen.bytes for taken in went)
        more = not is_all and bool(aside.taken) and not self._outcome.used
        aside.forget()
        return more

    def _used(self, aside: Aside, before: dict[str, Link]) -> str:
        """What somebody has used of it since it was found, below the store; an empty string, if nobody has."""
        gone = {taken.path for taken in aside.taken}
        self._manifests = ManifestReader(self._store)
        for repository in self._store.repositories():
            for path, link in self._store.written_links(repository).items():
                if path in before and before[path].written == link.written:
                    continue
                needs: set[str] | None = {_digest(path)}
                if _is_revision(path) and gone.isdisjoint(self._places(repository, _digest(path))):
                    needs = self._needs(repository, {_digest(path), *self._parts(_digest(path))})
                if needs is None or not all(gone.isdisjoint(self._places(repository, each)) for each in needs):
                    return os.path.relpath(path, self._store.root)
        return next((os.path.relpath(taken.path, self._store.root) for taken in aside.taken if aside.is_used(taken)), "")

    def _places(self, repository: str, digest: str) -> tuple[str, str, str]:
        """The directories that must be there for a repository to serve it."""
        blob = os.path.dirname(self._store.blob_path(digest))
        return blob, self._store.layer_path(repository, digest), self._store.revision_path(repository, digest)

    def _needs(self, repository: str, manifests: set[str]) -> set[str] | None:
        """Manifests and their blobs; None when there is one that is not understood."""
        needs = set(manifests)
        for digest in manifests:
            manifest = self._manifests.get(digest)
            if manifest is None:
                self._outcome.problems.append(f"{repository}@{digest} is no manifest that is understood here, so no blob is removed")
                return None
            needs.update(blob.digest for blob in manifest.blobs)
        return needs

    def _kept(self, repository: str) -> set[str]:
        """The manifests that tags lead to, and those that were pushed or pulled within the grace, with what they lead to."""
        links = self._store.revision_links(repository)
        kept = {link.digest for link in self._store.tag_links(repository).values()} | self._used_lately(links)
        for digest in list(kept):
            kept.update(self._parts(digest))
        # A tag that names what is not there, or an index without all of its platforms, keeps nothing else from going.
        return kept & set(links)

    def _used_lately(self, links: Mapping[str, Link]) -> set[str]:
        """The manifests that were pushed or pulled within the grace, by a tag or by digest."""
        return {digest for digest, link in links.items() if self._now - max(link.written, link.read) < self._grace}

    def _is_new(self, seen: Held) -> bool:
        return self._now - max(seen.written, seen.read) < self._grace

    def _wait(self, aside: Aside) -> None:
        if aside.taken:
            time.sleep(self._settle)


def _digest(path: str) -> str:
    """What a link's directory is for."""
    return ":".join(path.rsplit("/", 2)[1:])


def _is_revision(path: str) -> bool:
    return "/_manifests/revisions/" in path


def main(arguments: Sequence[str]) -> int:
    """``keeper.py FILE``, where FILE holds what the role registry writes. 0 if all went well."""
    try:
        with open(arguments[0], encoding="utf-8") as file:
            settings = json.load(file)
        grace = parse_age(settings["grace"], "grace")
        registries = [(name, each["path"], Rule(each["newest"], each["days"])) for name, each in settings["registries"].items()]
    except (OSError, ValueError, KeyError, TypeError, RegistryFleetError) as error:
        say(f"<3>{arguments[0]} is not as the role registry writes it: {error}. Run site.yml.")
        return 1
    failed = False
    for name, path, rule in registries:
        try:
            outcome = keep(path, rule, grace, SETTLE_SECONDS)
        except (RegistryFleetError, OSError) as error:
            outcome = Outcome(problems=[str(error)])
        for tag in outcome.tags[:_SHOWN]:
            say(f"{name}: {tag} went")
        say(f"{name}: {len(outcome.tags)} tags, {outcome.manifests} manifests and {outcome.blobs} blobs went, {outcome.bytes} bytes")
        if outcome.used:
            say(f"{name}: {outcome.used} was used just now, so all that is to go stays until the next run")
        for problem in outcome.problems:
            say(f"<4>{name}: {problem}")
            failed = True
    return int(failed)
