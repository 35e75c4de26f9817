# Copyright (c) 2026, mirrorfleet contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path

import pytest

from ansible_collections.mirrorfleet.registry.plugins.module_utils.errors import RegistryFleetError
from ansible_collections.mirrorfleet.registry.plugins.module_utils.image_pull import pull_image
from ansible_collections.mirrorfleet.registry.plugins.module_utils.image_reference import parse_image_reference
from ansible_collections.mirrorfleet.registry.plugins.module_utils.registry_client import RegistryClient
from ansible_collections.mirrorfleet.registry.plugins.module_utils.storage import Store
from ansible_collections.mirrorfleet.registry.plugins.module_utils.store_evict import Criteria, Outcome, evict
from ansible_collections.mirrorfleet.registry.tests.unit.conftest import (
    Image,
    Registry,
    StartRegistry,
    digest_of,
    image_of,
    index_of,
    layer_of,
    run_until_change,
)

DAY = 86400.0
# Distribution itself writes it, five seconds after something was pulled at the latest.
SCHEDULE = "scheduler-state.json"
BASE = layer_of({"base": os.urandom(50_000)})
APP, WEB, OWN = (image_of(BASE, layer_of({name: os.urandom(5_000)})) for name in ("app", "web", "own"))
ARM = image_of(layer_of({"app": b"arm"}), architecture="arm64")


def pull(cache: Registry, *images: str) -> None:
    """One after the other: a blob that is on its way into one repository is served to another, and not stored for it."""
    with RegistryClient(cache.url) as client:
        for image in images:
            pulled = pull_image(client, image, "linux/amd64")
            cache.until_stored(*(blob["digest"] for blob in pulled["blobs"]), repository=parse_image_reference(image, default_domain="").path)


def stored(cache: Registry, *images: Image) -> None:
    """Images are stored, and have been for a minute."""
    cache.until_stored(*blobs_of(*images))
    for path in cache.v2.glob("blobs/*/*/*/data"):
        os.utime(path, (time.time() - 60,) * 2)


def blobs_of(*images: Image) -> set[str]:
    return {digest for image in images for digest in (image.digest, *image.blobs)}


def used(cache: Registry, image: str, days: float) -> None:
    """Make it so that an image was used so long ago."""
    repository, _colon, tag = image.partition(":")
    store, then = Store(str(cache.root)), time.time() - days * DAY
    os.utime(f"{store.tag_path(repository, tag)}/current/link", (then, then))
    for digest in store.revisions(repository):
        os.utime(f"{store.revision_path(repository, digest)}/link", (then, then))
    for digest in store.blobs():
        os.utime(store.blob_path(digest), (then, then))


def run(cache: Registry, check_mode: bool = False, **criteria: object) -> Outcome:
    (outcome,) = evict([("central", str(cache.root))], Criteria(**criteria), "a test", 0, check_mode)  # type: ignore[arg-type]
    return outcome


def names(outcome: Outcome) -> list[str]:
    return [image.name for image, _freed in outcome.evicted]


def files(cache: Registry) -> dict[str, str]:
    """Every file of the store with what is in it."""
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(cache.v2.rglob("*")) if path.is_file()}


@pytest.fixture
def cache(start_registry: StartRegistry, registry: Registry) -> Registry:
    """A cache that was asked for svc/app:1, svc/web:1 and other/own:1, which share a base, and for one platform of svc/multi:2."""
    for name, image in (("svc/app", APP), ("svc/web", WEB), ("other/own", OWN)):
        registry.push(name, "1", image)
    registry.push_index("svc/multi", "2", {"linux/amd64": APP, "linux/arm64": ARM})
    cache = start_registry(upstream=registry.url)
    pull(cache, "svc/app:1", "svc/web:1", "other/own:1", "svc/multi:2")
    stored(cache, APP, WEB, OWN)
    return cache


def test_an_image_goes_with_its_own_blobs_and_links(cache: Registry) -> None:
    before = Store(str(cache.root)).blobs()
    outcome = run(cache, images=("svc/web:1",))
    store = Store(str(cache.root))
    assert names(outcome) == ["svc/web:1"] and store.repositories() == ["other/own", "svc/app", "svc/multi"]
    gone = blobs_of(WEB) - {digest_of(BASE)}
    assert set(before) - set(store.blobs()) == gone
    assert outcome.evicted[0][1] == outcome.bytes_before - outcome.bytes_after == sum(before[digest] for digest in gone)
    assert not (cache.v2 / "repositories/svc/web").exists() and not any(cache.blob_path(digest).parent.exists() for digest in gone)
    pull(cache, "svc/web:1", "svc/app:1")
    assert run(cache, images=("svc/web:2",)).evicted == []


