# Copyright (c) 2026, mirrorfleet contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0
"""Bring images into a cache before docker hosts ask for them.

What the store does not hold is pulled by the mirror host's own edge, as a docker host would, so distribution verifies and keeps it. Of a
blob's bytes none is kept here. What is already there is seen by the store's files, because asking for a cold blob, even its head, makes
distribution fetch it.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any, Callable, Iterable

from ansible_collections.mirrorfleet.registry.plugins.module_utils.errors import RegistryFleetError, at_least
from ansible_collections.mirrorfleet.registry.plugins.module_utils.host_program import replace
from ansible_collections.mirrorfleet.registry.plugins.module_utils.image_manifest import (
    MAX_MANIFEST_BYTES,
    Descriptor,
    Manifest,
    ManifestError,
    PlatformError,
    check_platforms,
    choose,
    parse_manifest,
)
from ansible_collections.mirrorfleet.registry.plugins.module_utils.image_reference import ImageReference, is_digest, parse_references
from ansible_collections.mirrorfleet.registry.plugins.module_utils.registry_client import RegistryClient, RegistryError
from ansible_collections.mirrorfleet.registry.plugins.module_utils.storage import Store

PROGRESS_FILE = "progress.json"
# Of a directory that nobody keeps: what a run left that was killed, the next one removes.
PROGRESS_PREFIX = "mirrorfleet-progress-"
# Manifests are small: what they cost is the way, not the link.
_MANIFESTS_AT_ONCE = 8
# Distribution 2.8 stores beside serving, and commits soon after the last byte was sent.
_KEPT_SECONDS = 30.0
_TELL_SECONDS = 1.0


class _Left(Exception):
    """The time is over, or there is no use in it: it is left to the next run."""


class _NotKept(RegistryFleetError):
    """The cache does not keep what it fetches, so nothing more is asked for."""


@dataclass(frozen=True)
class Limits:
    """``parallel`` blobs at once, ``max_seconds`` for everything, None for no limit; ``free_bytes`` of the disk stay free."""

    parallel: int = 3
    bytes_per_second: int | None = None
    max_seconds: float | None = None
    free_bytes: int = 0

    def __post_init__(self) -> None:
        """Raises RegistryFleetError that names the wrong option."""
        at_least(1, parallel=self.parallel, bytes_per_second=self.bytes_per_second)
        at_least(0, max_seconds=self.max_seconds, free_bytes=self.free_bytes)


@dataclass
class _Image:
    """One of the images. ``blobs``: config and layers of all chosen platforms; ``fetched`` and ``present``: bytes."""

    name: str
    digest: str = ""
    platforms: list[str] = field(default_factory=list)
    platforms_missing: list[str] = field(default_factory=list)
    blobs: dict[str, Descriptor] = field(default_factory=dict)
    repository: str = ""
    fetched: int = 0
    present: int = 0
    resolving: float = 0.0  # seconds
    first_blob: float = 0.0  # readings of the monotonic clock
    last_blob: float = 0.0
    resolved: bool = False
    planned: bool = False
    missing: set[str] = field(default_factory=set)
    errors: list[str] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        return self.planned and not self.errors and not self.missing

    @property
    def seconds(self) -> float:
        """For its manifests, and from its first blob's request to the end of the last one. Other images are under way meanwhile."""
        return round(self.resolving + self.last_blob - self.first_blob, 3)


@dataclass
class _Wanted:
    """A blob that the store does not hold, and whose it is; the first of these is said to have cost it.

    ``absent_in``: repositories that have said that it is not there. ``skipped``: nobody had a use for it any more.
    """

    blob: Descriptor
    images: list[_Image]
    received: int = 0
    error: str = ""
    skipped: bool = False
    absent_in: set[str] = field(default_factory=set)


