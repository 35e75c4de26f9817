# Copyright (c) 2026, mirrorfleet contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0
"""cache_warm with the four programs of a mirror host, and everything that can break while it runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, Callable, Iterator

import pytest

from ansible_collections.mirrorfleet.registry.plugins.module_utils.haproxy import SERVERS, ask, servers
from ansible_collections.mirrorfleet.registry.plugins.module_utils.upstreams import PORT_OFFSETS
from ansible_collections.mirrorfleet.registry.plugins.modules import cache_warm
from ansible_collections.mirrorfleet.registry.tests.unit.conftest import COLLECTIONS, Image, RunModule, digest_of, image_of, layer_of, until
from ansible_collections.mirrorfleet.registry.tests.unit.roles.conftest import Render
from ansible_collections.mirrorfleet.registry.tests.unit.roles.test_broken_upstream import (
    KEEP_SECONDS,
    STALL_SECONDS,
    BreakingHandler,
    BreakingUpstream,
    Way,
    blob_path,
    ends_before_its_length,
    ends_in_chunks,
    has_wrong_bytes,
    is_a_page,
    is_reset,
    layer_digest,
    says_too_long_a_length,
    says_too_short_a_length,
    stalls,
    wrong_files,
)
from ansible_collections.mirrorfleet.registry.tests.unit.roles.test_upstream_gone import Mirror, Wan, mirror_host

REPOSITORY = "svc/app"
# What the coalescer keeps is wrong for KEEP_SECONDS. A run in that moment may get the right bytes while distribution stores the wrong ones, and waits 30
# seconds for them in the store before it says so.
HEALED_SECONDS = KEEP_SECONDS + 40
# An ansible.cfg of this machine must not decide; the module is what runs.
RUN = """
import json, sys
from ansible.module_utils.testing import patch_module_args
from ansible_collections.mirrorfleet.registry.plugins.modules import cache_warm
with patch_module_args(json.loads(sys.argv[1])):
    cache_warm.main()
