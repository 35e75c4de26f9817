# Copyright (c) 2026, mirrorfleet contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import calendar
import json
import os
import re
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.community.general.plugins.filter.json_query import json_query

from ansible_collections.mirrorfleet.registry.plugins.module_utils import cache_report
from ansible_collections.mirrorfleet.registry.plugins.module_utils.cache_report import parse_expvar, parse_metrics
from ansible_collections.mirrorfleet.registry.plugins.module_utils.storage import Store
from ansible_collections.mirrorfleet.registry.plugins.modules import cache_info
from ansible_collections.mirrorfleet.registry.tests.unit.conftest import (
    Image,
    Registry,
    RunModule,
    StartRegistry,
    digest_of,
    free_port,
    image_of,
    index_of,
    layer_of,
)
from ansible_collections.mirrorfleet.registry.tests.unit.plugins.module_utils.test_store_evict import pull, used

BASE = layer_of({"base": os.urandom(200_000)})
APP = image_of(BASE, layer_of({"app": b"app"}))
WEB = image_of(BASE, layer_of({"web": b"web"}))
ARM = image_of(layer_of({"app": b"arm"}), architecture="arm64")


def blobs_of(*images: Image) -> dict[str, int]:
    """All blobs of images with their sizes, shared ones once."""
    return {digest: len(blob) for image in images for digest, blob in {**image.blobs, image.digest: image.manifest}.items()}


def seconds(utc: str) -> float:
    return calendar.timegm(time.strptime(utc, "%Y-%m-%dT%H:%M:%SZ"))


@pytest.fixture
def cache(start_registry: StartRegistry, registry: Registry) -> Registry:
    """A cache that APP, WEB and amd64 of an index were pulled through."""
    registry.push("svc/app", "1", APP)
    registry.push("svc/web", "1", WEB)
    registry.push_index("svc/multi", "2", {"linux/amd64": APP, "linux/arm64": ARM})
    cache = start_registry(upstream=registry.url)
    for image in ("svc/app:1", "svc/app:1", "svc/web:1", "svc/multi:2"):
        pull(cache, image)
    cache.until_stored(*blobs_of(APP, WEB))
    return cache


def info(run_module: RunModule, cache: Registry, **options: Any) -> dict[str, Any]:
    answered = run_module(cache_info.main, caches=[{"name": "central", "path": str(cache.root), "debug_url": cache.debug_url}], **options)
    assert answered["changed"] is False
    (report,) = answered["caches"]
    return dict(report)


def test_what_a_cache_holds_is_told(cache: Registry, run_module: RunModule) -> None:
    report = info(run_module, cache)
    index = digest_of(index_of({"linux/amd64": APP, "linux/arm64": ARM}))
    index_size = len(index_of({"linux/amd64": APP, "linux/arm64": ARM}))
    for repository in report["repositories"]:
        for tag in repository["tags"]:
            assert tag.pop("last_used_source") == "pull" and abs(seconds(tag.pop("last_used")) - time.time()) < 60
    assert report["repositories"] == [
        {"name": name, "untagged_count": 0, "tags": [{"tag": tag, "digest": digest, "size": size, "platforms": ["linux/amd64"], "complete": True}]}
        for name, tag, digest, size in (
            ("svc/app", "1", APP.digest, APP.size), ("svc/multi", "2", index, APP.size + index_size), ("svc/web", "1", WEB.digest, WEB.size)
        )
    ]
    assert report["counts"] == {"repositories": 3, "tags": 3, "manifests": 3, "blobs": len(blobs_of(APP, WEB)) + 1, "uploads": 0, "problems": 0}
    assert report["bytes"] == sum(blobs_of(APP, WEB).values()) + index_size
    assert (report["problems"], report["upload_bytes"]) == ([], 0)
    usage = shutil.disk_usage(cache.root)
    assert report["disk"]["total"] == usage.total and abs(report["disk"]["free"] - usage.free) < 1 << 30