class Warming:
    """One run over the images. ``client`` asks the edge; when ``dry``, it asks for manifests where that fills no cache, and for no blob."""

    def __init__(self, client: RegistryClient, store: Store, images: Iterable[str], platforms: Iterable[str], limits: Limits, dry: bool = False) -> None:
        self._client, self._store, self._platforms, self._limits, self._dry = client, store, check_platforms(platforms), limits, dry
        self._references = parse_references(images)
        self._images = [_Image(name) for name in self._references]
        self._revisions: dict[str, set[str]] = {}
        self._wanted: dict[str, _Wanted] = {}
        self._under_way: dict[str, int] = {}
        self._lock = threading.Lock()
        self._began = self._next_start = time.monotonic()
        self._given_up = False

    def run(self, tell: Callable[[dict[str, Any]], None] = lambda _state: None) -> dict[str, Any]:
        """Fetch what is missing, image by image; what cache_warm documents. One image's failure is that image's ``error``."""
        # Read before anything is asked for: afterwards the manifests are there.
        self._revisions = {name: self._store.revisions(name) for name in {reference.path for reference in self._references.values()}}
        with ThreadPoolExecutor(_MANIFESTS_AT_ONCE) as resolving, ThreadPoolExecutor(self._limits.parallel) as fetching:
            resolves = [resolving.submit(self._resolve, image) for image in self._images]
            fetches: list[Future[None]] = []
            # The images keep their order. The link carries the first ones' blobs, while a far upstream takes its time for the last manifests.
            for image, resolve in zip(self._images, resolves):
                self._await([resolve], tell)
                fetches += [fetching.submit(self._fetch, wanted) for wanted in self._plan(image) if not self._dry]
            self._await(fetches, tell)
        if not self._dry:
            self._look_again()
        return self._report()

    def _await(self, futures: list[Future[None]], tell: Callable[[dict[str, Any]], None]) -> None:
        pending = set(futures)
        while pending:
            done, pending = wait(pending, _TELL_SECONDS)
            for each in done:
                each.result()
            tell(self._state())

    # Manifests

    def _resolve(self, image: _Image) -> None:
        began = time.monotonic()
        try:
            self._check_going_on()
            self._resolve_image(image, self._references[image.name])
            image.resolved = True
        except _Left:
            pass
        except RegistryFleetError as error:
            image.platforms_missing = error.platforms_missing if isinstance(error, PlatformError) else []
            image.errors.append(self._noted(error))
        image.resolving = time.monotonic() - began

    def _resolve_image(self, image: _Image, reference: ImageReference) -> None:
        image.repository = reference.path
        manifest, image.digest = self._manifest(image, reference.target)
        chosen = [manifest]
        if manifest.is_index:
            items, image.platforms_missing = choose(manifest.manifests, self._platforms)
            image.platforms = sorted({item.platform or "unknown" for item in items})
            chosen = [self._manifest(image, item.digest)[0] for item in items]
        for each in chosen:
            if each.is_index:
                raise ManifestError("What its index names is an index again, which no engine pulls.")
            image.blobs.update((blob.digest, blob) for blob in each.blobs)

    def _manifest(self, image: _Image, target: str) -> tuple[Manifest, str]:
        """A manifest and its digest; its bytes are counted."""
        held = self._held_manifest(image.repository, target) if self._dry else None
        if held is not None:
            image.present += held[1]
            return held[0], target
        manifest, transfer = self._client.manifest(image.repository, target)
        if transfer.digest in self._revisions[image.repository]:
            image.present += transfer.bytes
        else:
            image.fetched += transfer.bytes
            if not self._dry:
                self._until_kept(Descriptor(transfer.digest, transfer.bytes, manifest.media_type))
        return manifest, transfer.digest

    def _held_manifest(self, repository: str, target: str) -> tuple[Manifest, int] | None:
        """What the repository has by a digest, with its size. What a tag names may have changed."""
        if not is_digest(target) or target not in self._revisions[repository]:
            return None
        body = self._store.read_blob(target, MAX_MANIFEST_BYTES)
        try:
            return (parse_manifest(body), len(body)) if body is not None else None
        except ManifestError:
            return None

    # Blobs

    def _plan(self, image: _Image) -> list[_Wanted]:
        """The blobs of an image whose manifests are known that nobody has or wants yet."""
        missing = []
        with self._lock:
            for blob in image.blobs.values() if image.resolved else ():
                wanted = self._wanted.get(blob.digest)
                if self._holds(blob):
                    image.present += blob.size
                    continue
                image.missing.add(blob.digest)
                if wanted is None or wanted.skipped or (wanted.absent_in and image.repository not in wanted.absent_in):
                    missing.append(_Wanted(blob, [image]))
                    self._wanted[blob.digest] = missing[-1]
                elif wanted.error:
                    image.errors.append(wanted.error)
                else:
                    wanted.images.append(image)
            image.planned = image.resolved
        return missing

    def _fetch(self, wanted: _Wanted) -> None:
        blob, error = wanted.blob, ""
        try:
            self._wait_for_turn(wanted)
            began = time.monotonic()
            self._take_room(blob)
            try:
                self._pull(wanted)
                self._until_kept(blob)
            finally:
                with self._lock:
                    del self._under_way[blob.digest]
        except _Left:
            return
        except RegistryFleetError as fault:
            error = self._noted(fault)
        with self._lock:
            first, *others = wanted.images
            wanted.error = error
            for image in wanted.images:
                image.first_blob, image.last_blob = min(began, image.first_blob or began), time.monotonic()
                if error:
                    image.errors.append(error)
                else:
                    image.missing.discard(blob.digest)
            if not error:
                for image in others:
                    image.present += blob.size

    def _pull(self, wanted: _Wanted) -> None:
        def take(chunk: bytes) -> None:
            with self._lock:
                wanted.received += len(chunk)
                wanted.images[0].fetched += len(chunk)
            self._check_going_on()

        while True:
            with self._lock:
                repository = next(image.repository for image in wanted.images if image.repository not in wanted.absent_in)
            try:
                self._client.blob(repository, wanted.blob, take)
                return
            except RegistryError as error:
                if error.status != 404:
                    raise
                with self._lock:
                    # Another repository may have it still.
                    wanted.absent_in.add(repository)
                    if all(image.repository in wanted.absent_in for image in wanted.images):
                        wanted.error = str(error)
                        raise

    def _wait_for_turn(self, wanted: _Wanted) -> None:
        """Until the rate allows one more blob. A blob itself comes as fast as it can: the coalescer reads without waiting for anybody."""
        self._check_going_on()
        with self._lock:
            # Without the blobs that failed this one is of no use now.
            wanted.skipped = all(image.errors for image in wanted.images)
        if wanted.skipped:
            raise _Left
        if self._limits.bytes_per_second:
            with self._lock:
                start = max(time.monotonic(), self._next_start)
                self._next_start = start + wanted.blob.size / self._limits.bytes_per_second
            while time.monotonic() < start:
                self._check_going_on()
                time.sleep(min(0.2, max(0.0, start - time.monotonic())))

    def _take_room(self, blob: Descriptor) -> None:
        """Raises RegistryFleetError when the blob would not fit beside those that are under way."""
        with self._lock:
            free = shutil.disk_usage(self._store.root).free
            room = free - sum(self._under_way.values()) - self._limits.free_bytes
            if blob.size > room:
                raise RegistryFleetError(
                    f"The blob {blob.digest} has {blob.size} bytes, and the disk of {self._store.root} has room for {max(0, room)}: {free} are free, "
                    f"{self._limits.free_bytes} of these stay free (free_bytes). Make room, or warm less."
                )
            self._under_way[blob.digest] = blob.size

    def _holds(self, blob: Descriptor) -> bool:
        try:
            return os.stat(self._store.blob_path(blob.digest), follow_symlinks=False).st_size == blob.size
        except FileNotFoundError:
            return False
        except OSError as error:
            raise RegistryFleetError(f"{self._store.root} can't be read: {error.strerror}. Run as a user who may, such as root (become: true).") from None

    def _until_kept(self, blob: Descriptor) -> None:
        deadline = time.monotonic() + _KEPT_SECONDS
        while not self._holds(blob):
            if time.monotonic() > deadline:
                root = self._store.root
                raise _NotKept(
                    f"{blob.digest} came whole, but is not in {root} {_KEPT_SECONDS:.0f} seconds later; {shutil.disk_usage(root).free} bytes of disk are free. "
                    f"Is path the store of what answers at {self._client.url}? If it is: journalctl -u mirrorfleet-cache@{os.path.basename(root)}"
                )
            time.sleep(0.05)

    def _look_again(self) -> None:
        """Who makes room at the same time, such as the guard, does not know what is wanted here until the manifests have come."""
        for image in self._images:
            gone = [blob for blob in image.blobs.values() if not self._holds(blob)] if image.complete else []
            if gone:
                image.missing.update(blob.digest for blob in gone)
                image.errors.append(f"{gone[0].digest}, which was there, was removed meanwhile, as by the guard to make room. Run again.")

    def _check_going_on(self) -> None:
        if self._given_up or (self._limits.max_seconds is not None and time.monotonic() - self._began > self._limits.max_seconds):
            raise _Left

    def _noted(self, error: RegistryFleetError) -> str:
        """What it says. After one of these there is no use in going on."""
        self._given_up = self._given_up or isinstance(error, _NotKept)
        return str(error)

    # What is told

    def _state(self) -> dict[str, Any]:
        """How far it is, for who looks on."""
        with self._lock:
            return {
                "images": len(self._images),
                "images_done": sum(image.complete for image in self._images),
                "images_failed": sum(bool(image.errors) for image in self._images),
                "bytes": sum(each.blob.size for each in self._wanted.values()),
                "bytes_done": sum(min(each.received, each.blob.size) for each in self._wanted.values()),
                "seconds": round(time.monotonic() - self._began, 1),
            }

    def _report(self) -> dict[str, Any]:
        # What was to be fetched of an image and did not come. A blob that several share is the first one's.
        left: dict[str, int] = {}
        for wanted in self._wanted.values():
            if wanted.blob.digest in wanted.images[0].missing:
                left[wanted.images[0].name] = left.get(wanted.images[0].name, 0) + wanted.blob.size
            if self._dry:
                for image in wanted.images[1:]:
                    image.present += wanted.blob.size
        if self._given_up:
            for image in self._images:
                if not image.complete and not image.errors:
                    image.errors.append("It was left, because the cache does not keep what it fetches.")
        images = [
            {
                "image": image.name,
                "digest": image.digest,
                "platforms": image.platforms,
                "platforms_missing": image.platforms_missing,
                "bytes_fetched": image.fetched + (left.get(image.name, 0) if self._dry else 0),
                "bytes_present": image.present,
                "bytes_left": 0 if self._dry else left.get(image.name, 0),
                "seconds": image.seconds,
                "complete": image.complete,
                "error": " ".join(dict.fromkeys(image.errors)),
            }
            for image in self._images
        ]
        return {
            "images": images,
            "counts": {
                "images": len(images),
                "complete": sum(image.complete for image in self._images),
                "failed": sum(bool(image.errors) for image in self._images),
                "left": sum(not image.complete and not image.errors for image in self._images),
            },
            **{key: sum(image[key] for image in images) for key in ("bytes_fetched", "bytes_present", "bytes_left")},
            "seconds": round(time.monotonic() - self._began, 3),
        }


