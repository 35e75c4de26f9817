# Copyright (c) 2026, mirrorfleet contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0
"""The keeper on the stores of real registries, which are pushed to meanwhile."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Callable, Iterator

import pytest

from ansible_collections.mirrorfleet.registry.plugins.module_utils import keeper
from ansible_collections.mirrorfleet.registry.plugins.module_utils.image_manifest import MEDIA_TYPES
from ansible_collections.mirrorfleet.registry.plugins.module_utils.retention import Rule
from ansible_collections.mirrorfleet.registry.plugins.module_utils.storage import Store
from ansible_collections.mirrorfleet.registry.plugins.module_utils.store_aside import Aside
from ansible_collections.mirrorfleet.registry.tests.unit.conftest import (
    COLLECTIONS,
    UNPRIVILEGED,
    Image,
    Registry,
    StartRegistry,
    digest_of,
    image_of,
    index_of,
    layer_of,
    until,
)

DAY = 86400.0
GRACE = 2 * DAY
INDEX = "application/vnd.oci.image.index.v1+json"
# How long the keeper and pushes get in each other's way, and what the keeper gives to who has just found a file on a busy machine.
PUSH_SECONDS = 20.0
SETTLE = 1.0


@pytest.fixture
def registry(start_registry: StartRegistry) -> Registry:
    """A plain registry, which gives a manifest as it is."""
    return start_registry(headers={"Accept": ", ".join(MEDIA_TYPES)})


def age(registry: Registry, days: float, below: str = "") -> None:
    """All that is there was written, and read last, so many days earlier."""
    for directory, _inner, names in os.walk(registry.v2 / below):
        for name in names:
            status = os.stat(os.path.join(directory, name))
            os.utime(os.path.join(directory, name), (status.st_mtime - days * DAY, status.st_mtime - days * DAY))


def image(*words: str, label: str = "") -> Image:
    return image_of(*(layer_of({"file": word.encode() * 300}) for word in words), labels={"is": label or words[0]})


def can_pull(registry: Registry, repository: str, tag: str, wanted: Image) -> bool:
    if registry.request("GET", f"/v2/{repository}/manifests/{tag}")[0] != 200:
        return False
    assert all(registry.request("GET", f"/v2/{repository}/blobs/{digest}")[2] == blob for digest, blob in wanted.blobs.items()), "a layer is missing"
    return True


def is_whole(registry: Registry, repository: str, tag: str, wanted: Image) -> bool:
    places = {digest: f"/v2/{repository}/blobs/{digest}" for digest in wanted.blobs}
    return registry.request("GET", f"/v2/{repository}/manifests/{tag}")[2] == wanted.manifest and all(
        registry.request("GET", place)[2] == wanted.blobs[digest] for digest, place in places.items()
    )


def collected(registry: Registry) -> str:
    """What distribution's own garbage collection would still remove."""
    binary = shutil.which("docker-registry")
    assert binary
    configuration = registry.root.with_suffix(".json")
    done = subprocess.run([binary, "garbage-collect", "--dry-run", str(configuration)], capture_output=True, text=True, check=True)
    return next(line for line in done.stdout.splitlines() if "blobs marked" in line)


def run(registry: Registry, newest: int = 1, days: int = 0, settle: float = 0.05) -> keeper.Outcome:
    return keeper.keep(str(registry.root), Rule(newest, days), GRACE, settle)


def test_what_goes_and_what_stays(registry: Registry) -> None:
    old, middle, new = image("base", "old"), image("base", "middle"), image("base", "new")
    for number, each in enumerate((old, middle, new)):
        registry.push("svc/app", f"1.{number}", each)
        age(registry, 10)
    registry.push_manifest("svc/app", "stable", old.manifest, old.media_type)
    registry.push("svc/other", "1", middle)
    age(registry, 5)
    assert sorted(run(registry, newest=2).tags) == ["svc/app:1.1"]
    # It is gone where its time had come; the layers are there for the repository that needs them.
    assert not can_pull(registry, "svc/app", "1.1", middle) and can_pull(registry, "svc/other", "1", middle)
    assert can_pull(registry, "svc/app", "1.0", old) and can_pull(registry, "svc/app", "stable", old) and can_pull(registry, "svc/app", "1.2", new)
    age(registry, 5)
    outcome = run(registry)
    # The newest of svc/app is the one that was pushed again, with both of its tags.
    assert outcome.tags == ["svc/app:1.2"] and not outcome.problems
    assert (outcome.manifests, outcome.blobs) == (1, 3)
    assert not registry.blob_path(new.digest).exists() and can_pull(registry, "svc/app", "stable", old) and can_pull(registry, "svc/other", "1", middle)
    assert "0 blobs and 0 manifests eligible" in collected(registry)
    assert run(registry) == keeper.Outcome()