def test_the_figures_are_distributions(cache: Registry, run_module: RunModule) -> None:
    report = info(run_module, cache)
    assert report["proxy_unknown"] == ""
    # Five manifests were asked for: by tag four, one of them twice, and the index's.
    manifests = report["proxy"]["manifests"]
    assert (manifests["requests"], manifests["hits"], manifests["misses"]) == (5, 1, 4)
    assert manifests["bytes_pulled"] == 2 * len(APP.manifest) + len(WEB.manifest) + len(index_of({"linux/amd64": APP, "linux/arm64": ARM}))
    blobs = report["proxy"]["blobs"]
    assert blobs["requests"] >= 12 and blobs["bytes_pushed"] >= 4 * len(BASE)
    assert (blobs["hits"], blobs["misses"], blobs["bytes_pulled"]) == (None, None, None)


def test_the_figures_of_3_x_are_read() -> None:
    # As metrics.NewNamespace("registry", "proxy") and registry/proxy/proxymetrics.go of 3.x name and label them.
    lines = ["# TYPE registry_proxy_hits_total counter", 'go_info{version="go1.23"} 1']
    for kind in ("blob", "manifest"):
        for number, name in enumerate(("requests", "hits", "misses", "pulled_bytes", "pushed_bytes")):
            lines.append(f'registry_proxy_{name}_total{{type="{kind}"}} {number + (1.2e+09 if kind == "blob" else 0):g}')
    blobs = {"requests": 1_200_000_000, "hits": 1_200_000_000, "misses": 1_200_000_000, "bytes_pulled": 1_200_000_000, "bytes_pushed": 1_200_000_000}
    assert parse_metrics("\n".join(lines).encode()) == {
        "blobs": blobs, "manifests": {"requests": 0, "hits": 1, "misses": 2, "bytes_pulled": 3, "bytes_pushed": 4},
    }


@pytest.mark.parametrize("body", [
    b"", b"{}", b"[]", b"<html>", b"\xff", b'{"registry": {"proxy": null}}', b'{"registry": {"proxy": {"blobs": 1, "manifests": {}}}}',
    b'registry_proxy_hits_total{type="blob"} NaN',
])
def test_figures_that_are_none_are_none(body: bytes) -> None:
    assert parse_metrics(body) is None and parse_expvar(body) is None


def test_figures_that_cannot_be_had_are_null_with_the_reason(cache: Registry, registry: Registry, run_module: RunModule) -> None:
    nothing = f"http://127.0.0.1:{free_port()}"
    for url, reason in (("", "no debug_url"), (nothing, "connection refused"), (cache.url, "does not answer as the debug endpoint"), ("x", "no URL")):
        report = run_module(cache_info.main, caches=[{"name": "central", "path": str(cache.root), "debug_url": url}])["caches"][0]
        assert report["proxy"] is None and reason in report["proxy_unknown"] and report["counts"]["tags"] == 3


def test_a_pattern_chooses_repositories(cache: Registry, run_module: RunModule) -> None:
    whole = info(run_module, cache)
    for pattern, names in (("svc/[aw]*", ["svc/app", "svc/web"]), ("*", ["svc/app", "svc/multi", "svc/web"]), ("app", [])):
        report = info(run_module, cache, repository=pattern)
        assert [repository["name"] for repository in report["repositories"]] == names
        assert report["counts"]["repositories"] == len(names) and (report["bytes"], report["counts"]["blobs"]) == (whole["bytes"], whole["counts"]["blobs"])


def test_details_name_layers_and_what_is_missing(cache: Registry, run_module: RunModule) -> None:
    app, multi, _web = info(run_module, cache, details=True)["repositories"]
    layers = [{"digest": digest, "size": len(blob)} for digest, blob in list(APP.blobs.items())[1:]]
    held = {"platform": "linux/amd64", "complete": True, "missing": [], "layers": layers}
    assert app["tags"][0]["images"] == [held]
    assert multi["tags"][0]["images"] == [held, {"platform": "linux/arm64", "complete": False, "missing": [ARM.digest], "layers": []}]
    assert app["untagged"] == []