def warm(
    images: list[str], platforms: list[str], url: str, path: str, limits: Limits, dry: bool = False, progress: str = "", upstream_url: str = "",
    upstream_username: str = "", upstream_password: str = "", username: str = "", password: str = "", address: str = "", **connection: Any,
) -> dict[str, Any]:
    """Warm the cache whose store is at ``path``: the options of cache_warm, and what it returns. Raises RegistryFleetError before anything is begun."""
    if dry and not upstream_url:
        raise RegistryFleetError("upstream_url: check mode needs it, because the edge would store the manifests. Write http://127.0.0.1:PORT + 13000.")
    there = RegistryClient(url, username=username, password=password, address=address, **connection)
    if dry:
        there = RegistryClient(upstream_url, username=upstream_username, password=upstream_password, **connection)
    with there as client:
        warming = Warming(client, Store(path), images, platforms, limits, dry)
        telling = Progress(progress)
        try:
            return warming.run(telling.tell)
        finally:
            telling.close()


class Progress:
    """Tells how far it is in a directory of its own, which nobody else writes to; what can't be told is no fault of the run."""

    def __init__(self, directory: str) -> None:
        self._directory = directory
        if directory:
            # Who looks on is another user.
            before = os.umask(0o022)
            try:
                # Whoever was faster could lead the file elsewhere; so it must not be there yet.
                os.mkdir(directory)
                # It is released with its process, however that ends.
                self._lock = _lock_of(directory)
            except OSError:
                self._directory = ""
            finally:
                os.umask(before)
            _remove_left_behind(os.path.dirname(directory))

    def tell(self, state: dict[str, Any]) -> None:
        if not self._directory:
            return
        with contextlib.suppress(OSError):
            replace(os.path.join(self._directory, PROGRESS_FILE), json.dumps(state), 0o644)

    def close(self) -> None:
        if self._directory:
            shutil.rmtree(self._directory, ignore_errors=True)
            os.close(self._lock)