"""

Warm = Callable[..., "dict[str, Any]"]


@pytest.fixture(scope="module")
def upstream() -> Iterator[BreakingUpstream]:
    upstream = BreakingUpstream()
    yield upstream
    upstream.stop()


@pytest.fixture(scope="module")
def wan(upstream: BreakingUpstream) -> Iterator[Wan]:
    wan = Wan(upstream.port)
    yield wan
    wan.mend()


@pytest.fixture(scope="module")
def started(render: Render, base: Path, wan: Wan) -> Iterator[Mirror]:
    variables = {
        "haproxy_front_timeout_stall": STALL_SECONDS, "__fetch_coalescer_timeout_stall": STALL_SECONDS + 1, "fetch_coalescer_keep_seconds": KEEP_SECONDS,
    }
    with mirror_host(render, base, f"http://127.0.0.1:{wan.port}", **variables) as running:
        yield running


@pytest.fixture
def mirror(started: Mirror, upstream: BreakingUpstream) -> Mirror:
    upstream.ways.clear()
    until(started.in_reach)
    return started


def arguments(mirror: Mirror, images: tuple[str, ...], **more: Any) -> dict[str, Any]:
    port = mirror.edge.ports["central"]
    return {
        "images": list(images), "url": f"http://127.0.0.1:{port}", "path": str(mirror.cache.root), "free_bytes": 0, "retries": 0,
        "upstream_url": f"http://127.0.0.1:{port + PORT_OFFSETS['front']}", **more,
    }


@pytest.fixture
def warm(mirror: Mirror, run_module: RunModule) -> Warm:
    return lambda *images, **more: run_module(cache_warm.main, **arguments(mirror, images, **more))


def fresh_image(layers: int = 1, size: int = 400_000) -> Image:
    return image_of(*(layer_of({"fresh": os.urandom(size)}) for _number in range(layers)))


def published(upstream: BreakingUpstream, tag: str, image: Image, repository: str = REPOSITORY) -> str:
    upstream.publish(image, tag, repository)
    return f"{repository}:{tag}"


def stored(mirror: Mirror, image: Image) -> bool:
    return all(mirror.cache.blob_path(digest).exists() for digest in (image.digest, *image.blobs))


def wan_bytes(mirror: Mirror) -> int:
    """What the rewrite front has received so far."""
    return sum(each["wan_bytes"] for each in servers(ask(mirror.front.socket, SERVERS)))


def slowly(seconds: float) -> Way:
    """Answers in ten parts, over so many seconds."""
    def way(handler: BreakingHandler, content: bytes) -> None:
        handler.say(b"", Content_Length=str(len(content)))
        for number in range(10):
            handler.wfile.write(content[len(content) * number // 10:len(content) * (number + 1) // 10])
            time.sleep(seconds / 10)
    return way


def little_by_little_until(over: threading.Event) -> Way:
    """Answers 8 kB now and then, which no program on the way keeps back, until something has happened, and then all the rest."""
    def way(handler: BreakingHandler, content: bytes) -> None:
        handler.say(b"", Content_Length=str(len(content)))
        sent = 0
        while not over.wait(0.5):
            handler.wfile.write(content[sent:sent + 8000])
            sent += 8000
        handler.wfile.write(content[sent:])
    return way


def after(condition: Callable[[], object]) -> Way:
    """Answers rightly, once something has happened."""
    def way(handler: BreakingHandler, content: bytes) -> None:
        until(condition)
        handler.say(content, Content_Length=str(len(content)))
    return way


def test_each_byte_crosses_the_wan_once(mirror: Mirror, upstream: BreakingUpstream, warm: Warm) -> None:
    base = layer_of({"base": os.urandom(3_000_000)})
    images = [image_of(base, layer_of({"own": os.urandom(500_000)})) for _number in range(3)]
    names = [published(upstream, f"once{number}", image) for number, image in enumerate(images)]
    before = wan_bytes(mirror)
    foretold = warm(*names, _ansible_check_mode=True)
    # Manifests, and what HTTP says beside them.
    assert wan_bytes(mirror) - before < 10_000 and not any(stored(mirror, image) for image in images)
    assert not (mirror.cache.v2 / "repositories" / REPOSITORY / "_manifests/tags/once0").exists()
    before = wan_bytes(mirror)
    said = warm(*names)
    distinct = len(base) + sum(image.size - len(base) for image in images)
    # HAProxy counts when all is over, which is after the next one has it all.
    until(lambda: wan_bytes(mirror) - before >= distinct, 5)
    crossed = wan_bytes(mirror) - before
    assert said["counts"]["complete"] == 3 and all(stored(mirror, image) for image in images)
    assert said["bytes_fetched"] == foretold["bytes_fetched"] == distinct <= crossed <= 1.01 * distinct
    assert not warm(*names)["changed"]
    print(f"amplification {crossed / distinct:.4f}")


@pytest.mark.parametrize("way", [
    is_reset, ends_in_chunks, ends_before_its_length, says_too_long_a_length, says_too_short_a_length, stalls, is_a_page, has_wrong_bytes,
])
def test_a_blob_that(mirror: Mirror, upstream: BreakingUpstream, warm: Warm, way: Way) -> None:
    """Its image's error says so, the other image comes, nothing wrong is kept, and a run soon after the upstream is well brings the rest."""
    broken, good = fresh_image(), fresh_image()
    names = [published(upstream, f"{kind}-{way.__name__}", image) for kind, image in (("broken", broken), ("good", good))]
    upstream.ways[blob_path(layer_digest(broken), REPOSITORY)] = way
    failed = warm(*names)
    assert failed["failed"] and failed["counts"] == {"images": 2, "complete": 1, "failed": 1, "left": 0}
    why = failed["images"][0]["error"]
    assert f"{names[0]}: {why}" in failed["msg"] and layer_digest(broken) in why
    # Which of these it is, the four programs decide by who noticed first.
    assert any(each in why for each in (
        "the connection broke off", "the body has", "something other than a blob", "could not keep this blob a moment ago", "upstream central",
    ))
    assert stored(mirror, good) and not mirror.cache.blob_path(layer_digest(broken)).exists()
    upstream.ways.clear()
    until(lambda: "failed" not in warm(*names), HEALED_SECONDS)
    assert stored(mirror, broken) and not wrong_files(mirror)
    print(why)


def test_a_manifest_that_lies(mirror: Mirror, upstream: BreakingUpstream, warm: Warm) -> None:
    told, other = fresh_image(), fresh_image()
    names = published(upstream, "told", told), published(upstream, "honest", other)
    for target in ("told", told.digest):
        upstream.answers[f"/v2/{REPOSITORY}/manifests/{target}"].body = other.manifest
    failed = warm(*names)
    assert failed["counts"] == {"images": 2, "complete": 1, "failed": 1, "left": 0}, failed
    assert names[0] in failed["msg"] and names[1] not in failed["msg"] and not wrong_files(mirror)