@pytest.mark.parametrize("harm", ["absent", "truncated", "empty"])
def test_a_blob_that_is_not_whole_makes_its_images_incomplete(cache: Registry, run_module: RunModule, harm: str) -> None:
    path = cache.blob_path(digest_of(BASE))
    if harm == "absent":
        path.unlink()
    else:
        os.truncate(path, 0 if harm == "empty" else len(BASE) - 1)
    report = info(run_module, cache, details=True)
    for repository in report["repositories"]:
        (tag,) = repository["tags"]
        assert (tag["complete"], tag["platforms"], tag["images"][0]["missing"]) == (False, [], [digest_of(BASE)])


def test_a_manifest_that_is_gone_or_broken_makes_its_image_incomplete(cache: Registry, run_module: RunModule) -> None:
    cache.blob_path(APP.digest).unlink()
    cache.blob_path(WEB.digest).write_bytes(b"{")
    for repository in info(run_module, cache)["repositories"]:
        assert repository["tags"][0]["complete"] is False and repository["tags"][0]["platforms"] == []


def test_images_without_a_tag_are_counted(start_registry: StartRegistry, registry: Registry, run_module: RunModule) -> None:
    registry.push("svc/app", "1", APP)
    cache = start_registry(upstream=registry.url)
    pull(cache, f"svc/app@{APP.digest}")
    cache.until_stored(*blobs_of(APP))
    (repository,) = info(run_module, cache, details=True)["repositories"]
    assert (repository["tags"], repository["untagged_count"]) == ([], 1)
    assert (repository["untagged"][0]["digest"], repository["untagged"][0]["complete"]) == (APP.digest, True)


def test_what_is_odd_is_told_and_no_more_than_20_times(cache: Registry, run_module: RunModule) -> None:
    for number in range(30):
        (cache.v2 / f"repositories/svc/note{number}.txt").write_text("x")
    report = info(run_module, cache)
    assert report["counts"]["problems"] == 30 and len(report["problems"]) == 20
    assert re.fullmatch(r"docker/registry/v2/repositories/svc/note\d+\.txt", report["problems"][0]["path"])
    assert report["problems"][0]["why"] == "a file that distribution does not put there"


def test_a_store_that_is_written_to_is_told_of(start_registry: StartRegistry, registry: Registry, run_module: RunModule) -> None:
    images = [image_of(layer_of({"app": bytes([number])})) for number in range(10)]
    cache = start_registry(upstream=registry.url)
    for number, image in enumerate(images):
        registry.push(f"svc/{number}", "1", image)

    def pull_all() -> None:
        for number in range(len(images)):
            pull(cache, f"svc/{number}:1")

    pulling = threading.Thread(target=pull_all)
    pulling.start()
    while pulling.is_alive():
        assert "msg" not in info(run_module, cache)
    cache.until_stored(*blobs_of(*images))
    report = info(run_module, cache)
    assert [repository["tags"][0]["complete"] for repository in report["repositories"]] == [True] * len(images)


