# Copyright (c) 2026, mirrorfleet contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0
"""What keeps a mirror host's disk from filling and its stores sound. One call is one run; systemd calls it every minute.

A run that is killed anywhere leaves stores that are served right, and files that are the old ones or the new ones. A store that can't be
read or changed stops none of the others.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from dataclasses import dataclass
from typing import Any, Collection, Iterator, Sequence

from ansible_collections.mirrorfleet.registry.plugins.module_utils.errors import RegistryFleetError
from ansible_collections.mirrorfleet.registry.plugins.module_utils.host_program import exposition, labels, replace, say
from ansible_collections.mirrorfleet.registry.plugins.module_utils.storage import Store
from ansible_collections.mirrorfleet.registry.plugins.module_utils.store_evict import Criteria, FileSystem, evict
from ansible_collections.mirrorfleet.registry.plugins.module_utils.store_figures import COUNTERS, SAMPLES, STATE, Figures
from ansible_collections.mirrorfleet.registry.plugins.module_utils.store_scrub import Budget, scrub
from ansible_collections.mirrorfleet.registry.plugins.module_utils.store_state import DIRECTORY, DRAINED, LockedError, is_drained, locked, save
from ansible_collections.mirrorfleet.registry.plugins.module_utils.store_uploads import purge_uploads
from ansible_collections.mirrorfleet.registry.plugins.module_utils.times import parse_age

METRICS = "mirrorfleet_guard.prom"
_HOUR, _DAY = 3600.0, 86400.0
_LOCK_SECONDS = 10.0
# Of all stores together: what else the guard does comes around soon again.
_SCRUB_SECONDS = 60.0


@dataclass(frozen=True)
class Settings:
    """What the role writes. Percentages are of a file system's bytes that are in use; ages in seconds.

    caches: name -> path of the store; drain_percent and scrub_percent: 0 for never
    """

    caches: dict[str, str]
    high_percent: float
    low_percent: float
    drain_percent: float
    grace: int
    pinned: tuple[str, ...]
    scrub_percent: float
    scrub_bytes_per_second: int
    upload_age: int
    metrics: str


def settings_of(path: str) -> Settings:
    """Raises RegistryFleetError."""
    try:
        with open(path, encoding="utf-8") as file:
            values = json.load(file)
        ages = {name: parse_age(values[name], name) for name in ("grace", "upload_age")}
        return Settings(**{**values, **ages, "pinned": tuple(values["pinned"])})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RegistryFleetError(f"{path} is not as the role pull_through_cache writes it: {error}. Run site.yml.") from None


class Guard:
    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._figures = {name: Figures.of(path) for name, path in settings.caches.items()}
        self._errors = 0
        self._broken: set[str] = set()
        self._to_scrub = [name for name, figures in self._figures.items() if figures.scrub_owed or _is_due(figures)]

    def run(self) -> int:
        """One run: what it did goes to standard output, a line each. 0 if all went well."""
        disks = self._by_file_system()
        for names in disks:
            self._make_room(names)
        there = [name for names in disks for name in names]
        for work in (self._drain_or_return, self._scrub, self._keep):
            for name in there:
                with self._alone(name):
                    work(name)
        self._write_metrics(there)
        say(", ".join(self._in_use(name) for name in self._settings.caches))
        return 1 if self._errors else 0

    def _by_file_system(self) -> list[list[str]]:
        found: dict[int, list[str]] = {}
        for name, path in self._settings.caches.items():
            with self._alone(name):
                found.setdefault(os.stat(Store(path).root).st_dev, []).append(name)
        return list(found.values())

    @contextlib.contextmanager
    def _alone(self, name: str) -> Iterator[None]:
        """What goes wrong with a store is told, and stops no other. One that others are changing is not broken."""
        try:
            yield
        except LockedError as error:
            self._fail(str(error))
        except (RegistryFleetError, OSError) as error:
            self._broken.add(name)
            self._fail(f"{name}: {error}")

    def _in_use(self, name: str) -> str:
        if name in self._broken:
            return f"{name} broken"
        return f"{name} {self._used(self._settings.caches[name]):.1f} % used"

    def _used(self, path: str) -> float:
        return FileSystem.of(path).used_percent

    def _make_room(self, names: Sequence[str]) -> None:
        # The caches of a file system are one heap. What goes wrong with one of them is told below, and the others make room.
        with contextlib.suppress(RegistryFleetError, OSError):
            if len(names) > 1:
                self._evict(names)
                return
        for name in names:
            with self._alone(name):
                self._evict([name])

    def _evict(self, names: Sequence[str]) -> None:
        caches = [(name, self._settings.caches[name]) for name in names]
        used = self._used(caches[0][1])
        if used <= self._settings.high_percent:
            return
        criteria = Criteria(free_percent=100 - self._settings.low_percent, pinned=self._settings.pinned, grace=self._settings.grace)
        outcomes = evict(caches, criteria, "the guard", _LOCK_SECONDS)
        for outcome in outcomes:
            counters = self._figures[outcome.name].counters
            counters["evicted_images"] += len(outcome.evicted)
            counters["evicted_bytes"] += outcome.bytes_before - outcome.bytes_after
            freed = outcome.bytes_before - outcome.bytes_after
            say(f"{outcome.name}: {used:.1f} % used: evicted {len(outcome.evicted)} images, {freed} bytes; {len(outcome.kept)} stay")
            for image, size in outcome.evicted[:20]:
                say(f"{outcome.name}: evicted {image.name}, {size} bytes")
        if outcomes[0].bytes_lacking:
            self._fail(f"{', '.join(names)}: {outcomes[0].bytes_lacking} bytes are lacking still: what is left is pinned, in use, or not the caches'")

    def _drain_or_return(self, name: str) -> None:
        path, limit = self._settings.caches[name], self._settings.drain_percent
        used, drained = self._used(path), is_drained(path)
        if limit and used >= limit and not drained:
            problem = save(path, DRAINED, {"used_percent": used, "since": time.time()})
            self._fail(problem or f"{name}: {used:.1f} % used: out of service until it is below {limit - 1:g} %")
        elif drained and (not limit or used < limit - 1):
            os.unlink(os.path.join(path, DIRECTORY, DRAINED))
            say(f"{name}: {used:.1f} % used: in service again")

    def _scrub(self, name: str) -> None:
        """An hour's share of the store, once an hour; what a run has no time for, the next ones read."""
        path, figures, now = self._settings.caches[name], self._figures[name], time.time()
        if name not in self._to_scrub:
            return
        store = Store(path)
        with locked(store.root, "the guard", _LOCK_SECONDS) as lock:
            if _is_due(figures):
                figures.store_bytes = sum(store.blobs().values())
                figures.counters["purged_uploads"] += len(purge_uploads(store, self._settings.upload_age))
                share = int(figures.store_bytes * self._settings.scrub_percent / 100 * _HOUR / _DAY)
                figures.scrub_owed, figures.scrubbed_at = max(share, 1) if self._settings.scrub_percent else 0, now
            budget = Budget(
                max_seconds=_SCRUB_SECONDS / len(self._to_scrub),
                max_bytes=figures.scrub_owed,
                bytes_per_second=self._settings.scrub_bytes_per_second,
                # Room is more urgent.
                stop=lambda: self._used(path) > self._settings.high_percent,
            )
            result = scrub(store, budget, give_way=lock.give_way)
        # Where nothing could be read, nothing is owed.
        figures.scrub_owed = max(0, figures.scrub_owed - result.bytes) if result.blobs else 0
        figures.turned_at = now if result.complete else figures.turned_at
        for counter, count in (("scrubbed_blobs", result.blobs), ("scrubbed_bytes", result.bytes), ("scrub_findings", len(result.findings))):
            figures.counters[counter] += count
        for finding in result.findings:
            say(f"{name}: removed {finding.path}: {finding.kind}; the next pull of {', '.join(finding.images[:5]) or 'it'} fetches it")
        if result.state_problem:
            self._fail(result.state_problem)

    def _keep(self, name: str) -> None:
        path, figures, now = self._settings.caches[name], self._figures[name], time.time()
        if not figures.samples or not 0 <= now - figures.samples[-1][0] < _HOUR:
            disk = os.statvfs(path)
            figures.samples = [*figures.samples, [now, float((disk.f_blocks - disk.f_bfree) * disk.f_frsize)]][-SAMPLES:]
        problem = save(path, STATE, vars(figures))
        if problem:
            self._fail(problem)

    def _write_metrics(self, there: Sequence[str]) -> None:
        caches: dict[str, tuple[Figures, FileSystem, bool]] = {}
        for name in there:
            path = self._settings.caches[name]
            with self._alone(name):
                caches[name] = self._figures[name], FileSystem.of(path), is_drained(path)
        lines = metrics_text(caches, self._broken, self._errors, time.time())
        path = os.path.join(self._settings.metrics, METRICS)
        try:
            # The collector is another user.
            replace(path, lines, 0o644)
        except OSError as error:
            self._fail(f"{path} can't be written: {error.strerror}")

    def _fail(self, text: str) -> None:
        self._errors += 1
        say(f"<4>{text}")


