# Copyright (c) 2026, mirrorfleet contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0
"""What modules that change a store tell of it: shaped for Ansible, and no longer than a person reads."""

from __future__ import annotations

import contextlib
from typing import Any, Iterable, Mapping

from ansible_collections.mirrorfleet.registry.plugins.module_utils.storage import Store
from ansible_collections.mirrorfleet.registry.plugins.module_utils.store_evict import Outcome
from ansible_collections.mirrorfleet.registry.plugins.module_utils.store_scrub import Budget, scrub
from ansible_collections.mirrorfleet.registry.plugins.module_utils.store_state import as_owner, locked
from ansible_collections.mirrorfleet.registry.plugins.module_utils.store_uploads import purge_uploads
from ansible_collections.mirrorfleet.registry.plugins.module_utils.times import utc

_EVICTED_SHOWN = _FINDINGS_SHOWN = 100
_KEPT_SHOWN = _IMAGES_SHOWN = 20


def names_and_paths(caches: Iterable[Mapping[str, Any]]) -> list[tuple[str, str]]:
    return [(cache["name"], cache["path"]) for cache in caches]


def evict_report(outcome: Outcome) -> dict[str, Any]:
    """What cache_evict documents of one cache."""
    return {
        "name": outcome.name,
        "path": outcome.path,
        "evicted": [
            {
                "image": image.name,
                "digest": image.digest,
                "bytes_freed": freed,
                "last_used": utc(image.last_used),
                "last_used_source": image.last_used_source,
            }
            for image, freed in outcome.evicted[:_EVICTED_SHOWN]
        ],
        "kept": [{"image": image.name, "why": why} for image, why in outcome.kept[:_KEPT_SHOWN]],
        "counts": {"evicted": len(outcome.evicted), "kept": len(outcome.kept)},
        "bytes_freed": outcome.bytes_before - outcome.bytes_after,
        "bytes": outcome.bytes_after,
        "bytes_lacking": outcome.bytes_lacking,
    }


def scrub_cache(name: str, path: str, budget: Budget, upload_age: float | None, lock_timeout: float, check_mode: bool) -> tuple[dict[str, Any], str]:
    """Scrub one cache: what cache_scrub documents of it, and why the next run will not know of this one, if so."""
    store = Store(path)
    with as_owner(store.root), contextlib.ExitStack() as stack:
        lock = None if check_mode else stack.enter_context(locked(store.root, "cache_scrub", lock_timeout))
        uploads = [] if upload_age is None else purge_uploads(store, upload_age, check_mode)
        result = scrub(store, budget, check_mode, lock.give_way if lock else lambda: None)
    return {
        "name": name,
        "path": store.path,
        "findings": [
            {"kind": each.kind, "path": each.path, "digest": each.digest, "images": list(each.images[:_IMAGES_SHOWN])}
            for each in result.findings[:_FINDINGS_SHOWN]
        ],
        "counts": {"findings": len(result.findings), "blobs": result.blobs, "uploads": len(uploads), "incomplete": len(result.incomplete_images)},
        "incomplete": result.incomplete_images[:_FINDINGS_SHOWN],
        "bytes": result.bytes,
        "seconds": round(result.seconds, 3),
        "complete": result.complete,
    }, result.state_problem
