# Copyright (c) 2026, mirrorfleet contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0
"""Backup and restore of registries that run, by a restic that runs: distribution writes the store, and serves what was restored."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Iterator

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.poly1305 import Poly1305
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.mirrorfleet.registry.plugins.module_utils.errors import RegistryFleetError
from ansible_collections.mirrorfleet.registry.plugins.module_utils.image_manifest import MEDIA_TYPES, parse_manifest
from ansible_collections.mirrorfleet.registry.plugins.module_utils.registry_backup import (
    Line,
    Record,
    Settings,
    back_up,
    parse_line,
    repository_of,
    take_over,
)
from ansible_collections.mirrorfleet.registry.plugins.module_utils.registry_restore import Outcome, parse_wanted, restore
from ansible_collections.mirrorfleet.registry.plugins.module_utils.restic import Restic, Secrets, moment
from ansible_collections.mirrorfleet.registry.plugins.module_utils.store_state import locked
from ansible_collections.mirrorfleet.registry.tests.unit.conftest import (
    COLLECTIONS,
    UNPRIVILEGED,
    Image,
    ObjectStorage,
    Registry,
    StartRegistry,
    Way,
    digest_of,
    image_of,
    layer_of,
    until,
)

SECRETS = Secrets("of the test")
KEEP = {"last": 100}
ACCEPT = {"Accept": ", ".join(MEDIA_TYPES)}


def noise(size: int) -> bytes:
    return random.randbytes(size)


def image(size: int = 2000, base: bytes = b"") -> Image:
    return image_of(*([base] if base else []), layer_of({"a": noise(size)}))


def settings_for(tmp_path: Path, storage: Path, host: str = "registry1", **more: Any) -> Settings:
    """Of a registry called prod on this host; what the role and systemd make is made."""
    own = tmp_path / "own" / host
    for name in ("state", "cache", "metrics"):
        (own / name).mkdir(parents=True, exist_ok=True)
    storage.mkdir(exist_ok=True)
    return Settings(**{
        "name": "prod", "host": host, "storage": str(storage), "target": str(tmp_path / "target"), "keep": KEEP, "check_parts": 3,
        "state": str(own / "state"), "cache": str(own / "cache"), "metrics": str(own / "metrics"), **more,
    })


def sealed(password: str, key: dict[str, Any], nonce: bytes, content: bytes) -> tuple[bytes, bytes]:
    """The content of a key file of restic, or what it says, and its seal: AES-256-CTR and Poly1305-AES (restic's design.rst, "Keys")."""
    derived = hashlib.scrypt(password.encode(), salt=base64.b64decode(key["salt"]), n=key["N"], r=key["r"], p=key["p"], dklen=64, maxmem=2**28)
    turned = Cipher(algorithms.AES(derived[:32]), modes.CTR(nonce)).encryptor().update(content)
    once = Cipher(algorithms.AES(derived[32:48]), modes.ECB()).encryptor().update(nonce)
    return turned, Poly1305.generate_tag(derived[48:] + once, turned)


@pytest.fixture(autouse=True)
def cheap_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Repositories on the disk are opened at a small cost: else each of the hundreds of commands here takes a core for half a second."""
    init = Restic.init

    def cheap(self: Restic) -> None:
        init(self)
        if not self.repository.startswith("s3:"):
            path, = Path(self.repository, "keys").iterdir()
            key = json.loads(path.read_text())
            data = base64.b64decode(key["data"])
            nonce = data[:16]
            master = sealed(self.secrets.password, key, nonce, data[16:-16])[0]
            key |= {"N": 1024, "r": 1, "p": 1}
            key["data"] = base64.b64encode(nonce + b"".join(sealed(self.secrets.password, key, nonce, master))).decode()
            text = json.dumps(key)
            path.with_name(hashlib.sha256(text.encode()).hexdigest()).write_text(text)
            path.unlink()

    monkeypatch.setattr(Restic, "init", cheap)


@pytest.fixture
def settings(tmp_path: Path, registry: Registry) -> Settings:
    return settings_for(tmp_path, registry.root)


def done(settings: Settings, secrets: Secrets = SECRETS) -> Record:
    """A run in which all went well."""
    record = back_up(settings, secrets)
    assert (record.error, record.problems) == ("", [])
    return record


def brought_back(settings: Settings, snapshot: str = "latest", repository: str = "", tag: str = "", force: bool = False, **more: Any) -> Outcome:
    return restore(settings, SECRETS, parse_wanted(snapshot, repository, tag, force), **more)


def files(root: Path) -> dict[str, bytes]:
    """All that distribution wrote, by path, without what is on its way."""
    found = root / "docker/registry/v2"
    return {str(path.relative_to(found)): path.read_bytes() for path in found.rglob("*") if path.is_file() and "_uploads" not in path.parts}


def check_whole(root: Path) -> int:
    """Each tag leads to an image of which every manifest and blob is linked, there and right. How many tags."""
    v2, tags = root / "docker/registry/v2", 0

    def blob(digest: str) -> bytes:
        content = (v2 / "blobs/sha256" / digest[7:9] / digest[7:] / "data").read_bytes()
        assert digest_of(content) == digest
        return content

    def check(repository: Path, digest: str) -> None:
        assert (repository / "_manifests/revisions/sha256" / digest[7:] / "link").read_text() == digest
        manifest = parse_manifest(blob(digest))
        for each in manifest.blobs:
            assert (repository / "_layers/sha256" / each.digest[7:] / "link").read_text() == each.digest
            blob(each.digest)
        for part in manifest.manifests:
            check(repository, part.digest)

    for link in (v2 / "repositories").rglob("tags/*/current/link"):
        check(link.parents[4], link.read_text())
        tags += 1
    for link in (v2 / "repositories").rglob("revisions/sha256/*/link"):
        check(link.parents[4], link.read_text())
    return tags


def test_a_backup_is_the_registry(settings: Settings, registry: Registry, start_registry: StartRegistry, tmp_path: Path) -> None:
    """Restored into an empty store: the same links and blobs, byte for byte, and distribution serves them."""
    base = layer_of({"base": noise(300_000)})
    first = image(base=base)
    registry.push("svc/app", "1", first)
    registry.push("svc", "1", image(base=base))
    index = registry.push_index("svc/app", "2", {"linux/amd64": image(base=base), "linux/arm64": image(base=base)})
    signature = registry.push("svc/app", f"{index.replace(':', '-')}.sig", image())
    registry.push("svc/app", "1", image(base=base))  # what the tag was stays
    record = done(settings)
    assert (record.repositories, record.tags, record.snapshots) == (2, 4, 1)
    assert record.bytes_new > 300_000

    other = settings_for(tmp_path, tmp_path / "other", "registry2")
    outcome = brought_back(other)
    assert files(tmp_path / "other") == files(registry.root)
    assert check_whole(tmp_path / "other") == 4
    blobs = [path for path in files(registry.root) if path.startswith("blobs/")]
    assert (outcome.blobs, outcome.verified, outcome.images) == (len(blobs), len(blobs), 4)
    restored = start_registry(headers=ACCEPT, storage={"filesystem": {"rootdirectory": str(tmp_path / "other")}})
    for tag, digest in (("2", index), (f"{index.replace(':', '-')}.sig", signature)):
        status, _location, body = restored.request("GET", f"/v2/svc/app/manifests/{tag}")
        assert (status, digest_of(body)) == (200, digest)

    again = brought_back(other)
    assert (again.changed, again.verified) == (False, len(blobs))


def test_while_it_is_pushed_to(settings: Settings, registry: Registry, tmp_path: Path) -> None:
    """Whenever a backup was made: whatever is in it is whole. Tags move meanwhile, images share layers, and some are pushed again and again."""
    base, again = layer_of({"base": noise(100_000)}), image()
    registry.push("svc/app", "0", image(base=base))
    over = threading.Event()
    pushed = [0, 0, 0]

    def push(number: int) -> None:
        while not over.is_set():
            name = f"svc/app{number % 2}"
            if number == 2:
                registry.push(name, "again", again)
            elif pushed[number] % 3 == 2:
                registry.push_index(name, "index", {"linux/amd64": image(base=base), "linux/arm64": image(base=base)})
            else:
                registry.push(name, "moved", image(base=base))
                registry.push(name, str(pushed[number]), image(base=base))
            pushed[number] += 1

    pushing = [threading.Thread(target=push, args=(number,)) for number in range(3)]
    for each in pushing:
        each.start()
    try:
        until(lambda: min(pushed) > 3)
        before, records = list(pushed), []
        for _turn in range(5):
            records.append(done(settings))
        assert all(now > then for now, then in zip(pushed, before)), "nothing was pushed meanwhile"
    finally:
        over.set()
        for each in pushing:
            each.join()
    assert [each.tags for each in records] == sorted(each.tags for each in records) and records[-1].tags > records[0].tags
    for number, record in enumerate(records):
        other = settings_for(tmp_path, tmp_path / f"other{number}", f"other{number}")
        brought_back(other, record.snapshot)
        assert check_whole(tmp_path / f"other{number}") == record.tags


def test_the_next_backup_reads_what_is_new(settings: Settings, registry: Registry) -> None:
    base = layer_of({"base": noise(5_000_000)})
    for number in range(20):
        registry.push("svc/app", str(number), image(base=base))
    first = done(settings)
    idle = done(settings)
    assert first.bytes_new > 5_000_000 and idle.bytes_new < 10_000
    new = image(200_000, base=base)
    registry.push("svc/app", "new", new)
    third = done(settings)
    # The layer, its config, its manifest, the list of links, and the trees of restic.
    assert 200_000 < third.bytes_new < 260_000
    assert third.bytes > 5_000_000


def test_what_is_not_whole_is_said_and_left_out(settings: Settings, registry: Registry, tmp_path: Path) -> None:
    good, broken, cut = image(), image(), image()
    for name, each in (("good", good), ("broken", broken), ("cut", cut)):
        registry.push("svc/app", name, each)
    registry.blob_path(list(broken.blobs)[1]).unlink()
    os.truncate(registry.blob_path(list(cut.blobs)[1]), 10)
    record = back_up(settings, SECRETS)
    assert record.error == "" and record.tags == 1
    assert f"svc/app:broken is not whole: the blob {list(broken.blobs)[1]} is not there" in record.problems
    assert any(re.fullmatch(f"svc/app:cut is not whole: the blob {list(cut.blobs)[1]} has 10 bytes instead of [0-9]+", each) for each in record.problems)
    brought_back(settings_for(tmp_path, tmp_path / "other", "other"))
    assert check_whole(tmp_path / "other") == 1


def test_a_file_that_can_not_be_read_makes_no_backup(settings: Settings, registry: Registry) -> None:
    """A restic that could not read a file still makes a snapshot, which would be the newest."""
    registry.push("svc/app", "1", image())
    first = done(settings)
    # As on a bad sector: a regular file whose reading fails, here because the process whose memory it is has ended.
    bad = registry.blob_path(digest_of(b"bad"))
    bad.parent.mkdir(parents=True)
    bad.write_bytes(b"")
    subprocess.run(["mount", "--bind", "/proc/self/mem", str(bad)], check=True)
    try:
        record = back_up(settings, SECRETS)
    finally:
        subprocess.run(["umount", str(bad)], check=True)
    assert "did not get the backup" in record.error and f"{bad}: No such process" in record.error
    assert (record.snapshot, record.success) == ("", first.success)
    assert len(repository_of(settings, SECRETS).snapshots()) == 1


@pytest.mark.parametrize("path", [".", "repositories/svc/hidden", "repositories/svc/hidden/_manifests/tags", "blobs"])
def test_a_directory_that_can_not_be_read_makes_no_backup(settings: Settings, registry: Registry, path: str) -> None:
    """It would be the newest, and lack what is there."""
    for name in ("app", "hidden"):
        registry.push(f"svc/{name}", "1", image())
    (registry.v2 / path).chmod(0)
    try:
        process = program(RUN, settings, *UNPRIVILEGED)
        said = process.communicate(timeout=120)[0].decode()
    finally:
        (registry.v2 / path).chmod(0o755)
    assert process.returncode == 1 and "can't be read as a whole: " in said and "(Permission denied)" in said
    assert not repository_of(settings, SECRETS).snapshots()


def test_a_blob_that_was_damaged_before_keeps_nothing_else_from_coming_back(settings: Settings, registry: Registry, tmp_path: Path) -> None:
    for name in ("good", "bad"):
        registry.push("svc/app", name, image())
    index = registry.push_index("svc/app", "index", {"linux/amd64": image(), "linux/arm64": image()})
    part = parse_manifest(registry.blob_path(index).read_bytes()).manifests[0].digest
    for manifest in ((registry.v2 / "repositories/svc/app/_manifests/tags/bad/current/link").read_text(), part):
        path = registry.blob_path(parse_manifest(registry.blob_path(manifest).read_bytes()).layers[0].digest)
        path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:])
    done(settings)
    with pytest.raises(RegistryFleetError, match="for 2 blobs, .* What needs them was not restored: svc/app:bad, svc/app:index. All else was."):
        brought_back(settings_for(tmp_path, tmp_path / "other", "other"))
    assert check_whole(tmp_path / "other") == 1


@pytest.mark.parametrize(("secrets", "change", "said"), [
    (Secrets("another"), {}, "wrong password or no key found'. Write the password that it was made with into registry_backup_password."),
    (SECRETS, {"target": "/nowhere/at/all"}, "The backup's target /nowhere/at/all is not there, and neither is /nowhere/at. Is a disk or share not mounted?"),
    (SECRETS, {"target": "s3:http://127.0.0.1:9/bucket"}, "The backup's target s3:http://127.0.0.1:9/bucket can't be reached: Connection refused."),
    (SECRETS, {"host": "registry2"}, "has the backups of registry1/prod (host/registry), so prod of registry2 has no place there."),
    (SECRETS, {"name": "other"}, "has the backups of registry1/prod (host/registry), so other of registry1 has no place there."),
    (SECRETS, {}, "has backups of registry1/prod (host/registry), and prod of registry1 knows none. Is this host a new one, or its disk?"),
    (SECRETS, {"storage": "/nowhere/at/all"}, "There is no directory /nowhere/at/all."),
])
def test_a_backup_that_can_not_be(settings: Settings, registry: Registry, secrets: Secrets, change: dict[str, Any], said: str) -> None:
    registry.push("svc/app", "1", image())
    first = done(settings)
    state = Path(settings.state, "state.json")
    # Nothing is remembered of the repository where it is another registry's.
    kept = state.read_text()
    state.write_text("{}")
    record = back_up(replace(settings, **change), secrets)
    assert said in record.error and not record.snapshot
    # An earlier one is still known, to people and to Prometheus.
    assert record.success == first.success
    assert f"mirrorfleet_backup_last_success_timestamp_seconds{{registry=\"{record.name}\"}} {first.success}" in next(
        path for path in Path(settings.metrics).iterdir() if path.name.endswith(f"_{record.name}.prom")
    ).read_text()
    assert json.loads(Path(settings.state, "record.json").read_text()) == asdict(record)
    state.write_text(kept)
    assert done(settings).snapshots == 2


def test_a_target_that_is_gone_or_another_is_not_begun_anew(settings: Settings, registry: Registry) -> None:
    """As when its disk is not mounted."""
    registry.push("svc/app", "1", image())
    done(settings)
    os.rename(settings.target, f"{settings.target}.away")
    os.mkdir(settings.target)
    assert "are gone: there is no repository. Is a disk or share not mounted?" in back_up(settings, SECRETS).error
    assert os.listdir(settings.target) == []
    Restic(settings.target, SECRETS, settings.cache).init()
    assert "Another repository is at" in back_up(settings, SECRETS).error
    shutil.rmtree(settings.target)
    os.rename(f"{settings.target}.away", settings.target)
    assert done(settings).snapshots == 2


def test_an_empty_registry(settings: Settings, registry: Registry) -> None:
    """New, it has nothing to back up; emptied, it must not take the place of what it had."""
    record = done(settings)
    assert (record.snapshot, record.tags) == ("", 0)
    registry.push("svc/app", "1", image())
    done(settings)
    shutil.rmtree(registry.v2)
    assert "has no image, and its newest backup, of" in back_up(settings, SECRETS).error
    brought_back(settings)
    assert check_whole(registry.root) == 1
    done(settings)


def test_a_registry_that_moved_goes_on_with_its_backups(settings: Settings, registry: Registry, tmp_path: Path) -> None:
    """By being restored as a whole, or because somebody says so."""
    registry.push("svc/app", "1", image())
    done(settings)
    heir = settings_for(tmp_path, tmp_path / "heir", "heir")
    assert "has no place there" in back_up(heir, SECRETS).error
    brought_back(heir, tag="svc/app:1")
    assert "has no place there" in back_up(heir, SECRETS).error
    brought_back(heir)
    assert done(heir).snapshots == 2
    third = settings_for(tmp_path, tmp_path / "heir", "third")
    assert take_over(third, SECRETS) == ["heir/prod", "registry1/prod"]
    assert done(third).snapshots == 3


def test_old_backups_go_and_what_stays_is_whole(settings: Settings, registry: Registry, tmp_path: Path) -> None:
    few = replace(settings, keep={"last": 2}, check_parts=2)
    for number in range(4):
        registry.push("svc/app", str(number), image(50_000))
        done(few)
    assert [each.owner for each in Restic(settings.target, SECRETS, settings.cache).snapshots()] == ["registry1/prod"] * 2
    brought_back(settings_for(tmp_path, tmp_path / "other", "other"))
    assert check_whole(tmp_path / "other") == 4


def test_what_the_target_lost_is_found(settings: Settings, registry: Registry) -> None:
    """By the check that follows a backup, in one of its turns."""
    registry.push("svc/app", "1", image(50_000))
    done(settings)
    pack = max((path for path in Path(settings.target, "data").rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    pack.chmod(0o600)
    content = bytearray(pack.read_bytes())
    content[1000] ^= 1
    pack.write_bytes(content)
    found = [problem for _turn in range(3) for problem in back_up(settings, SECRETS).problems]
    assert found and all("is damaged" in problem for problem in found)


def test_one_repository_and_one_image(settings: Settings, registry: Registry, tmp_path: Path) -> None:
    base = layer_of({"base": noise(50_000)})
    index = registry.push_index("svc/app", "2.7.0", {"linux/amd64": image(base=base), "linux/arm64": image(base=base)})
    registry.push("svc/app", f"{index.replace(':', '-')}.sig", image())
    registry.push("svc/app", "2.6.0", image(base=base))
    registry.push("svc/api", "1", image(base=base))
    done(settings)
    other = settings_for(tmp_path, tmp_path / "other", "other")

    would = brought_back(other, tag="svc/app:2.7.0", check_mode=True)
    assert would.changed and files(Path(other.storage)) == {} and os.listdir(other.storage) == []
    outcome = brought_back(other, tag="svc/app:2.7.0")
    assert asdict(outcome) == {**asdict(would), "verified": outcome.blobs, "verified_bytes": outcome.bytes}
    assert outcome.tags == ["svc/app:2.7.0", f"svc/app:{index.replace(':', '-')}.sig"]
    # An index, two platforms with a config and a layer each, the base, a signature with its two blobs.
    assert outcome.blobs == 1 + 2 * 3 + 1 + 3
    assert check_whole(tmp_path / "other") == 2
    assert files(tmp_path / "other").items() < files(registry.root).items()

    outcome = brought_back(other, repository="svc/app")
    assert outcome.tags == ["svc/app:2.6.0"] and check_whole(tmp_path / "other") == 3
    assert not (tmp_path / "other/docker/registry/v2/repositories/svc/api").exists()
    assert not brought_back(other, repository="svc/app").changed
    assert [brought_back(other).tags, brought_back(other).changed] == [["svc/api:1"], False]
    assert files(tmp_path / "other") == files(registry.root)


def test_a_live_registry_keeps_what_it_has(settings: Settings, registry: Registry) -> None:
    """A tag that leads elsewhere is an error, or is moved and stays as history. The registry serves it at once."""
    registry.headers.update(ACCEPT)
    old, new = image(), image()
    registry.push("svc/app", "1", old)
    registry.push("svc/app", "gone", image())
    done(settings)
    registry.push("svc/app", "1", new)
    registry.push("svc/app", "later", image())
    shutil.rmtree(registry.v2 / "repositories/svc/app/_manifests/tags/gone")
    before = files(registry.root)
    with pytest.raises(RegistryFleetError, match=f"svc/app:1 is at {new.digest}, in the backup at {old.digest}. Nothing was changed."):
        brought_back(settings)
    assert files(registry.root) == before
    assert brought_back(settings, tag="svc/app:gone").tags == ["svc/app:gone"]
    would = brought_back(settings, force=True, check_mode=True)
    assert [(each["tag"], each["from"], each["to"]) for each in would.moved] == [("svc/app:1", new.digest, old.digest)]
    outcome = brought_back(settings, force=True)
    assert [(each["tag"], each["from"], each["to"]) for each in outcome.moved] == [("svc/app:1", new.digest, old.digest)]
    history = outcome.moved[0]["history"].partition(":")[2]
    assert re.fullmatch(rf"1\.history-[0-9]{{8}}T[0-9]{{6}}Z-{new.digest[7:19]}", history)
    for tag, digest in (("1", old.digest), (history, new.digest)):
        assert digest_of(registry.request("GET", f"/v2/svc/app/manifests/{tag}")[2]) == digest
    assert check_whole(registry.root) == 4
    assert not brought_back(settings, force=True).changed


def test_a_damaged_blob_is_healed(settings: Settings, registry: Registry) -> None:
    one = image()
    registry.push("svc/app", "1", one)
    done(settings)
    path = registry.blob_path(list(one.blobs)[1])
    content = bytearray(path.read_bytes())
    content[50] ^= 1
    path.write_bytes(content)
    would = brought_back(settings, check_mode=True)
    assert (would.damaged, would.blobs, path.read_bytes()) == ([list(one.blobs)[1]], 1, bytes(content))
    assert brought_back(settings).damaged == [list(one.blobs)[1]]
    check_whole(registry.root)


def test_what_can_not_be_restored(settings: Settings, registry: Registry, tmp_path: Path) -> None:
    registry.push("svc/app", "1", image())
    done(settings)
    other = settings_for(tmp_path, tmp_path / "other", "other")
    cases: list[tuple[dict[str, Any], str]] = [
        ({"snapshot": "0badc0de"}, "restore_snapshot: 0badc0de: no backup has this ID."),
        ({"snapshot": "2020-01-01"}, "restore_snapshot: 2020-01-01: no backup is that old."),
        ({"snapshot": "yesterday"}, "restore_snapshot: 'yesterday': write latest, a backup's ID"),
        ({"snapshot": "2020-13-01"}, "restore_snapshot: '2020-13-01': write latest"),
        ({"repository": "web/app"}, "has no repository web/app. It has 1, like svc/app."),
        ({"repository": "../app"}, "restore_repository: '../app' is no repository."),
        ({"tag": "svc/app:9"}, "has no svc/app:9. svc/app has 1 tags there, like 1."),
        ({"tag": "svc/app"}, "restore_tag: 'svc/app' is no tag of a repository. Write PATH:TAG"),
        ({"tag": "svc/app:1", "repository": "svc/app"}, "restore_repository and restore_tag: write one of them"),
        ({"source": "/nowhere/at/all"}, "The backup's target /nowhere/at/all is not there"),
    ]
    for options, said in cases:
        with pytest.raises(RegistryFleetError) as error:
            brought_back(other, **options)
        assert said in str(error.value)
        assert os.listdir(other.storage) == []


def test_a_backup_of_something_else_is_none(settings: Settings, tmp_path: Path) -> None:
    """Somebody's own use of the repository, or another program's backup."""
    repository = Restic(settings.target, SECRETS, settings.cache)
    repository.init()
    with pytest.raises(RegistryFleetError, match="has no backup yet"):
        brought_back(settings)
    (tmp_path / "home").mkdir()
    repository.backup([str(tmp_path / "home")], "laptop", "home")
    with pytest.raises(RegistryFleetError, match="is not one of a registry: it is of"):
        brought_back(settings)


def test_a_time_means_the_newest_that_is_no_later(settings: Settings, registry: Registry, tmp_path: Path) -> None:
    registry.push("svc/app", "1", image())
    first = done(settings)
    time.sleep(1.1)
    registry.push("svc/app", "2", image())
    second = done(settings)
    at = {each.id[:8]: each.at for each in Restic(settings.target, SECRETS, settings.cache).snapshots()}
    other = settings_for(tmp_path, tmp_path / "other", "other")

    def taken(moment: str) -> str:
        return brought_back(other, moment, check_mode=True).snapshot

    assert taken(time.strftime("%Y-%m-%d", time.gmtime())) == second.snapshot
    assert taken(time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(at[first.snapshot]))) == first.snapshot
    assert taken(first.snapshot) == first.snapshot


def test_a_disk_that_is_too_small_is_found_before(settings: Settings, registry: Registry, tmp_path: Path) -> None:
    registry.push("svc/app", "1", image(3_000_000))
    done(settings)
    with small_disk(tmp_path / "small", 2) as disk:
        other = settings_for(tmp_path, disk, "other")
        with pytest.raises(RegistryFleetError, match=r"[0-9]+ bytes would come, and [0-9]+ are free. Nothing was changed. Make room for [0-9]+ more."):
            brought_back(other)
        assert files(disk) == {}


def test_the_target_s_disk_is_full(settings: Settings, registry: Registry, tmp_path: Path) -> None:
    """No backup, a clear reason, and the ones before are as they were; with room again it goes on."""
    registry.push("svc/app", "1", image())
    with small_disk(tmp_path / "small", 8) as disk:
        there = replace(settings, target=str(disk / "target"))
        done(there)
        big = registry.push("svc/app", "2", image(20_000_000))
        record = back_up(there, SECRETS)
        assert "no space left on device" in record.error and "Make room there" in record.error
        assert brought_back(settings_for(tmp_path, tmp_path / "other", "other"), source=there.target).tags == ["svc/app:1"]
        subprocess.run(["mount", "-o", "remount,size=100m", str(disk)], check=True)
        record = done(there)
        assert record.tags == 2 and record.snapshots == 2
        outcome = brought_back(settings_for(tmp_path, tmp_path / "third", "third"), source=there.target)
        assert outcome.tags == ["svc/app:1", "svc/app:2"] and check_whole(tmp_path / "third") == 2 and big


@contextlib.contextmanager
def small_disk(path: Path, megabytes: int) -> Iterator[Path]:
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "none", str(path)], check=True)
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


RUN = "import sys; from ansible_collections.mirrorfleet.registry.plugins.module_utils.registry_backup import main; sys.exit(main(sys.argv[1:]))"
BRING_BACK = """
import sys
from ansible_collections.mirrorfleet.registry.plugins.module_utils.registry_backup import secrets_of, settings_of
from ansible_collections.mirrorfleet.registry.plugins.module_utils.registry_restore import parse_wanted, restore
restore(settings_of(sys.argv[1]), secrets_of(sys.argv[2]), parse_wanted("latest", "", "", False))
"""


def program(code: str, settings: Settings, *before: str) -> subprocess.Popen[bytes]:
    """What a service or a module is: a process of its own, with all that it starts."""
    given = [Path(settings.state, name) for name in ("settings", "secrets")]
    for path, values in zip(given, (settings, SECRETS)):
        path.write_text(json.dumps(asdict(values)))
    return subprocess.Popen(
        [*before, sys.executable, "-c", code, *map(str, given)], start_new_session=True, env={**os.environ, "PYTHONPATH": str(COLLECTIONS)},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )


def kill(process: subprocess.Popen[bytes]) -> None:
    """With all that it has started; what is dead is gone when this returns, as it is for whom systemd starts next: restic asks for who has a lock."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=120)
    with contextlib.suppress(ProcessLookupError):
        while True:
            os.killpg(process.pid, 0)
            time.sleep(0.01)


def killed(code: str, settings: Settings, points: int) -> Iterator[bool]:
    """Run it to its end to know how long it takes; then again and again, killed at as many points; whether it was before its end.

    The machine may be busier at one time than at another: what ends before its point tells how long it takes now.
    """
    began = time.monotonic()
    process = program(code, settings)
    said, _nothing = process.communicate(timeout=120)
    assert process.returncode == 0, said.decode()
    seconds = time.monotonic() - began
    yield False
    for point in range(points):
        began = time.monotonic()
        process = program(code, settings)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(seconds * (point + 0.5) / points)
            seconds = time.monotonic() - began
        was_running = process.returncode is None
        kill(process)
        yield was_running


def test_a_backup_that_is_killed_anywhere(settings: Settings, registry: Registry, tmp_path: Path) -> None:
    """The next one is whole, and so are those before; nobody has to remove a lock."""
    few = replace(settings, keep={"last": 3}, check_parts=1)
    registry.push("svc/app", "0", image(500_000))
    done(few)
    hits = 0
    for turn, hit in enumerate(killed(RUN, few, 12)):
        hits += hit
        registry.push("svc/app", f"after{turn}", image(500_000))
    # A busy machine is slower than the run that was timed.
    assert hits >= 3
    record = done(few)
    assert record.tags == 14
    for number, snapshot in enumerate(Restic(settings.target, SECRETS, settings.cache).snapshots()):
        brought_back(settings_for(tmp_path, tmp_path / f"other{number}", f"other{number}"), snapshot.id)
        check_whole(tmp_path / f"other{number}")
    assert check_whole(tmp_path / f"other{number}") == 14


def test_a_restore_that_is_killed_anywhere(settings: Settings, registry: Registry, tmp_path: Path) -> None:
    """No tag is there that is not whole; the next run goes on; nothing is left behind."""
    base = layer_of({"base": noise(3_000_000)})
    for number in range(30):
        registry.push(f"svc/app{number % 3}", str(number), image(20_000, base=base))
    done(settings)
    all_files = files(registry.root)
    other = settings_for(tmp_path, tmp_path / "other", "other")
    reached = []
    for point in range(12):
        # Every other time it goes on from where the one before was killed.
        if point % 2 == 0:
            shutil.rmtree(tmp_path / "other")
            (tmp_path / "other").mkdir()
        wanted = len(all_files) * (point + 0.5) / 12
        process = program(BRING_BACK, other)
        while process.poll() is None and sum(len(names) for _path, _names, names in os.walk(tmp_path / "other/docker")) < wanted:
            time.sleep(0.001)
        kill(process)
        check_whole(tmp_path / "other")
        reached.append(len(files(tmp_path / "other")))
    assert sum(0 < number < len(all_files) for number in reached) >= 2, reached
    brought_back(other)
    # One that is killed when all has come leaves this.
    (tmp_path / "other/.mirrorfleet/restore").mkdir()
    assert not brought_back(other).changed
    assert files(tmp_path / "other") == all_files
    assert [path.name for path in (tmp_path / "other/.mirrorfleet").iterdir()] == ["holder.json"]


def test_to_s3_and_back(settings: Settings, registry: Registry, tmp_path: Path, object_storage: ObjectStorage) -> None:
    bucket = object_storage.bucket()
    there = replace(settings, target=f"s3:{object_storage.url}/{bucket}/prod")
    keys = Secrets("of the test", object_storage.access_key, object_storage.secret_key)
    registry.push("svc/app", "1", image(200_000))
    record = done(there, keys)
    assert record.bytes_new > 200_000
    assert sum(object_storage.objects(bucket).values()) > 200_000
    registry.push("svc/app", "2", image(100_000))
    assert 100_000 < done(there, keys).bytes_new < 200_000
    other = settings_for(tmp_path, tmp_path / "other", "other")
    restore(other, keys, parse_wanted("latest", "", "", False), source=there.target)
    assert files(tmp_path / "other") == files(registry.root)

    reader = Secrets("of the test", object_storage.reader_access_key, object_storage.reader_secret_key)
    for wrong in (reader, Secrets("of the test", object_storage.access_key, "wrong"), Secrets("of the test", "nobody", "wrong")):
        record = back_up(there, wrong)
        assert "Check registry_backup_s3_access_key and registry_backup_s3_secret_key." in record.error
    assert "wrong password" in back_up(there, replace(keys, password="wrong")).error
    assert done(there, keys).snapshots == 3


def test_s3_goes_away_in_the_middle(settings: Settings, registry: Registry, tmp_path: Path, object_storage: ObjectStorage) -> None:
    """It comes back: the backup goes on. It is gone: nobody waits to be told."""
    keys = Secrets("of the test", object_storage.access_key, object_storage.secret_key)
    with Way(("127.0.0.1", object_storage.port)) as way:
        there = replace(settings, target=f"s3:http://127.0.0.1:{way.port}/{object_storage.bucket()}/prod")
        registry.push("svc/app", "1", image(100))
        done(there, keys)
        for number in range(4):
            registry.push("svc/app", f"big{number}", image(4_000_000))
        way.cut_after(3_000_000)
        records: list[Record] = []
        running = threading.Thread(target=lambda: records.append(back_up(there, keys)))
        running.start()
        until(lambda: way.is_cut)
        time.sleep(3)
        assert running.is_alive(), records
        way.mend()
        running.join(240)
        assert [(each.error, each.problems, each.tags) for each in records] == [("", [], 5)]
        way.cut()
        began = time.monotonic()
        assert "can't be reached" in back_up(there, keys).error
        assert time.monotonic() - began < 10
        way.mend()
        other = settings_for(tmp_path, tmp_path / "other", "other")
        restore(other, keys, parse_wanted("latest", "", "", False), source=there.target)
        assert files(tmp_path / "other") == files(registry.root)


def test_one_at_a_time(settings: Settings, registry: Registry) -> None:
    registry.push("svc/app", "1", image())
    done(settings)
    with locked(str(registry.root), "the keeper", 1), pytest.raises(RegistryFleetError, match="the keeper .* changes this store"):
        brought_back(settings, lock_timeout=0)


DIGEST = "sha256:" + hashlib.sha256(b"").hexdigest()
HEX = DIGEST[7:]


@pytest.mark.parametrize("path", [
    f"_layers/sha256/{HEX}/link", f"_manifests/revisions/sha256/{HEX}/link", f"_manifests/tags/1/index/sha256/{HEX}/link", "_manifests/tags/1/current/link",
])
def test_a_line_is_read_as_it_was_written(path: str) -> None:
    line = Line(path, DIGEST, 5, (DIGEST,))
    assert parse_line(str(line)) == line
    assert line.tag == ("1" if path.endswith("current/link") else "")


@pytest.mark.parametrize("text", [
    "", f"../../etc/cron.d/x {DIGEST} 5", f"_manifests/tags/../current/link {DIGEST} 5", f"_layers/sha256/{'0' * 64}/link {DIGEST} 5",
    f"_manifests/tags/1/current/link {DIGEST}", f"_manifests/tags/1/current/link {DIGEST} -5", f"_manifests/tags/1/current/link {DIGEST} 5 x",
    f"/_layers/sha256/{HEX}/link {DIGEST} 5", f"_uploads/sha256/{HEX}/link {DIGEST} 5", "_manifests/tags/1/current/link sha256:1 5",
])
def test_a_line_that_no_backup_writes_is_refused(text: str) -> None:
    with pytest.raises(RegistryFleetError, match="The backup has a"):
        parse_line(text)


@given(st.one_of(st.text(), st.from_regex(r"[_a-z]+(/[.a-z0-9]+)* sha256:[0-9a-f]{64} [0-9]+( sha256:[0-9a-f]{64})*", fullmatch=True)))
def test_whatever_a_line_holds_it_leads_nowhere_else(text: str) -> None:
    try:
        line = parse_line(text)
    except RegistryFleetError:
        return
    assert line.path.startswith(("_layers/", "_manifests/")) and not {"", ".", ".."} & set(line.path.split("/"))
    assert str(line).split(" ")[:2] == text.split(" ")[:2]


@given(st.datetimes(min_value=datetime(1970, 1, 2), max_value=datetime(2100, 1, 1), timezones=st.timezones()))
def test_a_moment_is_the_same_in_every_zone(when: datetime) -> None:
    offset = when.utcoffset()
    if offset is not None and offset.total_seconds() % 60 == 0:
        text = when.isoformat(timespec="microseconds")
        assert moment(text.replace("+00:00", "Z").replace(text[20:26], text[20:26] + "789")) == pytest.approx(when.timestamp(), abs=1e-5)