def test_all_platforms_and_the_signature_of_an_index_stay(registry: Registry) -> None:
    platforms = {"linux/amd64": image("amd"), "linux/arm64": image("arm")}
    digest = registry.push_index("svc/app", "1", platforms)
    signed = image("signature")
    registry.push("svc/app", digest.replace(":", "-") + ".sig", signed)
    for number in range(3):
        registry.push("svc/app", f"newer{number}", image(f"newer{number}"))
    age(registry, 10)
    registry.push_manifest("svc/app", "1", index_of(platforms), INDEX)
    age(registry, 3)
    assert len(run(registry).tags) == 3
    assert all(can_pull(registry, "svc/app", each.digest, each) for each in platforms.values())
    assert can_pull(registry, "svc/app", digest.replace(":", "-") + ".sig", signed)
    registry.push("svc/app", "2", image("two"))
    age(registry, 3)
    outcome = run(registry)
    assert sorted(outcome.tags) == ["svc/app:1", f"svc/app:{digest.replace(':', '-')}.sig"] and outcome.manifests == 4
    assert "0 blobs and 0 manifests eligible" in collected(registry)


def test_a_push_that_is_under_way_is_left_alone(registry: Registry) -> None:
    """Its layers have come, its manifest has not: distribution's own collection would remove them."""
    registry.push("svc/app", "1", image("one"))
    coming = image("coming")
    for digest, blob in coming.blobs.items():
        place = registry.request("POST", "/v2/svc/app/blobs/uploads/")[1].split(f":{registry.port}", 1)[1]
        assert registry.request("PUT", f"{place}&digest={digest}", blob)[0] == 201
    assert "2 blobs and 0 manifests eligible" in collected(registry)
    assert run(registry) == keeper.Outcome()
    registry.push_manifest("svc/app", "2", coming.manifest, coming.media_type)
    assert can_pull(registry, "svc/app", "2", coming)


def test_old_garbage_that_a_push_has_just_asked_for_stays(registry: Registry) -> None:
    """HEAD says that the layer is there, so the client does not send it: it must be there when the manifest comes."""
    registry.push("svc/app", "1", image("one"))
    wanted = image("wanted")
    for digest, blob in wanted.blobs.items():
        place = registry.request("POST", "/v2/svc/app/blobs/uploads/")[1].split(f":{registry.port}", 1)[1]
        assert registry.request("PUT", f"{place}&digest={digest}", blob)[0] == 201
    age(registry, 10)
    for digest in wanted.blobs:
        assert registry.request("HEAD", f"/v2/svc/app/blobs/{digest}")[0] == 200
    assert run(registry).blobs == 0
    registry.push_manifest("svc/app", "2", wanted.manifest, wanted.media_type)
    assert can_pull(registry, "svc/app", "2", wanted)


@pytest.fixture
def meanwhile(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], object]], None]:
    """Let something happen while all that is to go is set aside."""
    def begin(happens: Callable[[], object]) -> None:
        sleep = time.sleep

        def wait(seconds: float) -> None:
            happens()
            sleep(seconds)

        monkeypatch.setattr(time, "sleep", wait)

    return begin


def test_a_tag_that_is_pushed_at_the_same_moment_stays(registry: Registry, meanwhile: Callable[[Callable[[], object]], None]) -> None:
    old, new = image("old"), image("new")
    registry.push("svc/app", "latest", old)
    registry.push("svc/app", "1", image("one"))
    age(registry, 10)
    registry.push_manifest("svc/app", "1", image("one").manifest, image("one").media_type)
    meanwhile(lambda: registry.push("svc/app", "latest", new))
    assert run(registry).tags == []
    assert can_pull(registry, "svc/app", "latest", new)


