# Copyright (c) 2026, mirrorfleet contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from typing import Iterator

import pytest

from ansible_collections.mirrorfleet.registry.plugins.module_utils import store_state
from ansible_collections.mirrorfleet.registry.plugins.module_utils.image_manifest import MAX_MANIFEST_BYTES
from ansible_collections.mirrorfleet.registry.plugins.module_utils.storage import Store
from ansible_collections.mirrorfleet.registry.plugins.module_utils.store_scrub import Budget, Scrubbed, scrub
from ansible_collections.mirrorfleet.registry.plugins.module_utils.store_state import LockedError, load, locked, save
from ansible_collections.mirrorfleet.registry.plugins.module_utils.store_uploads import purge_uploads
from ansible_collections.mirrorfleet.registry.tests.unit.conftest import (
    COLLECTIONS,
    Registry,
    StartRegistry,
    digest_of,
    image_of,
    index_of,
    layer_of,
    run_until_change,
    until,
)
from ansible_collections.mirrorfleet.registry.tests.unit.plugins.module_utils.test_store_evict import APP, ARM, BASE, OWN, WEB, blobs_of, pull, stored

IMAGES = ("svc/app:1", "svc/web:1", "other/own:1", "svc/multi:2")
INDEX = digest_of(index_of({"linux/amd64": APP, "linux/arm64": ARM}))


@pytest.fixture
def cache(start_registry: StartRegistry, registry: Registry) -> Registry:
    for name, image in (("svc/app", APP), ("svc/web", WEB), ("other/own", OWN)):
        registry.push(name, "1", image)
    registry.push_index("svc/multi", "2", {"linux/amd64": APP, "linux/arm64": ARM})
    cache = start_registry(upstream=registry.url)
    pull(cache, *IMAGES)
    stored(cache, APP, WEB, OWN)
    age(cache)
    return cache


def age(cache: Registry) -> None:
    """Let everything be two minutes old: what is younger may be half written."""
    for path in cache.v2.rglob("*"):
        if path.is_file():
            os.utime(path, (time.time() - 120,) * 2)


def run(cache: Registry, budget: Budget | None = None, check_mode: bool = False) -> Scrubbed:
    return scrub(Store(str(cache.root)), budget or Budget(), check_mode)


def kinds(result: Scrubbed) -> list[tuple[str, str]]:
    return sorted((each.kind, each.digest) for each in result.findings)


def harm(path: Path, how: str) -> None:
    content = path.read_bytes()
    if how == "wrong bytes":
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    else:
        os.truncate(path, 0 if how == "empty" else len(content) - 1)


def test_a_sound_store_is_read_whole_and_left_alone(cache: Registry) -> None:
    before = {path: path.stat().st_mtime for path in cache.v2.rglob("*")}
    result = run(cache)
    sizes = Store(str(cache.root)).blobs()
    assert (result.blobs, result.bytes, result.findings, result.complete) == (len(sizes), sum(sizes.values()), [], True)
    assert {path: path.stat().st_mtime for path in cache.v2.rglob("*")} == before


@pytest.mark.parametrize("how", ["wrong bytes", "truncated", "empty"])
def test_a_damaged_layer_is_found_removed_and_healed(cache: Registry, how: str) -> None:
    harm(cache.blob_path(digest_of(BASE)), how)
    age(cache)
    planned = run(cache, check_mode=True)
    assert cache.blob_path(digest_of(BASE)).exists()
    result = run(cache)
    assert kinds(result) == kinds(planned) == [(how, digest_of(BASE))]
    assert result.findings[0].images == tuple(sorted(IMAGES)) and result.incomplete_images == sorted(IMAGES) == planned.incomplete_images
    assert not cache.blob_path(digest_of(BASE)).exists() and digest_of(BASE) not in Store(str(cache.root)).layers("svc/app")
    pull(cache, *IMAGES)
    cache.until_stored(digest_of(BASE))
    assert cache.blob_path(digest_of(BASE)).read_bytes() == BASE and run(cache).findings == []


@pytest.mark.parametrize("how", ["wrong bytes", "truncated", "empty"])
@pytest.mark.parametrize(("digest", "image"), [(APP.digest, "svc/app:1"), (INDEX, "svc/multi:2")])
def test_a_damaged_manifest_goes_with_what_leads_to_it(cache: Registry, digest: str, image: str, how: str) -> None:
    harm(cache.blob_path(digest), how)
    age(cache)
    result = run(cache)
    assert [each.digest for each in result.findings] == [digest] and image in result.findings[0].images
    repository = image.partition(":")[0]
    assert digest not in Store(str(cache.root)).revisions(repository) and Store(str(cache.root)).tags(repository) == {}
    pull(cache, *IMAGES)
    stored(cache, APP, WEB, OWN)
    age(cache)
    assert run(cache).findings == [] and Store(str(cache.root)).tags(repository) != {}