@pytest.mark.parametrize("way", ["refuses", "answers 503", "hangs"])
def test_the_upstream_is_gone(mirror: Mirror, upstream: BreakingUpstream, wan: Wan, warm: Warm, way: str) -> None:
    """What is there is complete, what is not says why, and a run after its return brings it."""
    there, absent = fresh_image(), fresh_image()
    names = [published(upstream, f"{kind}-{way}".replace(" ", "-"), image) for kind, image in (("there", there), ("absent", absent))]
    assert warm(names[0])["changed"]
    wan.cut(way)
    failed = warm(*names)
    wan.mend()
    assert [image["complete"] for image in failed["images"]] == [True, False] and not failed["changed"]
    assert failed["msg"].startswith(f"1 of 2 images are not in the cache as a whole.\n{names[1]}: GET ")
    assert "upstream central" in failed["msg"] or 'says "down"' in failed["msg"]
    until(mirror.in_reach)
    assert warm(*names)["counts"]["complete"] == 2


def test_the_upstream_goes_in_the_middle(mirror: Mirror, upstream: BreakingUpstream, wan: Wan, warm: Warm) -> None:
    image = fresh_image(3, 1_000_000)
    name = published(upstream, "middle", image)
    for digest in image.blobs:
        upstream.ways[blob_path(digest, REPOSITORY)] = slowly(3)
    threading.Timer(1, wan.cut, ["refuses"]).start()
    failed = warm(name)
    wan.mend()
    assert failed["counts"]["failed"] == 1 and not wrong_files(mirror)
    upstream.ways.clear()
    until(mirror.in_reach)
    until(lambda: warm(name).get("counts", {}).get("complete") == 1, HEALED_SECONDS)
    assert stored(mirror, image) and not wrong_files(mirror)


def test_killed_at_many_points(mirror: Mirror, upstream: BreakingUpstream, warm: Warm) -> None:
    """Whatever the moment: nothing wrong is left, and the next run completes it and asks for nothing that is there."""
    came_before, environment = [], {**os.environ, "PYTHONPATH": str(COLLECTIONS)}
    # After so many blobs were asked for, and so many tenths of a second.
    for blobs, tenths in ((0, 0), (0, 10), (1, 0), (1, 2), (2, 1), (3, 4), (4, 0), (4, 3), (5, 2), (6, 1), (7, 0), (7, 3)):
        image = fresh_image(6, 300_000)
        name = published(upstream, f"killed-{blobs}-{tenths}", image, "svc/killed")
        for digest in image.blobs:
            upstream.ways[blob_path(digest, "svc/killed")] = slowly(0.4)
        upstream.broke = 0
        running = subprocess.Popen([sys.executable, "-c", RUN, json.dumps(arguments(mirror, (name,)))], stdout=subprocess.DEVNULL, env=environment)
        until(lambda blobs=blobs: upstream.broke >= blobs)
        time.sleep(tenths / 10)
        running.kill()
        running.wait()
        before = {digest for digest in image.blobs if mirror.cache.blob_path(digest).exists()}
        said = warm(name)
        assert said["counts"]["complete"] == 1 and stored(mirror, image), said
        assert said["images"][0]["bytes_fetched"] + said["images"][0]["bytes_present"] == image.size
        assert said["images"][0]["bytes_present"] >= sum(len(image.blobs[digest]) for digest in before)
        came_before.append(len(before))
    assert not wrong_files(mirror)
    until(lambda: not list(mirror.cache.v2.glob("repositories/svc/killed/_uploads/*")))
    # The kills were spread over the run, else they showed little.
    assert len(set(came_before)) > 2, came_before
    print(f"blobs that were there at each kill: {came_before}")


