# Copyright (c) 2026, mirrorfleet contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import dataclasses
import json
import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any, Iterator

import pytest

from ansible_collections.mirrorfleet.registry.plugins.module_utils import guard
from ansible_collections.mirrorfleet.registry.plugins.module_utils.errors import RegistryFleetError
from ansible_collections.mirrorfleet.registry.plugins.module_utils.guard import METRICS, Guard, Settings, settings_of
from ansible_collections.mirrorfleet.registry.plugins.module_utils.image_pull import pull_image
from ansible_collections.mirrorfleet.registry.plugins.module_utils.registry_client import RegistryClient
from ansible_collections.mirrorfleet.registry.plugins.module_utils.storage import Store
from ansible_collections.mirrorfleet.registry.plugins.module_utils.store_figures import Figures
from ansible_collections.mirrorfleet.registry.plugins.module_utils.store_state import is_drained, load, locked
from ansible_collections.mirrorfleet.registry.tests.unit.conftest import Registry, StartRegistry, digest_of, image_of, layer_of, run_until_change, until
from ansible_collections.mirrorfleet.registry.tests.unit.plugins.module_utils.test_store_evict import DAY, used

MIB = 1 << 20
SIZE = 16 * MIB
IMAGES = [image_of(layer_of({"app": os.urandom(2 * MIB)})) for _number in range(6)]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 16 MiB, with metrics beside it."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount")
    (tmp_path / "disk").mkdir()
    (tmp_path / "metrics").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(tmp_path / "disk")], check=True)
    yield tmp_path / "disk"
    subprocess.run(["umount", "--lazy", str(tmp_path / "disk")], check=True)


@pytest.fixture
def cache(disk: Path, start_registry: StartRegistry, registry: Registry) -> Registry:
    """A cache on the disk, which six images fill to three quarters, the first used the longest ago."""
    for number, image in enumerate(IMAGES):
        registry.push(f"svc/{number}", "1", image)
    cache = start_registry(upstream=registry.url, storage={"filesystem": {"rootdirectory": str(disk / "central")}, "delete": {"enabled": False}})
    cache.root = disk / "central"
    with RegistryClient(cache.url) as client:
        for number, image in enumerate(IMAGES):
            pull_image(client, f"svc/{number}:1", "linux/amd64")
            cache.until_stored(image.digest, *image.blobs)
    for number in range(len(IMAGES)):
        used(cache, f"svc/{number}:1", 9 - number)
    return cache


def settings(cache: Registry, **others: Any) -> Settings:
    plain = Settings(
        {"central": str(cache.root)}, high_percent=90, low_percent=60, drain_percent=98, grace=3600, pinned=(), scrub_percent=0,
        scrub_bytes_per_second=100 * MIB, upload_age=86400, metrics=str(cache.root.parent.parent / "metrics"),
    )
    return dataclasses.replace(plain, **others)


def fill(disk: Path, percent: float) -> None:
    """Let something else take the disk's space, up to so much in use."""
    figures = os.statvfs(disk)
    wanted = int(figures.f_blocks * figures.f_frsize * percent / 100) - (figures.f_blocks - figures.f_bavail) * figures.f_frsize
    with open(disk / f"other{random.random()}", "wb") as file:
        file.write(bytes(max(0, wanted)))


def held(cache: Registry) -> list[str]:
    return Store(str(cache.root)).repositories()


def metrics(cache: Registry) -> dict[str, float]:
    lines = (cache.root.parent.parent / "metrics" / METRICS).read_text().splitlines()
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if not line.startswith("#")}


def test_a_run_that_has_nothing_to_do_says_one_line(cache: Registry, capsys: pytest.CaptureFixture[str]) -> None:
    assert Guard(settings(cache)).run() == 0 and len(held(cache)) == 6
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 1 and said[0].startswith("central 7") and said[0].endswith("% used")
    assert metrics(cache)['mirrorfleet_guard_store_size_bytes{cache="central"}'] == sum(image.size for image in IMAGES)


