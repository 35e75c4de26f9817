# Copyright (c) 2026, mirrorfleet contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0
"""cache_warm against distribution in proxy mode. With the four programs of a mirror host: tests/unit/roles/test_cache_warm.py."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, Callable

import pytest

from ansible_collections.mirrorfleet.registry.plugins.module_utils.image_manifest import host_platform
from ansible_collections.mirrorfleet.registry.plugins.modules import cache_warm
from ansible_collections.mirrorfleet.registry.tests.unit.conftest import (
    COLLECTIONS,
    Answers,
    Image,
    Registry,
    RunModule,
    Server,
    StartRegistry,
    answer,
    answers_of,
    digest_of,
    free_port,
    image_of,
    index_of,
    layer_of,
    until,
)
from ansible_collections.mirrorfleet.registry.tests.unit.plugins.module_utils.test_store_evict import SCHEDULE

PASSWORD = "s3cret-p4ss"
Warm = Callable[..., "dict[str, Any]"]


@pytest.fixture
def cache(start_registry: StartRegistry, registry: Registry) -> Registry:
    """A cache of `registry`."""
    return start_registry(upstream=registry.url)


@pytest.fixture
def warm(cache: Registry, registry: Registry, run_module: RunModule) -> Warm:
    """Warm `cache`; check mode asks `registry`."""
    given = {"url": cache.url, "path": str(cache.root), "upstream_url": registry.url, "free_bytes": 0}
    return lambda *images, **more: run_module(cache_warm.main, images=list(images), **{**given, **more})


def layer(size: int = 100_000) -> bytes:
    return layer_of({"content": os.urandom(size)})


def files(root: Path) -> dict[str, tuple[int, int]]:
    """All that is below a directory, with sizes and times of change."""
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in root.rglob("*") if path.name != SCHEDULE}


def test_what_is_missing_comes_and_nothing_comes_twice(warm: Warm, registry: Registry, cache: Registry) -> None:
    base = layer()
    one, two = image_of(base, layer()), image_of(base, layer())
    registry.push("svc/one", "1", one)
    registry.push("svc/two", "1", two)
    said = warm("svc/one:1", "svc/two:1", "svc/one:1", f"svc/one@{one.digest}")
    assert said["changed"] and said["counts"] == {"images": 3, "complete": 3, "failed": 0, "left": 0}
    assert all(cache.blob_path(digest).exists() for image in (one, two) for digest in (image.digest, *image.blobs))
    first, second, again = said["images"]
    assert (first["image"], first["digest"], first["bytes_fetched"], first["bytes_present"]) == ("svc/one:1", one.digest, one.size, 0)
    assert (second["bytes_fetched"], second["bytes_present"]) == (two.size - len(base), len(base))
    assert again["digest"] == one.digest and again["bytes_fetched"] <= len(one.manifest)
    distinct = {**one.blobs, **two.blobs}
    assert said["bytes_fetched"] in [len(one.manifest) * times + len(two.manifest) + sum(map(len, distinct.values())) for times in (1, 2)]
    once_more = warm("svc/one:1", "svc/two:1")
    assert not once_more["changed"]
    assert [(image["bytes_fetched"], image["bytes_present"], image["complete"]) for image in once_more["images"]] == [(0, one.size, True), (0, two.size, True)]


def test_check_mode_stores_nothing_and_foretells_what_comes(warm: Warm, registry: Registry, cache: Registry) -> None:
    base = layer()
    one, two = image_of(base, layer()), image_of(base, layer())
    registry.push("svc/one", "1", one)
    registry.push("svc/two", "1", two)
    warm("svc/one:1")
    cache.until_stored(*one.blobs, repository="svc/one")
    before = files(cache.root)
    foretold = warm("svc/one:1", "svc/two:1", _ansible_check_mode=True)
    assert foretold["changed"] and files(cache.root) == before
    assert [image["complete"] for image in foretold["images"]] == [True, False]
    came = warm("svc/one:1", "svc/two:1")
    for key in ("image", "digest", "bytes_fetched", "bytes_present", "error"):
        assert [image[key] for image in foretold["images"]] == [image[key] for image in came["images"]]
    assert not warm("svc/one:1", "svc/two:1", _ansible_check_mode=True)["changed"]


def test_platforms_are_chosen(warm: Warm, registry: Registry, cache: Registry) -> None:
    images = {name: image_of(layer(), architecture=name.split("/")[1]) for name in ("linux/amd64", "linux/arm64/v8", "linux/arm/v7")}
    index = registry.push_index("svc/app", "1", images)
    size = len(index_of(images))
    amd64, arm64, arm = images.values()
    own = warm("svc/app:1")
    assert own["images"][0]["platforms"] == [host_platform()] and own["images"][0]["digest"] == index
    both = warm("svc/app:1", platforms=["linux/arm64", "linux/amd64", "linux/s390x"])["images"][0]
    assert both["platforms"] == ["linux/amd64", "linux/arm64"] and both["platforms_missing"] == ["linux/s390x"] and both["complete"]
    assert both["bytes_present"] >= size and both["bytes_fetched"] + both["bytes_present"] == size + amd64.size + arm64.size
    assert not cache.blob_path(arm.digest).exists()
    every = warm("svc/app:1", platforms=["all"])["images"][0]
    assert every["bytes_fetched"] == arm.size and every["complete"]
    failed = warm("svc/app:1", platforms=["linux/s390x"])
    assert failed["failed"] and "svc/app:1: the image is not made for linux/s390x, but for linux/amd64, linux/arm/v7, linux/arm64" in failed["msg"]
    assert failed["images"][0]["platforms_missing"] == ["linux/s390x"]


def test_one_images_failure_stops_no_other(warm: Warm, registry: Registry, cache: Registry) -> None:
    good, broken = image_of(layer()), image_of(layer(), layer())
    registry.push("svc/good", "1", good)
    registry.push("svc/broken", "1", broken)
    gone = list(broken.blobs)[1]
    registry.blob_path(gone).unlink()
    said = warm("svc/broken:1", "svc/absent:1", "svc/good:1", retries=0)
    assert said["failed"] and said["changed"] and said["msg"].startswith("2 of 3 images are not in the cache as a whole.\nsvc/broken:1: ")
    assert f"blobs/{gone}: 404 Not Found" in said["msg"] and "\nsvc/absent:1: GET " in said["msg"]
    assert [(image["complete"], bool(image["error"])) for image in said["images"]] == [(False, True), (False, True), (True, False)]
    assert said["counts"] == {"images": 3, "complete": 1, "failed": 2, "left": 0}
    assert all(cache.blob_path(digest).exists() for digest in good.blobs)
    told = warm("svc/broken:1", "svc/good:1", retries=0, fail_on="never")
    assert "failed" not in told and told["counts"]["failed"] == 1


def test_a_blob_that_one_repository_lost_comes_from_another(warm: Warm, registry: Registry, cache: Registry) -> None:
    base = layer()
    one, two = image_of(base), image_of(base, layer())
    registry.push("svc/one", "1", one)
    registry.push("svc/two", "1", two)
    shutil.rmtree(registry.v2 / "repositories/svc/one/_layers/sha256" / digest_of(base).partition(":")[2])
    assert registry.request("GET", f"/v2/svc/one/blobs/{digest_of(base)}")[0] == 404
    assert warm("svc/one:1", "svc/two:1", retries=0)["counts"]["complete"] == 2


def test_so_many_blobs_at_once(serve: Callable[[Answers], Server], run_module: RunModule, tmp_path: Path) -> None:
    """They are counted where they are answered."""
    image = image_of(*(layer(1000) for _number in range(5)))
    under_way, most, lock = [0], [0], threading.Lock()
    together = threading.Barrier(2)

    def answers(path: str) -> bytes:
        said = answers_of(image)[path]
        if "/blobs/" in path:
            with lock:
                under_way[0] += 1
                most[0] = max(most[0], under_way[0])
            together.wait(10)
            time.sleep(0.1)
            with lock:
                under_way[0] -= 1
        keep(tmp_path, said.partition(b"\r\n\r\n")[2])
        return said

    run_module(cache_warm.main, images=["svc/app:1"], url=serve(answers).url, path=str(tmp_path), parallel=2, free_bytes=0)
    assert most[0] == 2


def keep(store: Path, content: bytes) -> None:
    """What distribution does with a blob or manifest."""
    encoded = digest_of(content).partition(":")[2]
    place = store / "docker/registry/v2/blobs/sha256" / encoded[:2] / encoded
    place.mkdir(parents=True, exist_ok=True)
    (place / "data").write_bytes(content)


def test_the_time_is_over(warm: Warm, registry: Registry, cache: Registry) -> None:
    """Blobs are spread over time, so the second image's turn would come after five minutes."""
    one, two = image_of(layer(300_000)), image_of(layer(300_000))
    registry.push("svc/one", "1", one)
    registry.push("svc/two", "1", two)
    said = warm("svc/one:1", "svc/two:1", bytes_per_second=1000, max_seconds=4, parallel=1)
    assert "failed" not in said and said["counts"] == {"images": 2, "complete": 1, "failed": 0, "left": 1} and said["seconds"] < 60
    assert [image["complete"] for image in said["images"]] == [True, False]
    assert said["bytes_left"] == said["images"][1]["bytes_left"] == two.size - len(two.manifest)
    failed = warm("svc/one:1", "svc/two:1", bytes_per_second=1, max_seconds=0.5, fail_on="incomplete", parallel=1)
    assert failed["failed"] and "svc/two:1: the time was over" in failed["msg"]
    rest = warm("svc/one:1", "svc/two:1")
    assert rest["counts"]["complete"] == 2 and rest["images"][0]["bytes_fetched"] == 0