def test_a_push_that_comes_while_its_layers_are_aside_is_whole(registry: Registry, meanwhile: Callable[[Callable[[], object]], None]) -> None:
    old = image("base", "old")
    registry.push("svc/app", "old", old)
    registry.push("svc/app", "new", image("new"))
    age(registry, 10)
    registry.push("svc/app", "new", image("new"))
    assert run(registry).tags == ["svc/app:old"]
    registry.push("svc/app", "gone", old)
    (registry.v2 / "repositories/svc/app/_manifests/tags/gone/current/link").unlink()
    shutil.rmtree(registry.v2 / "repositories/svc/app/_manifests/tags/gone")
    age(registry, 10)
    registry.push("svc/app", "new", image("new"))
    # From another repository, so that it finds the data, or not, by itself.
    meanwhile(lambda: registry.push("svc/else", "1", old))
    outcome = run(registry)
    assert outcome.blobs == 0 and outcome.used
    assert can_pull(registry, "svc/else", "1", old)


@pytest.fixture
def before_it_takes(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], object]], None]:
    """Let something happen between what the keeper finds and what it does about it."""
    def begin(happens: Callable[[], object]) -> None:
        left = [happens]
        take = Aside.take

        def taken(*arguments: Any, **named: Any) -> bool:
            while left:
                left.pop()()
            return take(*arguments, **named)

        monkeypatch.setattr(Aside, "take", taken)

    return begin


def garbage(registry: Registry, repository: str, each: Image) -> None:
    """An image that nothing needs any more: pushed long ago, and its tag is gone."""
    registry.push(repository, "gone", each)
    shutil.rmtree(registry.v2 / "repositories" / repository / "_manifests/tags/gone")
    age(registry, 10)


@pytest.mark.parametrize("repository", ["svc/app", "svc/else"])
def test_a_push_that_comes_after_the_keeper_has_looked_is_whole(
    registry: Registry, before_it_takes: Callable[[Callable[[], object]], None], repository: str,
) -> None:
    """It finds all of its blobs there, so that no file tells of it but its links. What is read may be noted nowhere (noatime)."""
    wanted = image("base", "wanted")
    garbage(registry, "svc/app", wanted)
    garbage(registry, "svc/else", image("other"))
    links = list(registry.v2.rglob("_layers/**/link"))

    def push() -> None:
        registry.push(repository, "1", wanted) if repository == "svc/else" else registry.push_manifest(repository, "1", wanted.manifest, wanted.media_type)
        for link in links:
            os.utime(link, (link.stat().st_mtime, link.stat().st_mtime))

    before_it_takes(push)
    outcome = run(registry)
    assert outcome.blobs == 0 and outcome.used
    assert can_pull(registry, repository, "1", wanted)
    assert run(registry).blobs > 0 and can_pull(registry, repository, "1", wanted)


def test_an_index_in_an_index_is_whole(registry: Registry) -> None:
    inner = {"linux/amd64": image("amd"), "linux/arm64": image("arm")}
    registry.push_index("svc/app", "inner", inner)
    outer = json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": [
        {"mediaType": INDEX, "digest": digest_of(index_of(inner)), "size": len(index_of(inner))},
    ]}).encode()
    registry.push_manifest("svc/app", "outer", outer, INDEX)
    shutil.rmtree(registry.v2 / "repositories/svc/app/_manifests/tags/inner")
    age(registry, 10)
    assert run(registry) == keeper.Outcome()
    assert all(can_pull(registry, "svc/app", each.digest, each) for each in inner.values())


def test_a_host_whose_clock_is_wrong_removes_nothing(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    """The times of files are the clock of whoever keeps them, which may be another host."""
    registry.push("svc/app", "1", image("one"))
    garbage_ = image("untagged")
    registry.push("svc/app", garbage_.digest, garbage_)
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 1000 * DAY)
    assert run(registry, newest=0, days=14) == keeper.Outcome()


def push_what_lacks(registry: Registry, repository: str, tag: str, wanted: Image, elsewhere: str) -> bytes:
    """As a client does: what is there is not sent, what is in another repository is mounted. Nothing, or why it was refused."""
    for digest, blob in wanted.blobs.items():
        if registry.request("HEAD", f"/v2/{repository}/blobs/{digest}")[0] == 200:
            continue
        status, location, _body = registry.request("POST", f"/v2/{repository}/blobs/uploads/?mount={digest}&from={elsewhere}")
        if status == 202:
            target = location.split(f":{registry.port}", 1)[1]
            status, _location, body = registry.request("PUT", f"{target}&digest={digest}", blob)
            # The blob's directory went, as an empty one, in the moment between its making and the blob's coming.
            if status == 500:
                return body
        assert status == 201
    status, _location, body = registry.request("PUT", f"/v2/{repository}/manifests/{tag}", wanted.manifest, wanted.media_type)
    return b"" if status == 201 else body