def test_what_is_shared_goes_with_its_last_user(cache: Registry) -> None:
    for image, base_stays in (("svc/app:1", True), ("svc/web:1", True), ("other/own:1", True), ("svc/multi:2", False)):
        assert names(run(cache, images=(image,))) == [image]
        assert cache.blob_path(digest_of(BASE)).exists() is base_stays
    assert files(cache) == {} and list((cache.v2 / "repositories").iterdir()) == []


def test_tags_of_one_digest_and_an_image_pulled_by_digest(cache: Registry, registry: Registry) -> None:
    registry.push("svc/app", "latest", APP)
    pull(cache, "svc/app:latest")
    stored(cache, APP)
    assert names(run(cache, images=("svc/app:1",))) == ["svc/app:1"] and Store(str(cache.root)).tags("svc/app") == {"latest": APP.digest}
    assert APP.digest in Store(str(cache.root)).revisions("svc/app")
    assert names(run(cache, images=("svc/app:latest", "svc/multi:2"))) == ["svc/multi:2", "svc/app:latest"]
    assert not cache.blob_path(APP.digest).exists()
    pull(cache, f"svc/app@{APP.digest}")
    stored(cache, APP)
    assert names(run(cache, images=(f"svc/app@{APP.digest}",))) == [f"svc/app@{APP.digest}"]
    assert not (cache.v2 / "repositories/svc/app").exists()


def test_an_index_goes_with_its_platforms(cache: Registry) -> None:
    run(cache, images=("svc/app:1",))
    outcome = run(cache, images=(digest_of(index_of({"linux/amd64": APP, "linux/arm64": ARM})),))
    assert names(outcome) == ["svc/multi:2"] and Store(str(cache.root)).blobs().keys() == blobs_of(WEB, OWN)


def test_check_mode_says_the_same_and_touches_nothing(cache: Registry) -> None:
    used(cache, "svc/web:1", 40)

    def seen() -> dict[Path, tuple[int, int, int]]:
        # Reading files would be a use.
        found = {path: path.lstat() for path in cache.root.rglob("*") if path.is_file() and path.name != SCHEDULE}
        return {path: (status.st_mtime_ns, status.st_atime_ns, status.st_ino) for path, status in found.items()}

    before = seen()
    planned = run(cache, check_mode=True, unused_for=30 * DAY)
    assert seen() == before
    done = run(cache, unused_for=30 * DAY)
    assert (names(planned), planned.bytes_after, planned.kept) == (names(done), done.bytes_after, done.kept)
    assert names(done) == ["svc/web:1"] and run(cache, unused_for=30 * DAY).evicted == []


def test_the_least_recently_used_go_until_there_is_room(cache: Registry) -> None:
    for image, days in (("other/own:1", 2), ("svc/app:1", 9), ("svc/multi:2", 5), ("svc/web:1", 7)):
        used(cache, image, days)
    whole = sum(Store(str(cache.root)).blobs().values())
    # What is shared with a younger image frees nothing.
    outcome = run(cache, max_bytes=whole - 1)
    assert names(outcome) == ["svc/app:1", "svc/web:1"] and outcome.bytes_lacking == 0
    figures = os.statvfs(cache.root)
    outcome = run(cache, free_bytes=figures.f_bavail * figures.f_frsize + (1 << 40))
    assert names(outcome) == ["svc/multi:2", "other/own:1"] and outcome.bytes_lacking > 0 and files(cache) == {}
    assert run(cache, free_bytes=0, free_percent=0.0).evicted == []


def test_caches_of_one_file_system_are_one_heap(cache: Registry, start_registry: StartRegistry, registry: Registry) -> None:
    other = start_registry(upstream=registry.url)
    pull(other, "svc/web:1", "other/own:1")
    stored(other, WEB, OWN)
    for place, image, days in ((cache, "svc/web:1", 9), (other, "other/own:1", 8), (cache, "other/own:1", 7), (other, "svc/web:1", 6)):
        used(place, image, days)
    for image in ("svc/app:1", "svc/multi:2"):
        used(cache, image, 5)
    figures = os.statvfs(cache.root)
    seen = []
    # One image's room more each time: its blocks, and no byte besides.
    outcomes = evict(
        [("one", str(cache.root)), ("two", str(other.root))], Criteria(free_bytes=figures.f_bavail * figures.f_frsize + (1 << 40)), "a test", 0, True
    )
    for outcome in outcomes:
        seen += [(image.last_used, outcome.name, image.name) for image, _freed in outcome.evicted]
    assert [(name, image) for _used, name, image in sorted(seen)][:4] == [
        ("one", "svc/web:1"), ("two", "other/own:1"), ("one", "other/own:1"), ("two", "svc/web:1")
    ]