def test_the_rate_is_kept_in_the_mean(warm: Warm, registry: Registry) -> None:
    image = image_of(*(layer(200_000) for _number in range(5)))
    registry.push("svc/app", "1", image)
    # The last blob's own time is not waited for.
    shortest = sum(sorted(map(len, image.blobs.values()))[:-1]) / 400_000
    assert warm("svc/app:1", bytes_per_second=400_000)["seconds"] >= shortest > 1.9


def test_what_is_removed_meanwhile_is_not_called_complete(warm: Warm, registry: Registry, cache: Registry, tmp_path: Path) -> None:
    old, new = image_of(layer()), image_of(layer(), layer())
    registry.push("svc/old", "1", old)
    registry.push("svc/new", "1", new)
    warm("svc/old:1")
    blob = list(old.blobs)[1]

    def evict() -> None:
        progress = tmp_path / "progress/progress.json"
        until(lambda: progress.exists() and json.loads(progress.read_text())["images_done"] == 1)
        cache.blob_path(blob).unlink()

    evicting = threading.Thread(target=evict)
    evicting.start()
    failed = warm("svc/old:1", "svc/new:1", bytes_per_second=20_000, progress=str(tmp_path / "progress"))
    evicting.join()
    assert failed["failed"] and failed["counts"] == {"images": 2, "complete": 1, "failed": 1, "left": 0}
    assert f"svc/old:1: {blob}, which was there, was removed meanwhile" in failed["msg"]
    assert warm("svc/old:1", "svc/new:1")["counts"]["complete"] == 2