def test_links_to_nothing_and_links_that_are_none_go(cache: Registry) -> None:
    store = Store(str(cache.root))
    own = list(WEB.blobs)[2]
    cache.blob_path(own).unlink()
    Path(f"{store.layer_path('svc/app', digest_of(BASE))}/link").write_text("")
    Path(f"{store.revision_path('other/own', OWN.digest)}/link").write_text(APP.digest)
    Path(f"{store.tag_path('other/own', '1')}/current/link").write_text("nonsense")
    age(cache)
    result = run(cache)
    assert kinds(result) == sorted([("link to nothing", own), ("broken link", digest_of(BASE)), ("broken link", OWN.digest), ("broken link", "")])
    assert result.incomplete_images == ["other/own@" + OWN.digest, "svc/app:1", "svc/web:1"]
    pull(cache, *IMAGES)
    stored(cache, APP, WEB, OWN)
    age(cache)
    assert run(cache).findings == []


def test_what_is_being_written_is_left_for_the_next_time(cache: Registry) -> None:
    store = Store(str(cache.root))
    harm(cache.blob_path(APP.digest), "truncated")
    Path(f"{store.tag_path('svc/web', '1')}/current/link").write_text("")
    assert run(cache).findings == []
    # A layer never is: it was renamed to its place.
    layer = f"sha256:{'d' * 64}"
    cache.blob_path(layer).parent.mkdir(parents=True)
    cache.blob_path(layer).write_bytes(bytes(MAX_MANIFEST_BYTES + 1))
    assert kinds(run(cache)) == [("wrong bytes", layer)]
    age(cache)
    assert kinds(run(cache)) == sorted([("truncated", APP.digest), ("broken link", "")])


def test_the_next_run_goes_on_where_one_ended(cache: Registry) -> None:
    digests = sorted(Store(str(cache.root)).blobs())
    read = []
    for _number in range(len(digests)):
        result = run(cache, Budget(max_bytes=1))
        assert result.blobs == 1
        read.append(load(str(cache.root), "scrub.json")["cursor"])
    assert read == digests and result.complete
    assert run(cache, Budget(max_bytes=1), check_mode=True).blobs == 1 and load(str(cache.root), "scrub.json")["cursor"] == digests[-1]
    assert run(cache, Budget(max_seconds=0)).blobs == 0 and run(cache, Budget(max_bytes=0)).blobs == 0
    # What was removed meanwhile, or a state that is none, does no harm.
    (cache.root / ".mirrorfleet/scrub.json").write_text('{"cursor": 7}')
    assert run(cache).blobs == len(digests)
    (cache.root / ".mirrorfleet/scrub.json").write_text("{")
    assert run(cache).complete


def test_a_rate_is_kept(cache: Registry) -> None:
    size = sum(Store(str(cache.root)).blobs().values())
    began = time.monotonic()
    result = run(cache, Budget(bytes_per_second=size))
    assert result.bytes == size and 0.9 < time.monotonic() - began < 30
    # It can be told to end in the middle of a blob, whose turn then stays.
    before = load(str(cache.root), "scrub.json")
    asked = iter([False] + [True] * 1000)
    assert run(cache, Budget(stop=lambda: next(asked))).blobs == 0 and load(str(cache.root), "scrub.json") == before


def test_a_full_disk_and_a_state_that_can_not_be_written(cache: Registry, tiny: Path) -> None:
    shutil.copytree(cache.root, tiny / "store")
    damaged = tiny / "store" / cache.blob_path(digest_of(BASE)).relative_to(cache.root)
    with open(tiny / "filler", "wb", 0) as filler, pytest.raises(OSError, match="No space left"):
        while True:
            filler.write(bytes(4096))
    store = Store(str(tiny / "store"))
    with locked(store.root, "a test", 0):
        result = scrub(store, Budget())
        assert "can't be written: No space left on device" in result.state_problem and result.findings == []
        with open(damaged, "r+b") as file:
            file.write(b"damaged")
        os.utime(damaged, (time.time() - 120,) * 2)
        assert [each.digest for each in scrub(store, Budget()).findings] == [digest_of(BASE)]
    assert not damaged.exists()


@pytest.fixture
def tiny(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount")
    (tmp_path / "tiny").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(tmp_path / "tiny")], check=True)
    yield tmp_path / "tiny"
    subprocess.run(["umount", str(tmp_path / "tiny")], check=True)


SCRUB = """
    from ansible_collections.mirrorfleet.registry.plugins.module_utils.storage import Store
    from ansible_collections.mirrorfleet.registry.plugins.module_utils.store_scrub import Budget, scrub
    scrub(Store(sys.argv[2]), Budget())
"""