def _is_due(figures: Figures) -> bool:
    """Whether it is time for an hour's share. A clock that was set back begins anew."""
    return not 0 <= time.time() - figures.scrubbed_at < _HOUR


def metrics_text(caches: dict[str, tuple[Figures, FileSystem, bool]], broken: Collection[str], errors: int, now: float) -> str:
    """Prometheus' text format. caches: name -> (figures, its file system, whether out of service); broken: with which something went wrong."""
    rows: list[tuple[str, str, str, dict[str, Any]]] = [
        ("broken", "gauge", "1 where the store could not be read or changed. The journal says why.", {
            **dict.fromkeys(caches, 0), **dict.fromkeys(sorted(broken), 1)
        }),
        ("store_size_bytes", "gauge", "Bytes of all blobs of the store, an hour old at most.", {name: row[0].store_bytes for name, row in caches.items()}),
        ("filesystem_size_bytes", "gauge", "Bytes of the file system, but those kept for root.", {name: row[1].total for name, row in caches.items()}),
        ("filesystem_free_bytes", "gauge", "Bytes of it that are free.", {name: row[1].free for name, row in caches.items()}),
        ("drained", "gauge", "1 while the cache is out of service because its disk is filling.", {name: int(row[2]) for name, row in caches.items()}),
        ("scrub_turn_timestamp_seconds", "gauge", "When all blobs had had their turn; 0 before.", {name: row[0].turned_at for name, row in caches.items()}),
        *(
            (f"{counter}_total", "counter", f"{counter.replace('_', ' ').capitalize()} since the store came.", {
                name: row[0].counters[counter] for name, row in caches.items()
            })
            for counter in COUNTERS
        ),
    ]
    of_caches = [(name, kind, meaning, {labels(cache=cache): value for cache, value in values.items()}) for name, kind, meaning, values in rows]
    return exposition("mirrorfleet_guard", [
        *of_caches,
        ("last_run_timestamp_seconds", "gauge", "When the guard ran last.", {"": now}),
        ("last_run_problems", "gauge", "What went wrong in that run.", {"": errors}),
    ])


def main(arguments: Sequence[str]) -> int:
    """``guard.py FILE``, where FILE holds the settings."""
    try:
        return Guard(settings_of(arguments[0])).run()
    except (RegistryFleetError, OSError) as error:
        say(f"<3>{error}")
        return 1