def test_the_default_is_every_cache_of_the_host(cache: Registry, run_module: RunModule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The path is fixed on a mirror host, and not this machine's to write to.
    monkeypatch.setattr(cache_report, "CACHES", str(tmp_path / "caches"))
    monkeypatch.setattr(cache_report, "CONFIGURATIONS", str(tmp_path / "etc"))
    failed = run_module(cache_info.main)
    assert failed["failed"] and f"There is no cache in {tmp_path}/caches. Run this on a mirror host, or give caches." in failed["msg"]
    (tmp_path / "caches/lost+found").mkdir(parents=True)
    (tmp_path / "caches/new").mkdir()
    (tmp_path / "caches/central").symlink_to(cache.root)
    central, new = run_module(cache_info.main)["caches"]
    assert (central["name"], central["counts"]["tags"]) == ("central", 3)
    assert (new["name"], new["counts"]["tags"], new["bytes"]) == ("new", 0, 0)
    # Where pull_through_cache_storage is another one, the guard knows it.
    (tmp_path / "other/central").mkdir(parents=True)
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/guard.json").write_text(json.dumps({"caches": {"central": f"{tmp_path}/other/central"}}))
    assert [each["path"] for each in run_module(cache_info.main)["caches"]] == [f"{tmp_path}/other/central"]
    (tmp_path / "etc/guard.json").write_text("[]")
    assert len(run_module(cache_info.main)["caches"]) == 2


def test_a_path_that_is_none_is_told(run_module: RunModule, tmp_path: Path) -> None:
    failed = run_module(cache_info.main, caches=[{"name": "central", "path": str(tmp_path / "absent")}])
    assert failed["failed"] and f"no directory {tmp_path}/absent" in failed["msg"]


def test_the_documented_query_works_as_written(cache: Registry, run_module: RunModule) -> None:
    documented = json.dumps(yaml.safe_load(cache_info.EXAMPLES))
    query, other = re.findall(r"(?:held|old) \| community\.general\.json_query\('([^']+)'\)", documented)
    cache.blob_path(list(WEB.blobs)[2]).unlink()
    held = run_module(cache_info.main, caches=[{"name": "central", "path": str(cache.root)}])
    assert json_query(held, query) == [{"name": "svc/web", "tags": ["1"]}]
    assert json_query(held, other) == [{"cache": "central", "oldest": "svc/app:1", "days": None}]


def test_images_are_chosen_by_name_and_by_their_last_use(cache: Registry, run_module: RunModule) -> None:
    for image, days in (("svc/web:1", 40), ("svc/app:1", 20)):
        used(cache, image, days)
    os.utime(f"{Store(str(cache.root)).tag_path('svc/multi', '2')}/current/link")
    whole = info(run_module, cache)
    assert [whole[key]["image"] for key in ("least_recently_used", "most_recently_used")] == ["svc/web:1", "svc/multi:2"]
    for options, names in (
        ({"image": "svc/*:1"}, ["svc/app", "svc/web"]), ({"unused_for": "30d"}, ["svc/web"]), ({"unused_for": "3d", "image": "*app*"}, ["svc/app"]),
        ({"unused_for": "90d"}, []),
    ):
        report = info(run_module, cache, **options)
        assert [repository["name"] for repository in report["repositories"]] == names
        assert report["counts"]["repositories"] == report["counts"]["tags"] == len(names) and report["bytes"] == whole["bytes"]
    assert report["least_recently_used"] is None
    failed = run_module(cache_info.main, unused_for="old")
    assert failed["failed"] and "unused_for: 'old' is no length of time" in failed["msg"]


def test_expiry_is_told_from_the_configuration(cache: Registry, run_module: RunModule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert info(run_module, cache)["expiry"] == "unknown"
    # The path is fixed on a mirror host, and not this machine's to write to.
    monkeypatch.setattr(cache_report, "CONFIGURATIONS", str(tmp_path))
    for enabled, ttl, expected in (("false", "0s", "off"), ("true", "0s", "on"), ("false", "168h", "on")):
        (tmp_path / "central.yml").write_text(
            f"storage:\n  filesystem:\n    rootdirectory: {cache.root}\n  delete:\n    enabled: {enabled}\nproxy:\n  ttl: {ttl}\n"
        )
        assert info(run_module, cache)["expiry"] == expected


def test_days_until_full_are_from_the_guards_figures(cache: Registry, run_module: RunModule) -> None:
    assert info(run_module, cache)["disk"]["days_until_full"] is None and info(run_module, cache)["drained"] is False
    free = shutil.disk_usage(cache.root).free
    state = {"samples": [[0, 0], [86400, free / 4]], "counters": {}, "store_bytes": 0, "scrubbed_at": 0, "turned_at": 0}
    (cache.root / ".mirrorfleet").mkdir()
    (cache.root / ".mirrorfleet/guard.json").write_text(json.dumps(state))
    (cache.root / ".mirrorfleet/drained").touch()
    report = info(run_module, cache)
    assert report["disk"]["days_until_full"] == pytest.approx(4, abs=0.2) and report["drained"] is True and report["problems"] == []


def test_an_upload_that_waits_is_told_with_its_age(cache: Registry, run_module: RunModule) -> None:
    assert info(run_module, cache)["oldest_upload"] is None
    upload = cache.v2 / "repositories/svc/app/_uploads/0a"
    upload.mkdir(parents=True)
    (upload / "data").write_bytes(b"half")
    os.utime(upload / "data", (86400, 86400))
    report = info(run_module, cache)
    assert (report["oldest_upload"], report["counts"]["uploads"], report["upload_bytes"]) == ("1970-01-02T00:00:00Z", 1, 4)