def test_the_cache_finishes_what_is_under_way_when_the_time_is_over(mirror: Mirror, upstream: BreakingUpstream, warm: Warm) -> None:
    # At the upstream's rate it takes more than a minute.
    image, over = fresh_image(1, 1_200_000), threading.Event()
    name = published(upstream, "late", image)
    upstream.ways[blob_path(layer_digest(image), REPOSITORY)] = little_by_little_until(over)
    try:
        said = warm(name, max_seconds=1)
        # However long it took, it did not wait for the blob.
        assert "failed" not in said and said["counts"]["left"] == 1 and said["seconds"] >= 1, said
        assert not mirror.cache.blob_path(layer_digest(image)).exists()
    finally:
        over.set()
    until(lambda: stored(mirror, image))
    assert warm(name)["images"][0]["bytes_fetched"] == 0


def test_a_slow_reader_does_not_slow_the_wan(mirror: Mirror, upstream: BreakingUpstream) -> None:
    """Why bytes_per_second spaces blobs instead of reading slowly: distribution stores by a request of its own."""
    # As much as the coalescer of the tests joins.
    image = fresh_image(1, 7_000_000)
    published(upstream, "slow", image)
    before = wan_bytes(mirror)
    url = f"http://127.0.0.1:{mirror.edge.ports['central']}{blob_path(layer_digest(image))}"
    # For ten minutes.
    reader = subprocess.Popen(["curl", "--silent", "--limit-rate", "12k", "--output", "/dev/null", url])
    try:
        seconds = until(mirror.cache.blob_path(layer_digest(image)).exists, 120)
        assert reader.poll() is None
    finally:
        reader.kill()
        reader.wait()
    until(lambda: wan_bytes(mirror) - before >= 7_000_000, 5)
    crossed = wan_bytes(mirror) - before
    print(f"{crossed / 1e6:.1f} MB crossed and were stored in {seconds:.1f} s, while the reader took 0.012 MB/s")
    assert 7_000_000 <= crossed <= 7_100_000


@pytest.fixture
def small_disk(mirror: Mirror) -> Iterator[Path]:
    """The store on a disk of 6 MB."""
    root = mirror.cache.root
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m,mode=0755", "tmpfs", str(root)], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"a small disk needs root: {done.stderr.strip()}")
    yield root
    subprocess.run(["umount", "--lazy", str(root)], check=True)


def test_the_disk_is_full(mirror: Mirror, upstream: BreakingUpstream, warm: Warm, small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fits, too_large, more = fresh_image(2, 1_000_000), fresh_image(3, 2_500_000), fresh_image(1, 500_000)
    names = [published(upstream, f"disk{number}", image) for number, image in enumerate((fits, too_large, more))]
    failed = warm(*names, parallel=1)
    assert [image["complete"] for image in failed["images"]] == [True, False, True], failed
    assert f"the disk of {small_disk} has room for" in failed["images"][1]["error"] and "Make room, or warm less." in failed["images"][1]["error"]
    assert stored(mirror, fits) and stored(mirror, more)

    # Somebody else takes the room meanwhile. What was served and not kept is an error, and nothing more is asked for in vain.
    monkeypatch.setattr("ansible_collections.mirrorfleet.registry.plugins.module_utils.cache_warm._KEPT_SECONDS", 3)
    monkeypatch.setattr("ansible_collections.mirrorfleet.registry.plugins.module_utils.cache_warm.shutil.disk_usage", lambda _path: os_usage(10**12))
    late = [fresh_image(1, 5_000_000), fresh_image(1, 5_000_000)]
    names = [published(upstream, f"taken{number}", image) for number, image in enumerate(late)]
    # Manifests come side by side. While the second one's is under way, the first one's blob must not take its room.
    upstream.ways[blob_path(layer_digest(late[0]), REPOSITORY)] = after(mirror.cache.blob_path(late[1].digest).exists)
    failed = warm(*names, parallel=1)
    assert failed["counts"]["failed"] == 2 and "came whole, but is not in" in failed["images"][0]["error"]
    assert "It was left" in failed["images"][1]["error"] and upstream.seen[-1].target != blob_path(layer_digest(late[1]), REPOSITORY)
    assert not wrong_files(mirror)


def os_usage(free: int) -> Any:
    """A disk that seems to have room, as it had a moment ago."""
    return type("usage", (), {"free": free})


def test_what_came_is_what_the_digest_says(mirror: Mirror, upstream: BreakingUpstream, warm: Warm) -> None:
    image = fresh_image(3)
    warm(published(upstream, "whole", image))
    assert all(digest_of(mirror.cache.blob_path(digest).read_bytes()) == digest for digest in image.blobs)