def test_what_is_pinned_or_just_used_stays(cache: Registry) -> None:
    used(cache, "svc/app:1", 9)
    outcome = run(cache, max_bytes=0, pinned=("svc/a*:1",))
    assert {image.name: why for image, why in outcome.kept} == {
        "svc/app:1": "pinned", "svc/multi:2": "used within grace", "svc/web:1": "used within grace", "other/own:1": "used within grace"
    }
    assert outcome.evicted == [] and outcome.bytes_lacking == outcome.bytes_before
    # By its own name only what is pinned stays, and that by any of its names.
    outcome = run(cache, images=("svc/app:1", "svc/web:1"), pinned=(APP.digest,))
    assert names(outcome) == ["svc/web:1"] and [(image.name, why) for image, why in outcome.kept] == [("svc/app:1", "pinned")]


def test_what_is_being_sent_stays(cache: Registry) -> None:
    own_layer = next(digest for digest in WEB.blobs if digest != digest_of(BASE) and len(WEB.blobs[digest]) > 4000)
    with open(cache.blob_path(own_layer), "rb"):
        outcome = run(cache, images=("svc/web:1",))
        assert outcome.evicted == [] and [(image.name, why) for image, why in outcome.kept] == [("svc/web:1", "being served")]
    assert names(run(cache, images=("svc/web:1",))) == ["svc/web:1"]


def test_what_has_just_come_stays(cache: Registry) -> None:
    os.utime(cache.blob_path(list(WEB.blobs)[2]))
    outcome = run(cache, images=("svc/web:1",))
    assert [why for _image, why in outcome.kept] == ["a blob of it has just come"] and outcome.evicted == []


def test_a_repository_that_is_being_filled_stays(cache: Registry) -> None:
    upload = cache.v2 / "repositories/svc/web/_uploads/0a/data"
    upload.parent.mkdir(parents=True)
    upload.write_bytes(b"half")
    assert [why for _image, why in run(cache, images=("svc/web:1",)).kept] == ["its repository is being filled"]
    os.utime(upload, (time.time() - 3600,) * 2)
    assert names(run(cache, images=("svc/web:1",))) == ["svc/web:1"]
    # What a fill left is not an image's.
    assert upload.exists()


def test_when_an_image_was_used_is_known(cache: Registry) -> None:
    def last(image: str) -> tuple[float, str]:
        outcome = run(cache, check_mode=True, images=(image,))
        return time.time() - outcome.evicted[0][0].last_used, outcome.evicted[0][0].last_used_source

    used(cache, "svc/web:1", 40)
    assert last("svc/web:1") == (pytest.approx(40 * DAY, abs=60), "pull")
    # distribution itself writes the tag's link again, though it says the same.
    pull(cache, "svc/web:1")
    assert last("svc/web:1") == (pytest.approx(0, abs=60), "pull")
    used(cache, "svc/web:1", 40)
    pull(cache, f"svc/web@{WEB.digest}")
    assert last("svc/web:1") == (pytest.approx(0, abs=60), "atime")
    # Our own looks are none.
    used(cache, "svc/web:1", 40)
    last("svc/web:1")
    assert last("svc/web:1") == (pytest.approx(40 * DAY, abs=60), "pull")


def test_what_no_image_needs_goes_last_of_all_when_it_is_old(cache: Registry) -> None:
    loose = cache.blob_path(digest_of(b"loose"))
    loose.parent.mkdir(parents=True)
    loose.write_bytes(b"loose")
    assert names(run(cache, unused_for=0.0)) == []
    os.utime(loose, (time.time() - 3 * DAY,) * 2)
    outcome = run(cache, unused_for=2 * DAY)
    assert names(outcome) == [digest_of(b"loose")] and not loose.parent.exists() and outcome.evicted[0][1] == 5


def test_what_is_not_distributions_is_never_touched(cache: Registry, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    (outside / "1/current").mkdir(parents=True)
    (outside / "1/current/link").write_text(WEB.digest)
    repository = cache.v2 / "repositories/svc/web"
    (repository / "notes.txt").write_text("x")
    (repository / "_manifests/tags/1/notes.txt").write_text("x")
    os.rename(repository / "_layers", tmp_path / "layers")
    (repository / "_layers").symlink_to(tmp_path / "layers")
    data = cache.blob_path(list(WEB.blobs)[2])
    os.rename(data, tmp_path / "data")
    data.symlink_to(tmp_path / "data")
    (cache.v2 / "repositories/svc/away").mkdir()
    (cache.v2 / "repositories/svc/away/_manifests").mkdir()
    (cache.v2 / "repositories/svc/away/_manifests/tags").symlink_to(outside)
    kept = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and cache.root not in path.parents}
    assert names(run(cache, images=("svc/web:1", "svc/away:1"))) == ["svc/web:1"]
    assert {path: path.read_bytes() for path in kept} == kept and data.is_symlink() and (repository / "_layers").is_symlink()
    assert (repository / "notes.txt").exists() and (repository / "_manifests/tags/1/notes.txt").exists()