def _lock_of(directory: str) -> int:
    """A descriptor that has the lock of a directory. Raises OSError where another process has it."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _remove_left_behind(parent: str) -> None:
    """Remove the directories of this user's runs that are no more."""
    with contextlib.suppress(OSError), os.scandir(parent) as entries:
        for entry in entries:
            with contextlib.suppress(OSError):
                if entry.name.startswith(PROGRESS_PREFIX) and entry.stat(follow_symlinks=False).st_uid == os.geteuid():
                    lock = _lock_of(entry.path)
                    shutil.rmtree(entry.path, ignore_errors=True)
                    os.close(lock)


def failure(report: dict[str, Any], fail_on: str) -> str:
    """Why a run with this report failed, every image by its name; empty when it did not. ``fail_on``: error, incomplete or never."""
    failed = [image for image in report["images"] if image["error"]]
    late = [image for image in report["images"] if not image["error"] and not image["complete"]] if fail_on == "incomplete" else []
    if fail_on == "never" or not failed + late:
        return ""
    lines = [f"{image['image']}: {image['error']}" for image in failed]
    lines += [f"{image['image']}: the time was over, {image['bytes_left']} bytes are left. Run again." for image in late]
    return f"{len(lines)} of {len(report['images'])} images are not in the cache as a whole.\n" + "\n".join(lines)
