# Copyright (c) 2026, mirrorfleet contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import json
import os
import re
import stat
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.community.general.plugins.filter.json_query import json_query
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.mirrorfleet.registry.plugins.module_utils.errors import RegistryFleetError
from ansible_collections.mirrorfleet.registry.plugins.module_utils.store_state import locked
from ansible_collections.mirrorfleet.registry.plugins.module_utils.times import parse_age
from ansible_collections.mirrorfleet.registry.plugins.modules import cache_evict, cache_info, cache_scrub
from ansible_collections.mirrorfleet.registry.tests.unit.conftest import Registry, RunModule, StartRegistry, digest_of, image_of, layer_of
from ansible_collections.mirrorfleet.registry.tests.unit.plugins.module_utils.test_store_evict import pull, stored, used

APP, WEB = (image_of(layer_of({name: os.urandom(5_000)})) for name in ("app", "web"))


@pytest.fixture
def cache(start_registry: StartRegistry, registry: Registry) -> Registry:
    for name, image in (("svc/app", APP), ("svc/web", WEB)):
        registry.push(name, "1", image)
    cache = start_registry(upstream=registry.url)
    pull(cache, "svc/app:1", "svc/web:1")
    stored(cache, APP, WEB)
    return cache


def run(run_module: RunModule, cache: Registry, main: Any = cache_evict.main, **options: Any) -> dict[str, Any]:
    return run_module(main, caches=[{"name": "central", "path": str(cache.root)}], **options)