def push_and_push(registry: Registry, repository: str, elsewhere: str, end: float) -> tuple[dict[str, Image], int, float]:
    """Move four tags between images of a few common layers until `end`: what they name, how often a push was refused, the longest wait for a layer."""
    chance = random.Random(repository)
    pushed: dict[str, Image] = {}
    number = refused = 0
    late = 0.0
    while time.monotonic() < end:
        number += 1
        tag, wanted = str(number % 4), image(*(f"layer {chance.randrange(40)}" for _layer in range(2)), label=f"{repository} {number}")
        said = push_what_lacks(registry, repository, tag, wanted, elsewhere)
        if said:
            assert b"UNKNOWN" in said
            refused += 1
            continue
        pushed[tag] = wanted
        # It may have come while one of its layers was set aside: that is put back.
        late = max(late, until(functools.partial(is_whole, registry, repository, tag, wanted), 30))
    return pushed, refused, late


def test_no_push_is_lost_while_it_runs_without_rest(registry: Registry) -> None:
    """Each layer is garbage again and again. With so short a grace no reading is noted in time: pushes may be refused, and none is accepted and lost."""
    end = time.monotonic() + PUSH_SECONDS
    busy = blobs = 0
    with ThreadPoolExecutor() as pool:
        pushes = {
            one: pool.submit(push_and_push, registry, one, other, end) for one, other in (("svc/app", "svc/other"), ("svc/other", "svc/app"))
        }
        while not all(each.done() for each in pushes.values()):
            outcome = keeper.keep(str(registry.root), Rule(1000, 0), 1.0, SETTLE)
            assert not outcome.problems
            busy += bool(outcome.used or outcome.blobs)
            blobs += outcome.blobs
    keeper.keep(str(registry.root), Rule(1000, 0), 1.0, SETTLE)
    for repository, each in pushes.items():
        pushed, refused, late = each.result()
        print(f"{repository}: {refused} pushes refused, {late:.1f} s for a layer, {blobs} blobs went in {busy} runs")
        assert len(pushed) == 4 and all(is_whole(registry, repository, tag, wanted) for tag, wanted in pushed.items())
    # It had something to do.
    assert busy > 5


def test_a_run_that_is_killed_is_undone_by_the_next_one(registry: Registry, tmp_path: Path) -> None:
    old, new = image("old"), image("new")
    registry.push("svc/app", "old", old)
    registry.push("svc/app", "new", new)
    age(registry, 10)
    registry.push("svc/app", "new", new)
    before = sorted(str(path.relative_to(registry.v2)) for path in registry.v2.rglob("*"))
    # It rests when something is set aside: first what tags name, then what that leads to.
    code = (
        "import os, signal, sys, time; from ansible_collections.mirrorfleet.registry.plugins.module_utils import keeper, retention\n"
        "rests = int(sys.argv[1])\n"
        "def rest(_seconds):\n"
        "    global rests\n"
        "    rests -= 1\n"
        "    if not rests: os.kill(os.getpid(), signal.SIGKILL)\n"
        "time.sleep = rest\n"
        f"keeper.keep({str(registry.root)!r}, retention.Rule(1, 0), {GRACE}, 1.0)"
    )
    environment = {**os.environ, "PYTHONPATH": str(COLLECTIONS)}
    for rests, part in ((1, "svc/app/_manifests/tags/old"), (2, "../blobs/sha256/" + old.digest[7:9] + "/" + old.digest[7:])):
        place = registry.v2 / "repositories" / part
        assert place.exists()
        assert subprocess.run([sys.executable, "-c", code, str(rests)], env=environment, check=False).returncode == -signal.SIGKILL
        assert not place.exists()
        Aside(Store(str(registry.root))).recover()
        if "tags" in part:
            assert sorted(str(path.relative_to(registry.v2)) for path in registry.v2.rglob("*")) == before
        else:
            assert registry.blob_path(old.digest).exists()
    outcome = run(registry)
    assert outcome.manifests == 1 and not registry.blob_path(old.digest).exists()
    assert can_pull(registry, "svc/app", "new", new)