def test_a_name_at_the_limit_and_any_label(cache: Registry, registry: Registry) -> None:
    longest = "/".join(["a" * 63] * 3 + ["b" * 63])
    registry.push(longest, "1" * 128, image := image_of(layer_of({"x": b"y"}), labels={"naïve": "日本"}))
    pull(cache, f"{longest}:{'1' * 128}")
    stored(cache, image)
    assert names(run(cache, images=(f"{longest}:*",))) == [f"{longest}:{'1' * 128}"]
    assert not (cache.v2 / "repositories" / ("a" * 63)).exists() and not any(cache.blob_path(digest).exists() for digest in blobs_of(image))


def test_a_store_of_3_x_is_the_same(cache: Registry) -> None:
    # driver.go of 3.x writes beside the file and renames; a kill leaves this.
    left = cache.blob_path(list(WEB.blobs)[2]).parent / "data.0b1f6e0e-0c6b-4c57-9d3f-5d9f0e0a3b1c.tmp"
    left.write_bytes(b"half")
    assert names(run(cache, images=("svc/web:1",))) == ["svc/web:1"] and left.exists() and not (left.parent / "data").exists()


@pytest.mark.parametrize(("criteria", "message"), [
    ({}, "would evict everything"),
    ({"images": ("svc/app",)}, r"images: 'svc/app' has neither tag nor digest\. Write svc/app:latest"),
    ({"images": ("svc/App:1",)}, "images: 'svc/App:1' is no image reference"),
    ({"images": ("docker.io/library/app:1",)}, "names a registry, and images in a cache have none. Write library/app:1"),
    ({"max_bytes": 0, "pinned": ("",)}, "pinned: '' is no image reference"),
    ({"max_bytes": -1}, "max_bytes: -1: write a number from 0"),
    ({"free_percent": 101.0}, "free_percent: 101: write a number from 0 to 100"),
])
def test_wrong_options_are_refused(tmp_path: Path, criteria: dict[str, object], message: str) -> None:
    with pytest.raises(RegistryFleetError, match=message):
        evict([("central", str(tmp_path))], Criteria(**criteria), "a test", 0)  # type: ignore[arg-type]


def test_one_store_under_two_names_is_refused(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(RegistryFleetError, match="named twice"):
        evict([("a", str(tmp_path)), ("b", str(tmp_path / "link"))], Criteria(max_bytes=0), "a test", 0)


def test_who_may_not_change_the_store_is_told(cache: Registry) -> None:
    for directory in (cache.root, *cache.root.parents[:3]):
        directory.chmod(0o755)
    answers, answer = os.pipe()
    child = os.fork()
    if child == 0:
        # Root may change everything, so nobody tries.
        os.setgid(65534)
        os.setuid(65534)
        try:
            run(cache, images=("svc/web:1",))
        except RegistryFleetError as error:
            os.write(answer, str(error).encode())
        os._exit(0)
    os.close(answer)
    assert os.waitpid(child, 0)[1] == 0
    with open(answers, encoding="utf-8") as told:
        assert "can't be removed: Permission denied. Run as the store's owner, or as root (become: true)." in told.read()


EVICT = """
    from ansible_collections.mirrorfleet.registry.plugins.module_utils.store_evict import Criteria, evict
    evict([("central", sys.argv[2])], Criteria(images=("svc/multi:2", "svc/app:1")), "a test", 0)
"""


def test_a_run_that_is_killed_anywhere_harms_nothing_and_is_finished(cache: Registry, tmp_path: Path) -> None:
    kills = 0
    while True:
        done = run_until_change(kills, EVICT, str(cache.root))
        if done.returncode == 0:
            break
        assert done.returncode == -9
        for path, content in files(cache).items():
            if path.endswith("/data"):
                assert path.split("/")[-2] == content
        # Every digest is verified by the pull.
        pull(cache, "svc/web:1", "other/own:1")
        if kills % 3 == 0:
            pull(cache, "svc/multi:2", "svc/app:1")
            stored(cache, APP)
        else:
            run(cache, images=("svc/multi:2", "svc/app:1"))
            assert Store(str(cache.root)).blobs().keys() == blobs_of(WEB, OWN)
            assert Store(str(cache.root)).repositories() == ["other/own", "svc/web"]
            pull(cache, "svc/multi:2", "svc/app:1")
            stored(cache, APP)
        kills += 1
    assert kills > 25
    assert Store(str(cache.root)).blobs().keys() == blobs_of(WEB, OWN)
