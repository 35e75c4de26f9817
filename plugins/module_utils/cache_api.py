# Copyright (c) 2026, mirrorfleet contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0
"""What a registry holds, as far as its API tells: in the shape of cache_report, for a registry whose store can't be read.

Only manifests are asked for, so a pull-through cache that is taken for a registry fetches no layer.
"""

from __future__ import annotations

import fnmatch
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Callable, Iterable, TypeVar

from ansible_collections.mirrorfleet.registry.plugins.module_utils.cache_report import PROBLEMS_SHOWN, Filter
from ansible_collections.mirrorfleet.registry.plugins.module_utils.errors import RegistryFleetError
from ansible_collections.mirrorfleet.registry.plugins.module_utils.image_manifest import Descriptor, Manifest
from ansible_collections.mirrorfleet.registry.plugins.module_utils.registry_client import RegistryClient, RegistryError

# As many as a registry answers without keeping others waiting.
THREADS = 8

T = TypeVar("T")
R = TypeVar("R")


def report_registry(wanted: Filter, details: bool = False, **registry: Any) -> dict[str, Any]:
    """What cache_info documents of one cache; ``registry`` is RegistryClient's arguments.

    Null where only the store tells. Raises RegistryFleetError if the registry does not list its repositories, or is a mirror.
    """
    with RegistryClient(**registry) as client:
        try:
            if client.understands_only_if_cached():
                raise RegistryFleetError(
                    f"{client.url} is the edge of a mirror host, which lists nothing. Run cache_info on the mirror host without url, or ask image_info."
                )
        except RegistryError:
            # What is wrong is told by what is really asked for.
            pass
        with ThreadPoolExecutor(THREADS) as pool:
            return _Reader(client, pool).report(wanted, details)


class _Reader:
    """Each manifest is read once in a repository, those of one step at the same time."""

    def __init__(self, client: RegistryClient, pool: ThreadPoolExecutor) -> None:
        self._client, self._pool = client, pool
        self._problems: list[dict[str, str]] = []

    def report(self, wanted: Filter, details: bool) -> dict[str, Any]:
        names = sorted(name for name in self._client.repositories() if fnmatch.fnmatchcase(name, wanted.repository))
        tags = self._each(names, lambda name: sorted(self._client.tags(name)))
        named = [(name, tag) for name, listed in zip(names, tags) for tag in listed or () if wanted.takes(f"{name}:{tag}")]
        tops = dict(zip(named, self._each(named, lambda key: self._manifest(*key))))
        children = list(dict.fromkeys(
            (name, item.digest) for (name, _tag), top in tops.items() if top and top[0].is_index for item in top[0].manifests
        ))
        below = dict(zip(children, self._each(children, lambda key: self._manifest(*key))))
        repositories: list[dict[str, Any]] = []
        blobs: dict[str, int] = {}
        for name, listed in zip(names, tags):
            reports = []
            for tag in listed or ():
                top = tops.get((name, tag))
                if top is not None:
                    reports.append({"tag": tag, **_report_image(name, *top, below, blobs, details)})
            if reports or not wanted.is_of_images:
                repositories.append({"name": name, "tags": reports, "untagged_count": None, **({"untagged": None} if details else {})})
        manifests = {top[1].digest for top in tops.values() if top} | {found[1].digest for found in below.values() if found}
        return {
            "name": self._client.url,
            "path": None,
            "repositories": repositories,
            "counts": {
                "repositories": len(repositories),
                "tags": sum(len(item["tags"]) for item in repositories),
                "manifests": len(manifests),
                "blobs": len(blobs),
                "uploads": None,
                "problems": len(self._problems),
            },
            "bytes": sum(blobs.values()),
            "upload_bytes": None,
            "oldest_upload": None,
            "least_recently_used": None,
            "most_recently_used": None,
            "expiry": None,
            "disk": None,
            "drained": None,
            "proxy": None,
            "proxy_unknown": "the API does not tell",
            "problems": self._problems[:PROBLEMS_SHOWN],
        }

    def _manifest(self, repository: str, target: str) -> tuple[Manifest, Descriptor]:
        manifest, transfer = self._client.manifest(repository, target)
        return manifest, Descriptor(transfer.digest, transfer.bytes, manifest.media_type)

    def _each(self, items: Iterable[T], work: Callable[[T], R]) -> list[R | None]:
        """The answers; None and a problem for what can't be had."""
        def kept(item: T) -> R | RegistryError:
            try:
                return work(item)
            except RegistryError as error:
                return error

        answers: list[R | None] = []
        for answer in self._pool.map(kept, items):
            if isinstance(answer, RegistryError):
                # A repository whose last tag is gone stays in the list of distribution, and is no problem.
                where = answer.url.partition("?")[0]
                if answer.status != 404 or not where.endswith("/tags/list"):
                    self._problems.append({"path": where, "why": str(answer)})
                answers.append(None)
            else:
                answers.append(answer)
        return answers


def _report_image(
    repository: str,
    manifest: Manifest,
    top: Descriptor,
    below: dict[tuple[str, str], tuple[Manifest, Descriptor] | None],
    blobs: dict[str, int],
    details: bool,
) -> dict[str, Any]:
    """One tag's image; its parts are added to ``blobs``."""
    held = {top.digest: top.size}
    images: list[tuple[str, Manifest | None]] = []
    if manifest.is_index:
        for item in manifest.manifests:
            found = below.get((repository, item.digest))
            held.update({found[1].digest: found[1].size} if found else {})
            images.append((item.platform, found[0] if found else None))
    else:
        images.append(("", manifest))
    for _platform, image in images:
        held.update((blob.digest, blob.size) for blob in (image.blobs if image else ()))
    blobs.update(held)
    report: dict[str, Any] = {
        "digest": top.digest,
        "size": sum(held.values()),
        "platforms": sorted({name for name, image in images if image} - {"", "unknown/unknown"}) if manifest.is_index else None,
        "complete": None,
        "last_used": None,
        "last_used_source": None,
    }
    if details:
        report["images"] = [
            {
                "platform": name if manifest.is_index else None,
                "complete": None,
                "missing": None,
                "layers": [{"digest": layer.digest, "size": layer.size} for layer in (image.layers if image else ())],
            }
            for name, image in images
        ]
    return report