def test_a_run_that_is_killed_anywhere_harms_nothing_and_is_finished(cache: Registry) -> None:
    for kills in range(100):
        for digest in (digest_of(BASE), APP.digest):
            harm(cache.blob_path(digest), "wrong bytes")
        age(cache)
        shutil.rmtree(cache.root / ".mirrorfleet", ignore_errors=True)
        done = run_until_change(kills, SCRUB, str(cache.root))
        assert done.returncode in (0, -9)
        age(cache)
        run(cache)
        for path in cache.v2.glob("blobs/sha256/*/*/data"):
            assert digest_of(path.read_bytes()) == f"sha256:{path.parent.name}"
        pull(cache, *IMAGES)
        stored(cache, APP, WEB, OWN)
        age(cache)
        assert run(cache).findings == [] and Store(str(cache.root)).blobs().keys() == blobs_of(APP, WEB, OWN) | {INDEX}
        if done.returncode == 0:
            break
    assert kills > 12


def test_uploads_go_when_nobody_writes_them(cache: Registry) -> None:
    old, young, being_written = (cache.v2 / f"repositories/svc/web/_uploads/{name}" for name in ("0a", "0b", "0c"))
    for upload in (old, young, being_written):
        (upload / "hashstates/sha256").mkdir(parents=True)
        (upload / "hashstates/sha256/0").write_text("x")
        (upload / "startedat").write_text("2026-01-01T00:00:00Z")
        (upload / "data").write_bytes(b"half")
    for upload in (old, being_written):
        for path in (*upload.rglob("*"), upload):
            os.utime(path, (time.time() - 90_000,) * 2)
    store = Store(str(cache.root))
    with open(being_written / "data", "ab"):
        assert [upload.id for upload in purge_uploads(store, 86_400, check_mode=True)] == ["0a"] and old.exists()
        assert [upload.id for upload in purge_uploads(store, 86_400)] == ["0a"]
    assert not old.exists() and young.exists() and being_written.exists()


def test_the_lock_is_one_and_says_who_has_it(tmp_path: Path) -> None:
    with locked(str(tmp_path), "cache_scrub", 0):
        began = time.monotonic()
        message = rf"cache_scrub \(process {os.getpid()}, since 20\d\d-.*Z\) changes this store, and has not been done within 0.3 seconds.*lock_timeout"
        with pytest.raises(LockedError, match=message), locked(str(tmp_path), "cache_evict", 0.3):
            pass
        assert 0.3 <= time.monotonic() - began < 30
    with locked(str(tmp_path), "cache_evict", 0):
        pass


def test_who_waits_for_the_lock_of_a_long_run_is_let_in(cache: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_state, "_TURN_SECONDS", 0.2)
    root, ended, results = str(cache.root), threading.Event(), []

    def scrub_for_weeks() -> None:
        with locked(root, "cache_scrub", 0) as lock:
            results.append(scrub(Store(root), Budget(bytes_per_second=1, stop=ended.is_set), give_way=lock.give_way))

    scrubbing = threading.Thread(target=scrub_for_weeks)
    scrubbing.start()
    for _number in range(3):
        until(lambda: load(root, "holder.json").get("who") == "cache_scrub")
        with locked(root, "cache_evict", 30):
            assert load(root, "holder.json")["who"] == "cache_evict" and scrubbing.is_alive()
    # However slow it is, it can be told to end.
    ended.set()
    scrubbing.join(30)
    assert [result.blobs for result in results] == [0]


def test_a_lock_ends_with_its_process(tmp_path: Path) -> None:
    code = f"""
        import time
        from ansible_collections.mirrorfleet.registry.plugins.module_utils.store_state import locked
        with locked({str(tmp_path)!r}, "the guard", 0):
            print("held", flush=True)
            time.sleep(60)
    """
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(COLLECTIONS)}
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == b"held\n"
        with pytest.raises(LockedError, match="the guard"), locked(str(tmp_path), "cache_evict", 0):
            pass
        process.kill()
        process.wait()
    with locked(str(tmp_path), "cache_evict", 0):
        pass


def test_what_is_saved_is_there_again_and_anything_else_is_nothing(tmp_path: Path) -> None:
    assert load(str(tmp_path), "x.json") == {} and save(str(tmp_path), "x.json", {"a": 1}) == "" and load(str(tmp_path), "x.json") == {"a": 1}
    for content in (b"", b"[]", b"\xff", b"[" * 100_000):
        (tmp_path / ".mirrorfleet/x.json").write_bytes(content)
        assert load(str(tmp_path), "x.json") == {}
    (tmp_path / "outside").write_text(json.dumps({"a": 2}))
    (tmp_path / ".mirrorfleet/x.json").unlink()
    (tmp_path / ".mirrorfleet/x.json").symlink_to(tmp_path / "outside")
    assert load(str(tmp_path), "x.json") == {} and save(str(tmp_path), "x.json", {"a": 3}) == ""
    assert json.loads((tmp_path / "outside").read_text()) == {"a": 2} and load(str(tmp_path), "x.json") == {"a": 3}


def test_labels_of_any_language_are_read(start_registry: StartRegistry, registry: Registry) -> None:
    registry.push("svc/label", "1", image := image_of(layer_of({"x": b"y"}), labels={"naïve": "日本"}))
    cache = start_registry(upstream=registry.url)
    pull(cache, "svc/label:1")
    cache.until_stored(*blobs_of(image))
    assert run(cache).findings == []
