# Copyright (c) 2026, mirrorfleet contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0
"""What a mirror host's caches hold, read from their stores, and what distribution counts, asked at its debug endpoint."""

from __future__ import annotations

import fnmatch
import json
import os
import re
import shutil
import time
from dataclasses import dataclass
from typing import Any, Container

from ansible_collections.mirrorfleet.registry.plugins.module_utils.errors import RegistryFleetError
from ansible_collections.mirrorfleet.registry.plugins.module_utils.image_manifest import (
    MAX_CONFIG_BYTES,
    Descriptor,
    Manifest,
    parse_platform,
)
from ansible_collections.mirrorfleet.registry.plugins.module_utils.registry_client import HttpClient
from ansible_collections.mirrorfleet.registry.plugins.module_utils.storage import Store
from ansible_collections.mirrorfleet.registry.plugins.module_utils.store_catalog import ManifestReader, RepositoryImages
from ansible_collections.mirrorfleet.registry.plugins.module_utils.store_figures import Figures
from ansible_collections.mirrorfleet.registry.plugins.module_utils.store_state import is_drained
from ansible_collections.mirrorfleet.registry.plugins.module_utils.times import utc

CACHES = "/var/lib/mirrorfleet/cache"
CONFIGURATIONS = "/etc/mirrorfleet/cache"
# An upstream's, and so a cache's.
_NAME = re.compile(r"[a-z][a-z0-9-]*")
_MAX_FIGURES_BYTES = 4 * 1024 * 1024
# Enough to see what is wrong; a result is no place for a hundred thousand lines.
PROBLEMS_SHOWN = 20

_FIGURES = ("requests", "hits", "misses", "bytes_pulled", "bytes_pushed")
# registry/proxy/proxymetrics.go of 3.x
_METRIC = re.compile(r'^registry_proxy_(requests|hits|misses|pulled_bytes|pushed_bytes)_total\{[^}]*\btype="(blob|manifest)"[^}]*\} (\S+)', re.MULTILINE)
_METRIC_NAMES = {"pulled_bytes": "bytes_pulled", "pushed_bytes": "bytes_pushed"}


@dataclass(frozen=True)
class _Image:
    """One platform's image: what is there of it, by digest with its bytes in the store, and what is missing."""

    platform: str
    manifest: Manifest | None
    held: dict[str, int]
    missing: tuple[str, ...]


def default_caches() -> list[dict[str, str]]:
    """The caches of this mirror host, as the role pull_through_cache lays them out. Raises RegistryFleetError if there is none."""
    storage = _storage()
    try:
        with os.scandir(storage) as entries:
            # A file system has its lost+found.
            names = sorted(entry.name for entry in entries if entry.is_dir() and _NAME.fullmatch(entry.name))
    except FileNotFoundError:
        names = []
    except OSError as error:
        raise RegistryFleetError(f"{storage} can't be read: {error.strerror}. Run as root (become: true), or give caches.") from None
    if not names:
        raise RegistryFleetError(f"There is no cache in {storage}. Run this on a mirror host, or give caches.")
    return [{"name": name, "path": os.path.join(storage, name), "debug_url": _debug_url(name)} for name in names]


def _storage() -> str:
    """Where pull_through_cache_storage has the stores, as the role tells the guard; its default where that can't be read."""
    try:
        return os.path.dirname(str(next(iter(json.loads(_configuration("guard.json"))["caches"].values()))))
    except (ValueError, KeyError, TypeError, AttributeError, StopIteration):
        return CACHES


def _configuration(name: str) -> str:
    """A file that the role writes; empty when it can't be read."""
    try:
        with open(os.path.join(CONFIGURATIONS, name), encoding="utf-8") as file:
            return file.read()
    except OSError:
        return ""


def _debug_url(name: str) -> str:
    """Where the cache's configuration has the debug endpoint; empty when that is not known."""
    address = re.search(r"^  debug:\n    addr: (\S+)$", _configuration(f"{name}.yml"), re.MULTILINE)
    return f"http://{address[1]}" if address else ""


@dataclass(frozen=True)
class Filter:
    """Which images are told of: shell patterns of a repository's name and an image's, and how long it was not used, in seconds."""

    repository: str = "*"
    image: str = "*"
    unused_for: float = 0

    def takes(self, name: str, last_used: float = 0) -> bool:
        return fnmatch.fnmatchcase(name, self.image) and (not self.unused_for or time.time() - last_used >= self.unused_for)

    @property
    def is_of_images(self) -> bool:
        return self.image != "*" or self.unused_for > 0