def test_what_is_not_understood_stays(registry: Registry) -> None:
    registry.push("svc/app", "1", image("one"))
    age(registry, 10)
    link = registry.v2 / "repositories/svc/app/_manifests/revisions/sha256" / digest_of(b"odd")[7:] / "link"
    link.parent.mkdir(parents=True)
    link.write_text(digest_of(b"odd"))
    blob = registry.blob_path(digest_of(b"odd"))
    blob.parent.mkdir(parents=True)
    blob.write_bytes(b"odd")
    loose = registry.blob_path(digest_of(b"loose"))
    loose.parent.mkdir(parents=True)
    loose.write_bytes(b"loose")
    os.utime(loose, (0, 0))
    outcome = run(registry)
    assert "is no manifest that is understood here, so no blob is removed" in outcome.problems[0]
    assert loose.exists() and blob.exists()


@pytest.mark.parametrize("how", ["a directory that can't be read", "a link that a power cut has emptied"])
def test_what_a_link_that_can_not_be_read_leads_to_stays(registry: Registry, how: str) -> None:
    one = image("one")
    registry.push("svc/app", "1", one)
    age(registry, 10)
    tag = registry.v2 / "repositories/svc/app/_manifests/tags/1/current/link"
    link = tag.read_text()
    if how.startswith("a link"):
        tag.write_text("")
        os.utime(tag, (0, 0))
    else:
        tag.parent.parent.parent.chmod(0)
    code = (
        "from ansible_collections.mirrorfleet.registry.plugins.module_utils import keeper, retention\n"
        f"print(keeper.keep({str(registry.root)!r}, retention.Rule(1, 0), {GRACE}, 0.1))"
    )
    said = subprocess.run(
        [*UNPRIVILEGED, sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(COLLECTIONS)},
        check=True, capture_output=True, text=True,
    ).stdout
    assert "Because of that no manifest and no blob is removed" in said
    tag.parent.parent.parent.chmod(0o755)
    tag.write_text(link)
    assert can_pull(registry, "svc/app", "1", one)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system like those of hosts, of 64 MiB: where a link takes a block, which root's own are not kept from."""
    image_file, place = tmp_path / "disk.img", tmp_path / "disk"
    place.mkdir()
    with open(image_file, "wb") as file:
        file.truncate(64 * 1024**2)
    subprocess.run(["mkfs.ext4", "-q", "-m", "0", str(image_file)], check=True)
    subprocess.run(["mount", "-o", "loop", str(image_file), str(place)], check=True)
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


def test_it_makes_room_on_a_disk_that_is_full(small_disk: Path, start_registry: StartRegistry) -> None:
    store = small_disk / "store"
    plain = start_registry(storage={"filesystem": {"rootdirectory": str(store)}})
    registry = Registry(plain.port, plain.debug_port, store, "http", {"Accept": ", ".join(MEDIA_TYPES)})
    for number in range(20):
        registry.push("svc/app", str(number), image(f"layer {number}"))
    # The run before.
    assert run(registry, newest=20) == keeper.Outcome()
    age(registry, 10)

    def fill(name: str) -> None:
        # Not by writing, which keeps a block in reserve. What was removed is free after ext4's next commit, and not before.
        with open(small_disk / name, "wb") as file:
            size = -1
            while size != (size := os.fstat(file.fileno()).st_size):
                with contextlib.suppress(OSError):
                    for end in range(size, 64 * 1024**2, 4096):
                        os.posix_fallocate(file.fileno(), end, 4096)
                os.fsync(file.fileno())

    fill("full")
    outcome = run(registry, newest=5)
    assert (len(outcome.tags), outcome.manifests, outcome.problems) == (15, 15, []) and outcome.blobs >= 30
    assert all(can_pull(registry, "svc/app", str(number), image(f"layer {number}")) for number in range(15, 20))
    # Without what the run before has put by, it says what to do.
    (store / ".mirrorfleet/ballast").unlink(missing_ok=True)
    age(registry, 10)
    fill("fuller")
    outcome = run(registry, newest=1)
    assert outcome.tags == [] and "no room to note" in outcome.problems[0]


def test_it_reads_what_the_role_writes(
    registry: Registry, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:
    registry.push("svc/app", "1", image("one"))
    age(registry, 20)
    settings = tmp_path / "keeper.json"
    settings.write_text(json.dumps({"registries": {"play": {"path": str(registry.root), "newest": 0, "days": 14}}, "grace": "2d"}))
    monkeypatch.setattr(keeper, "SETTLE_SECONDS", 0.05)
    assert keeper.main([str(settings)]) == 0
    assert capsys.readouterr().out.splitlines()[0] == "play: svc/app:1 went"
    settings.write_text("{}")
    assert keeper.main([str(settings)]) == 1
    assert "is not as the role registry writes it" in capsys.readouterr().out