def test_check_then_evict_then_again(cache: Registry, run_module: RunModule) -> None:
    planned = run(run_module, cache, images=["svc/app:1"], _ansible_check_mode=True, _ansible_diff=True)
    done = run(run_module, cache, images=["svc/app:1"], _ansible_diff=True)
    for answered in (planned, done):
        assert answered["changed"] is True and answered["diff"] == {"before": "central: svc/app:1\n", "after": ""}
    assert planned["caches"] == done["caches"]
    (report,) = done["caches"]
    assert report["bytes_freed"] == APP.size and report["bytes"] == WEB.size and report["counts"] == {"evicted": 1, "kept": 0}
    (evicted,) = report["evicted"]
    assert (evicted["image"], evicted["digest"], evicted["bytes_freed"], evicted["last_used_source"]) == ("svc/app:1", APP.digest, APP.size, "pull")
    assert re.fullmatch(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\dZ", evicted["last_used"])
    again = run(run_module, cache, images=["svc/app:1"])
    assert again["changed"] is False and again["caches"][0]["evicted"] == []


def test_a_name_that_is_in_no_cache_is_told(cache: Registry, run_module: RunModule, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    caches = [{"name": "central", "path": str(cache.root)}, {"name": "other", "path": str(tmp_path / "empty")}]
    names = ["svc/ap:1", "svc/app:1", f"svc/web@{WEB.digest}", APP.digest, "svc/web:2", "none/*"]
    for check_mode in (True, False):
        answered = run_module(cache_evict.main, caches=caches, images=names, pinned=["svc/web:1"], _ansible_check_mode=check_mode)
        assert answered["changed"] is True and answered["absent"] == ["svc/ap:1", "svc/web:2"]


def test_the_path_is_told_as_it_was_given(cache: Registry, run_module: RunModule, tmp_path: Path) -> None:
    (tmp_path / "alias").symlink_to(cache.root)
    for main, options in ((cache_evict.main, {"images": ["svc/app:1"]}), (cache_scrub.main, {}), (cache_info.main, {})):
        answered = run_module(main, caches=[{"name": "central", "path": str(tmp_path / "alias")}], **options)
        assert answered["caches"][0]["path"] == str(tmp_path / "alias"), main


def test_what_a_limit_lacks_is_told(cache: Registry, run_module: RunModule) -> None:
    used(cache, "svc/app:1", 3)
    answered = run(run_module, cache, max_bytes="1K", pinned=["svc/*"])
    assert answered["changed"] is False and answered["caches"][0]["bytes_lacking"] == APP.size + WEB.size - 1024


def test_root_acts_as_the_owner(cache: Registry, run_module: RunModule) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can be somebody else")
    for path in (cache.root, *cache.root.rglob("*")):
        os.chown(path, 65534, 65534)
    for path in cache.root.parents[:3]:
        path.chmod(0o755)
    assert run(run_module, cache, images=["svc/app:1"])["changed"] is True and os.geteuid() == 0
    assert {path.stat().st_uid for path in (cache.root / ".mirrorfleet").rglob("*")} == {65534}
    assert stat.S_IMODE((cache.root / ".mirrorfleet").stat().st_mode) == 0o711
    # What the owner may not remove, root does not either.
    (cache.v2 / "repositories/svc/web/_manifests/tags/1/current").chmod(0o500)
    failed = run(run_module, cache, images=["svc/web:1"])
    assert failed["failed"] and "tags/1/current/link can't be removed: Permission denied" in failed["msg"]


@pytest.mark.parametrize("main", [cache_evict.main, cache_scrub.main])
def test_who_holds_the_lock_is_told(cache: Registry, run_module: RunModule, main: Any) -> None:
    options: dict[str, Any] = {"images": ["svc/app:1"]} if main is cache_evict.main else {}
    with locked(str(cache.root), "the guard", 0):
        failed = run(run_module, cache, main, lock_timeout=0, **options)
        assert failed["failed"] and f"the guard (process {os.getpid()}, since" in failed["msg"]
        assert "failed" not in run(run_module, cache, main, lock_timeout=0, _ansible_check_mode=True, **options)


def test_a_scrub_finds_removes_and_tells(cache: Registry, run_module: RunModule) -> None:
    layer = list(APP.blobs)[1]
    cache.blob_path(layer).write_bytes(b"x" * len(APP.blobs[layer]))
    os.utime(cache.blob_path(layer), (0, 0))
    planned = run(run_module, cache, cache_scrub.main, _ansible_check_mode=True, _ansible_diff=True)
    done = run(run_module, cache, cache_scrub.main, _ansible_diff=True)
    path = str(cache.blob_path(layer).relative_to(cache.root))
    for answered in (planned, done):
        assert answered["changed"] is True and answered["diff"]["before"] == f"central: {path} (wrong bytes)\n"
        (report,) = answered["caches"]
        assert report["findings"] == [{"kind": "wrong bytes", "path": path, "digest": layer, "images": ["svc/app:1"]}]
        assert report["counts"] == {"findings": 1, "blobs": 6, "uploads": 0, "incomplete": 1} and report["incomplete"] == ["svc/app:1"]
        assert report["bytes"] == APP.size + WEB.size and report["complete"] is True
    again = run(run_module, cache, cache_scrub.main)
    assert again["changed"] is False and again["caches"][0]["findings"] == []
    pull(cache, "svc/app:1")


def test_uploads_go_by_their_age(cache: Registry, run_module: RunModule) -> None:
    upload = cache.v2 / "repositories/svc/app/_uploads/0a"
    upload.mkdir(parents=True)
    (upload / "data").write_bytes(b"half")
    for path in (upload / "data", upload):
        os.utime(path, (0, 0))
    assert run(run_module, cache, cache_scrub.main, max_bytes=0)["changed"] is False
    for check_mode in (True, False):
        answered = run(run_module, cache, cache_scrub.main, max_bytes=0, upload_age="1d", _ansible_check_mode=check_mode)
        assert answered["changed"] is True and answered["caches"][0]["counts"]["uploads"] == 1 and upload.exists() is check_mode
    assert run(run_module, cache, cache_scrub.main, max_bytes=0, upload_age="1d")["changed"] is False


@pytest.mark.parametrize("module", [cache_evict, cache_scrub])
def test_the_documented_queries_work_as_written(cache: Registry, run_module: RunModule, module: Any) -> None:
    (query,) = re.findall(r"community\.general\.json_query\('([^']+)'\)", json.dumps(yaml.safe_load(module.EXAMPLES)))
    layer = list(APP.blobs)[1]
    cache.blob_path(layer).write_bytes(b"x")
    os.utime(cache.blob_path(layer), (0, 0))
    answered = run(run_module, cache, module.main, **({"images": ["svc/app:1"]} if module is cache_evict else {}))
    expected: list[Any] = ["svc/app:1"] if module is cache_evict else [{"what": "truncated", "images": ["svc/app:1"]}]
    assert json_query(answered, query) == expected


@pytest.mark.parametrize(("options", "message"), [
    ({"unused_for": "30 days"}, "unused_for: '30 days' is no length of time. Write a number and one of s, m, h, d, w, like 30d."),
    ({"max_bytes": 0, "grace": "-1h"}, "grace: '-1h' is no length of time."),
    ({}, "This would evict everything."),
    ({"free_percent": 101}, "free_percent: 101: write a number from 0 to 100."),
    ({"main": cache_scrub.main, "max_seconds": -1}, "max_seconds: -1: write a number from 0."),
    ({"main": cache_scrub.main, "bytes_per_second": 0}, "bytes_per_second: 0: write a number from 1."),
    ({"main": cache_scrub.main, "upload_age": "soon"}, "upload_age: 'soon' is no length of time."),
])
def test_wrong_options_are_refused(cache: Registry, run_module: RunModule, options: dict[str, Any], message: str) -> None:
    failed = run(run_module, cache, **options)
    assert failed["failed"] and message in failed["msg"] and cache.blob_path(digest_of(APP.manifest)).exists()


@given(st.text(max_size=12))
def test_any_age_is_seconds_or_an_error_that_names_the_option(text: str) -> None:
    try:
        assert parse_age(text, "grace") == int(text[:-1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}[text[-1]]
    except RegistryFleetError as error:
        assert "grace" in str(error)


@given(st.integers(0, 999_999_999), st.sampled_from("smhdw"))
def test_an_age_is_read(number: int, unit: str) -> None:
    assert parse_age(f"{number}{unit}", "grace") == number * parse_age(f"1{unit}", "grace")