def report_cache(name: str, path: str, debug_url: str = "", wanted: Filter = Filter(), details: bool = False) -> dict[str, Any]:
    """What cache_info documents of one cache. Raises RegistryFleetError if the store as a whole can't be read."""
    store = Store(path)
    # The blobs are listed last: what a manifest names and came meanwhile is then seen, not reported as missing.
    names = store.repositories()
    manifests = ManifestReader(store)
    links = [RepositoryImages(store, manifests, item) for item in names if fnmatch.fnmatchcase(item, wanted.repository)]
    uploads = [upload for item in names for upload in store.uploads(item)]
    reader = _ImageReader(store, manifests)
    repositories = [_report_repository(reader, item, wanted, details) for item in links]
    if wanted.is_of_images:
        repositories = [item for item in repositories if item["tags"] or item["untagged_count"]]
    told = {item["name"] for item in repositories}
    tags = [(tag["last_used"], f"{item['name']}:{tag['tag']}", tag["last_used_source"]) for item in repositories for tag in item["tags"]]
    disk = shutil.disk_usage(store.root)
    proxy, proxy_unknown = _proxy_figures(debug_url)
    return {
        "name": name,
        "path": store.path,
        "repositories": repositories,
        "counts": {
            "repositories": len(repositories),
            "tags": sum(len(item["tags"]) for item in repositories),
            "manifests": len({digest for item in links if item.repository in told for digest in item.revisions if digest in reader.sizes}),
            "blobs": len(reader.sizes),
            "uploads": len(uploads),
            "problems": len(store.problems),
        },
        "bytes": sum(reader.sizes.values()),
        "upload_bytes": sum(upload.bytes for upload in uploads),
        "oldest_upload": utc(min(upload.written for upload in uploads)) if uploads else None,
        "least_recently_used": _used(min(tags, default=None)),
        "most_recently_used": _used(max(tags, default=None)),
        "expiry": _expiry(name, store.root),
        "disk": {"total": disk.total, "free": disk.free, "days_until_full": Figures.of(store.root).days_until_full(disk.free)},
        "drained": is_drained(store.root),
        "proxy": proxy,
        "proxy_unknown": proxy_unknown,
        "problems": [{"path": problem.path, "why": problem.why} for problem in store.problems[:PROBLEMS_SHOWN]],
    }


def _used(found: tuple[str, str, str] | None) -> dict[str, str] | None:
    return None if found is None else {"image": found[1], "last_used": found[0], "last_used_source": found[2]}


def _expiry(name: str, root: str) -> str:
    """Whether the cache's distribution forgets images by itself, as its configuration says: 2.8 by storage.delete, 3.x by proxy.ttl."""
    text = _configuration(f"{name}.yml")
    found = [re.search(pattern, text, re.MULTILINE) for pattern in (r"^    rootdirectory: (\S+)$", r"^  delete:\n    enabled: (\S+)$", r"^  ttl: (\S+)$")]
    values = [match[1] if match else "" for match in found]
    if os.path.realpath(values[0]) != root:
        return "unknown"
    return "off" if values[1] == "false" and values[2] in ("0", "0s") else "on"


class _ImageReader:
    """Images of a store, each manifest and config read once however many repositories and tags name it."""

    def __init__(self, store: Store, manifests: ManifestReader) -> None:
        self.sizes = store.blobs()
        self.manifest = manifests.get
        self._store = store
        self._platforms: dict[str, str] = {}

    def images(self, digest: str, revisions: Container[str]) -> list[_Image]:
        """The images behind a digest: one, or those of an index. Only a manifest that the repository links is held by it."""
        manifest = self.manifest(digest) if digest in revisions else None
        if manifest is None or not manifest.is_index:
            return [self._image(digest, manifest, "")]
        return [
            self._image(item.digest, self.manifest(item.digest) if item.digest in revisions else None, item.platform) for item in manifest.manifests
        ]

    def _image(self, digest: str, manifest: Manifest | None, platform: str) -> _Image:
        # An index inside an index is pulled by no engine, so what it needs is never there.
        if manifest is None or manifest.is_index:
            return _Image(platform, None, {}, (digest,))
        held = {digest: self.sizes.get(digest, 0)}
        held.update((blob.digest, blob.size) for blob in manifest.blobs if self._whole(blob))
        missing = tuple(blob.digest for blob in manifest.blobs if blob.digest not in held)
        return _Image(platform or self._platform(manifest), manifest, held, missing)

    def _whole(self, blob: Descriptor) -> bool:
        return self.sizes.get(blob.digest) == blob.size

    def _platform(self, manifest: Manifest) -> str:
        config = manifest.config
        if config is None:
            return ""
        if config.digest not in self._platforms:
            self._platforms[config.digest] = parse_platform(self._store.read_blob(config.digest, MAX_CONFIG_BYTES) or b"")
        return self._platforms[config.digest]