def test_the_disk_is_kept_below_the_high_watermark(cache: Registry, disk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fill(disk, 92)
    # 32 % of 16 MiB are three images of 2 MiB; the first is pinned.
    assert Guard(settings(cache, pinned=("svc/0:1",))).run() == 0
    assert held(cache) == ["svc/0", "svc/4", "svc/5"]
    said = capsys.readouterr().out
    assert "central: 92.0 % used: evicted 3 images" in said and "central: evicted svc/1:1" in said
    assert metrics(cache)['mirrorfleet_guard_evicted_images_total{cache="central"}'] == 3
    assert Guard(settings(cache)).run() == 0 and held(cache) == ["svc/0", "svc/4", "svc/5"]
    assert metrics(cache)['mirrorfleet_guard_evicted_images_total{cache="central"}'] == 3


def test_a_full_disk_takes_the_cache_out_of_service_and_back(cache: Registry, disk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fill(disk, 99)
    assert Guard(settings(cache, pinned=("svc/*",))).run() == 1
    assert is_drained(str(cache.root)) and len(held(cache)) == 6
    said = capsys.readouterr().out
    assert "<4>central: 99.0 % used: out of service until it is below 97 %" in said and "bytes are lacking still" in said
    assert metrics(cache)['mirrorfleet_guard_drained{cache="central"}'] == 1
    assert Guard(settings(cache)).run() == 0
    assert not is_drained(str(cache.root)) and "in service again" in capsys.readouterr().out
    assert metrics(cache)['mirrorfleet_guard_drained{cache="central"}'] == 0


def test_a_disk_without_a_byte_is_cleared(cache: Registry, disk: Path) -> None:
    with open(disk / "other", "wb", 0) as file, pytest.raises(OSError, match="No space left"):
        while True:
            file.write(bytes(4096))
    assert Guard(settings(cache)).run() == 0 and held(cache) == ["svc/4", "svc/5"]


def test_a_share_is_scrubbed_each_hour(cache: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = list(IMAGES[2].blobs)[1]
    with open(cache.blob_path(layer), "r+b") as file:
        file.write(b"damaged")
    os.utime(cache.blob_path(layer), (0, 0))
    size = sum(image.size for image in IMAGES)
    # A quarter of it an hour.
    wanted, began = settings(cache, scrub_percent=600.0), time.time()
    for hour in range(5):
        monkeypatch.setattr(time, "time", lambda hour=hour: began + hour * 3601)
        Guard(wanted).run()
        Guard(wanted).run()
        read = metrics(cache)['mirrorfleet_guard_scrubbed_bytes_total{cache="central"}']
        assert (hour + 1) * size / 4 <= read <= (hour + 1) * (size / 4 + 2.1 * MIB)
    assert metrics(cache)['mirrorfleet_guard_scrub_findings_total{cache="central"}'] == 1 and not cache.blob_path(layer).exists()
    assert metrics(cache)['mirrorfleet_guard_scrub_turn_timestamp_seconds{cache="central"}'] > 0


def test_what_a_run_has_no_time_for_the_next_ones_scrub(cache: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "_SCRUB_SECONDS", 0.5)
    wanted, size = settings(cache, scrub_percent=2400, scrub_bytes_per_second=2 * MIB), sum(image.size for image in IMAGES)
    read = []
    for _run in range(len(Store(str(cache.root)).blobs())):
        assert Guard(wanted).run() == 0
        read.append(metrics(cache)['mirrorfleet_guard_scrubbed_bytes_total{cache="central"}'])
        if read[-1] == size:
            break
    # A mebibyte at this rate, and the rest of the blob of two that was begun.
    assert read[-1] == size and len(read) >= 4 and all(later - former < 3.1 * MIB for former, later in zip([0, *read], read)), read
    # The next hour's share has its time.
    assert Guard(wanted).run() == 0 and metrics(cache)['mirrorfleet_guard_scrubbed_bytes_total{cache="central"}'] == size


def test_a_store_that_is_gone_stops_no_other(cache: Registry, disk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fill(disk, 92)
    wanted = settings(cache, caches={"gone": str(disk / "gone"), "central": str(cache.root)})
    assert Guard(wanted).run() == 1 and held(cache) == ["svc/3", "svc/4", "svc/5"]
    said = capsys.readouterr().out
    assert f"<4>gone: There is no directory {disk}/gone." in said and "gone broken, central " in said
    told = metrics(cache)
    assert told['mirrorfleet_guard_broken{cache="gone"}'] == 1 and told['mirrorfleet_guard_broken{cache="central"}'] == 0
    assert told['mirrorfleet_guard_evicted_images_total{cache="central"}'] == 3 and told["mirrorfleet_guard_last_run_problems"] == 1
    assert 'mirrorfleet_guard_filesystem_free_bytes{cache="gone"}' not in told
    (disk / "gone").mkdir()
    assert Guard(wanted).run() == 0 and metrics(cache)['mirrorfleet_guard_broken{cache="gone"}'] == 0


def test_a_file_that_can_not_be_removed_keeps_no_other_store_from_making_room(
    cache: Registry, disk: Path, start_registry: StartRegistry, registry: Registry, capsys: pytest.CaptureFixture[str],
) -> None:
    other = start_registry(upstream=registry.url, storage={"filesystem": {"rootdirectory": str(disk / "other")}, "delete": {"enabled": False}})
    other.root = disk / "other"
    with RegistryClient(other.url) as client:
        pull_image(client, "svc/5:1", "linux/amd64")
    other.until_stored(IMAGES[5].digest, *IMAGES[5].blobs)
    used(other, "svc/5:1", 5)
    fill(disk, 92)
    # The oldest image's layer, so that it is the first to go.
    layer = max(IMAGES[0].blobs, key=lambda digest: len(IMAGES[0].blobs[digest]))
    subprocess.run(["mount", "--bind", str(cache.blob_path(layer)), str(cache.blob_path(layer))], check=True)
    try:
        wanted = settings(cache, caches={"central": str(cache.root), "other": str(other.root)}, drain_percent=70, pinned=("svc/[1-4]:1",))
        assert Guard(wanted).run() == 1
    finally:
        subprocess.run(["umount", str(cache.blob_path(layer))], check=True)
    said, told = capsys.readouterr().out, metrics(cache)
    assert f"<4>central: {cache.blob_path(layer)} can't be removed: Device or resource busy" in said and "other: evicted svc/5:1" in said
    assert told['mirrorfleet_guard_broken{cache="central"}'] == 1 and told['mirrorfleet_guard_broken{cache="other"}'] == 0
    # The disk is as full as it is, whatever is broken.
    assert told['mirrorfleet_guard_drained{cache="central"}'] == told['mirrorfleet_guard_drained{cache="other"}'] == 1


def test_who_holds_the_lock_is_said(cache: Registry, disk: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "_LOCK_SECONDS", 0.1)
    fill(disk, 92)
    with locked(str(cache.root), "cache_evict", 0):
        assert Guard(settings(cache)).run() == 1
    assert "cache_evict (process" in capsys.readouterr().out and len(held(cache)) == 6


def test_when_the_disk_is_full_is_known_from_two_figures_on() -> None:
    figures = Figures()
    assert figures.days_until_full(10) is None
    figures.samples = [[0.0, 100.0]]
    assert figures.days_until_full(10) is None
    figures.samples.append([DAY, 120.0])
    assert figures.days_until_full(100) == 5
    figures.samples.append([2 * DAY, 90.0])
    assert figures.days_until_full(100) is None


@pytest.mark.parametrize("state", [{}, {"samples": 7}, {"samples": [["x", 1]], "counters": {}}, {"samples": [], "counters": [], "store_bytes": 1}])
def test_figures_that_are_none_begin_anew(tmp_path: Path, state: dict[str, Any]) -> None:
    (tmp_path / ".mirrorfleet").mkdir()
    (tmp_path / ".mirrorfleet/guard.json").write_text(json.dumps(state))
    assert Figures.of(str(tmp_path)) == Figures()


def test_settings_that_are_none_are_told(tmp_path: Path) -> None:
    for content in ("", "{}", '{"pinned": [], "grace": "1h", "upload_age": "x"}', "[]"):
        (tmp_path / "guard.json").write_text(content)
        with pytest.raises(RegistryFleetError):
            settings_of(str(tmp_path / "guard.json"))


GUARD = """
    from ansible_collections.mirrorfleet.registry.plugins.module_utils.guard import main
    main(sys.argv[2:])
    print(left)
"""


def test_a_run_that_is_killed_at_any_change_harms_nothing(cache: Registry, disk: Path) -> None:
    fill(disk, 92)
    (disk.parent / "guard.json").write_text(json.dumps({**dataclasses.asdict(settings(cache)), "grace": "1h", "upload_age": "1d", "scrub_percent": 2400}))

    def run(changes: int) -> subprocess.CompletedProcess[str]:
        """The guard on a store that is full, killed before one change more than that."""
        with RegistryClient(cache.url) as client:
            for number in range(6):
                pull_image(client, f"svc/{number}:1", "linux/amd64")
        for number, image in enumerate(IMAGES):
            cache.until_stored(image.digest, *image.blobs)
            used(cache, f"svc/{number}:1", 9 - number)
        until(lambda: not list(cache.v2.glob("repositories/svc/*/_uploads/*")))
        shutil.rmtree(cache.root / ".mirrorfleet", ignore_errors=True)
        return run_until_change(changes, GUARD, str(disk.parent / "guard.json"))

    whole = 1000 - int(run(1000).stdout.splitlines()[-1])
    left = []
    for changes in range(0, whole, max(1, whole // 20)):
        assert run(changes).returncode == -signal.SIGKILL
        left.append((len(Store(str(cache.root)).blobs()), (cache.root / ".mirrorfleet/scrub.json").exists()))
        for path in cache.v2.glob("blobs/sha256/*/*/data"):
            assert digest_of(path.read_bytes()) == f"sha256:{path.parent.name}"
        load(str(cache.root), "guard.json")
    # Before, amid and after the eviction, and after the scrub.
    print(f"blobs that were there at each kill of {whole} changes, and whether the scrub was done: {left}")
    assert len({blobs for blobs, _scrubbed in left}) > 5 and {scrubbed for _blobs, scrubbed in left} == {False, True}
    assert Guard(settings(cache)).run() == 0
    assert 100 - 100 * os.statvfs(disk).f_bavail / os.statvfs(disk).f_blocks <= 90