def test_no_room(warm: Warm, registry: Registry, cache: Registry) -> None:
    image = image_of(layer())
    registry.push("svc/app", "1", image)
    failed = warm("svc/app:1", free_bytes=10**18)
    assert failed["failed"] and f"the disk of {cache.root} has room for 0" in failed["msg"] and "Make room, or warm less." in failed["msg"]
    assert not any(cache.blob_path(digest).exists() for digest in image.blobs)


def test_a_cache_that_keeps_nothing_is_not_asked_for_more(warm: Warm, registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As when path is another cache's store."""
    monkeypatch.setattr("ansible_collections.mirrorfleet.registry.plugins.module_utils.cache_warm._KEPT_SECONDS", 1)
    image = image_of(layer())
    registry.push("svc/app", "1", image)
    other = tmp_path / "other"
    other.mkdir()
    failed = warm("svc/app:1", path=str(other))
    assert f"came whole, but is not in {other} 1 seconds later" in failed["msg"] and "Is path the store of what answers at" in failed["msg"]


@pytest.mark.parametrize(("arguments", "says"), [
    ({"images": ["svc/app:1", "SVC/app:1:2", "also/BAD"]}, "'also/BAD' is no image reference"),
    ({"platforms": ["amd64"]}, "platforms: 'amd64' is no platform. Write os/architecture"),
    ({"parallel": 0}, "parallel: 0: write a number from 1."),
    ({"bytes_per_second": "fast"}, "'bytes_per_second' is of type str and we were unable to convert to bytes"),
    ({"bytes_per_second": 0}, "bytes_per_second: 0: write a number from 1."),
    ({"max_seconds": -1}, "max_seconds: -1: write a number from 0."),
    ({"path": "/absent"}, "There is no directory /absent"),
    ({"url": "mirror:5000"}, "Write https://host[:port]"),
    ({"username": "reader"}, "parameters are required together"),
    ({"_ansible_check_mode": True}, "upstream_url: check mode needs it"),
])
def test_a_bad_argument_is_told_before_anything_is_asked(run_module: RunModule, tmp_path: Path, arguments: dict[str, Any], says: str) -> None:
    given = {"images": ["svc/app:1"], "url": f"http://127.0.0.1:{free_port()}", "path": str(tmp_path), "retries": 0}
    failed = run_module(cache_warm.main, **{**given, **arguments})
    assert failed["failed"] and says in failed["msg"]


def test_no_password_is_told(start_registry: StartRegistry, run_module: RunModule, serve: Callable[[Answers], Server], tmp_path: Path) -> None:
    server = serve(lambda _path: answer(401, b"who is " + PASSWORD.encode(), WWW_Authenticate='Basic realm="x"'))
    failed = run_module(cache_warm.main, images=["svc/app:1"], url=server.url, path=str(tmp_path), username="reader", password=PASSWORD, retries=0)
    assert "The given username and password were refused" in failed["msg"] and PASSWORD not in json.dumps(failed)


def test_it_tells_how_far_it_is(warm: Warm, registry: Registry, tmp_path: Path) -> None:
    image = image_of(*(layer(200_000) for _number in range(3)))
    registry.push("svc/app", "1", image)
    directory, seen, modes = tmp_path / "progress", [], set()

    def look() -> None:
        until((directory / "progress.json").exists)
        modes.update(stat.S_IMODE(path.stat().st_mode) for path in (directory, directory / "progress.json"))
        while directory.exists():
            try:
                seen.append(json.loads((directory / "progress.json").read_text()))
            except FileNotFoundError:
                return
            time.sleep(0.02)

    looking = threading.Thread(target=look)
    looking.start()
    before = os.umask(0o077)
    warm("svc/app:1", bytes_per_second=200_000, progress=str(directory))
    os.umask(before)
    looking.join()
    # The action plugin reads it without becoming root.
    assert modes == {0o755, 0o644}
    total = sum(map(len, image.blobs.values()))
    assert {state["bytes"] for state in seen} <= {0, total} and [state["bytes_done"] for state in seen] == sorted(state["bytes_done"] for state in seen)
    assert any(0 < state["bytes_done"] < total and state["images_done"] == 0 for state in seen)
    assert not directory.exists()


RUN = """
import sys
from ansible_collections.mirrorfleet.registry.plugins.module_utils.cache_warm import Limits, warm
image, url, path, progress = sys.argv[1:]
warm([image], [], url, path, Limits(bytes_per_second=1000), progress=progress)
"""


def test_what_killed_runs_left_the_next_one_removes(warm: Warm, registry: Registry, cache: Registry, tmp_path: Path) -> None:
    for name in ("svc/killed", "svc/running", "svc/other"):
        registry.push(name, "1", image_of(layer(), layer()))
    (tmp_path / "mirrorfleet-progress-outside").symlink_to(tmp_path / "registry")
    (tmp_path / "registry").mkdir(exist_ok=True)
    killed, running = tmp_path / "mirrorfleet-progress-1", tmp_path / "mirrorfleet-progress-2"
    processes = []
    for image, directory in (("svc/killed:1", killed), ("svc/running:1", running)):
        command = [sys.executable, "-c", RUN, image, cache.url, str(cache.root), str(directory)]
        processes.append(subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(COLLECTIONS)}))
        until((directory / "progress.json").exists)
    try:
        processes[0].kill()
        processes[0].wait()
        assert killed.exists()
        assert warm("svc/other:1", progress=str(tmp_path / "mirrorfleet-progress-3"))["changed"]
        assert sorted(path.name for path in tmp_path.glob("mirrorfleet-progress-*")) == ["mirrorfleet-progress-2", "mirrorfleet-progress-outside"]
        assert (running / "progress.json").exists() and (tmp_path / "registry").is_dir()
    finally:
        processes[1].kill()
        processes[1].wait()