def _report_repository(reader: _ImageReader, images: RepositoryImages, wanted: Filter, details: bool) -> dict[str, Any]:
    name, tags = images.repository, []
    for tag, link in sorted(images.tags.items()):
        last_used, source = images.last_used(link.digest, link)
        if wanted.takes(f"{name}:{tag}", last_used):
            used = {"last_used": utc(last_used), "last_used_source": source}
            tags.append({"tag": tag, **_report_image(reader, link.digest, images.revisions, details), **used})
    untagged = [digest for digest in images.without_tag() if wanted.takes(f"{name}@{digest}", images.last_used(digest)[0])]
    report = {"name": name, "tags": tags, "untagged_count": len(untagged)}
    if details:
        report["untagged"] = [_report_image(reader, digest, images.revisions, details) for digest in untagged]
    return report


def _report_image(reader: _ImageReader, digest: str, revisions: Container[str], details: bool) -> dict[str, Any]:
    images = reader.images(digest, revisions)
    cached = [image for image in images if image.manifest is not None]
    held = {digest: reader.sizes.get(digest, 0)}
    for image in cached:
        held.update(image.held)
    report: dict[str, Any] = {
        "digest": digest,
        "size": sum(held.values()),
        "platforms": sorted({image.platform for image in cached if not image.missing} - {"", "unknown/unknown"}),
        "complete": bool(cached) and not any(image.missing for image in cached),
    }
    if details:
        report["images"] = [
            {
                "platform": image.platform,
                "complete": not image.missing,
                "missing": list(image.missing),
                "layers": [{"digest": layer.digest, "size": layer.size} for layer in (image.manifest.layers if image.manifest else ())],
            }
            for image in images
        ]
    return report


def _proxy_figures(debug_url: str) -> tuple[dict[str, dict[str, int | None]] | None, str]:
    """What distribution counts since its start, or None and the reason."""
    if not debug_url:
        return None, "no debug_url was given"
    client = HttpClient(connect_timeout=2, timeout=5)
    try:
        status, metrics = _fetch(client, f"{debug_url.rstrip('/')}/metrics")
        figures = parse_metrics(metrics) if status == 200 else None
        if figures is not None:
            return figures, ""
        status, variables = _fetch(client, f"{debug_url.rstrip('/')}/debug/vars")
        figures = parse_expvar(variables) if status == 200 else None
        return (figures, "") if figures is not None else (None, f"{debug_url} does not answer as the debug endpoint of a distribution in proxy mode")
    except RegistryFleetError as error:
        return None, str(error)
    finally:
        client.close()


def _fetch(client: HttpClient, url: str) -> tuple[int, bytes]:
    with client.get(url, {}) as answer:
        return answer.status, answer.read(_MAX_FIGURES_BYTES)


def parse_metrics(body: bytes) -> dict[str, dict[str, int | None]] | None:
    """The figures of 3.x from its Prometheus metrics; None when they are not among them (2.8)."""
    figures: dict[str, dict[str, int | None]] = {"blobs": dict.fromkeys(_FIGURES), "manifests": dict.fromkeys(_FIGURES)}
    found = _METRIC.findall(body.decode("utf-8", "replace"))
    for metric, kind, value in found:
        try:
            figures[f"{kind}s"][_METRIC_NAMES.get(metric, metric)] = int(float(value))
        except (ValueError, OverflowError):
            return None
    return figures if found else None


def parse_expvar(body: bytes) -> dict[str, dict[str, int | None]] | None:
    """The figures of 2.8 from /debug/vars, those left out that it counts wrong; None when there are none.

    In its registry/proxy/proxymetrics.go every request is a hit, and proxyblobstore.go never tells what it pulled.
    """
    try:
        proxy = json.loads(body)["registry"]["proxy"]
        blobs, manifests = proxy["blobs"], proxy["manifests"]
        return {
            "blobs": {"requests": int(blobs["Requests"]), "hits": None, "misses": None, "bytes_pulled": None, "bytes_pushed": int(blobs["BytesPushed"])},
            "manifests": {
                "requests": int(manifests["Requests"]),
                "hits": max(0, int(manifests["Requests"]) - int(manifests["Misses"])),
                "misses": int(manifests["Misses"]),
                "bytes_pulled": int(manifests["BytesPulled"]),
                "bytes_pushed": int(manifests["BytesPushed"]),
            },
        }
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None