def test_progress_goes_nowhere_else(warm: Warm, registry: Registry, tmp_path: Path) -> None:
    """A directory that is there may be somebody else's."""
    registry.push("svc/app", "1", image_of(layer()))
    (tmp_path / "progress").mkdir()
    assert warm("svc/app:1", progress=str(tmp_path / "progress"))["changed"]
    assert list((tmp_path / "progress").iterdir()) == []


def test_what_an_index_names_may_be_gone(warm: Warm, registry: Registry) -> None:
    images = {"linux/amd64": image_of(layer()), "linux/arm64": image_of(layer())}
    registry.push_index("svc/app", "1", images)
    shutil.rmtree(registry.v2 / "repositories/svc/app/_manifests/revisions/sha256" / images["linux/arm64"].digest.partition(":")[2])
    failed = warm("svc/app:1", platforms=["all"], retries=0)
    assert failed["failed"] and images["linux/arm64"].digest in failed["msg"]
    assert warm("svc/app:1", platforms=["linux/amd64"], retries=0)["images"][0]["complete"]


def test_an_index_in_an_index(serve: Callable[[Answers], Server], run_module: RunModule, tmp_path: Path) -> None:
    inner = index_of({"linux/amd64": image_of(layer())})
    outer = index_of({host_platform(): Image(inner, {}, "application/vnd.oci.image.index.v1+json")})

    def answers(path: str) -> bytes:
        content = outer if path.endswith("/1") else inner
        keep(tmp_path, content)
        return answer(200, content, Content_Type="application/vnd.oci.image.index.v1+json")

    failed = run_module(cache_warm.main, images=["svc/app:1"], url=serve(answers).url, path=str(tmp_path))
    assert "is an index again, which no engine pulls" in failed["msg"]
