# Copyright (c) 2026, mirrorfleet contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import json
import os
import tempfile
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ansible_collections.mirrorfleet.registry.plugins.module_utils.image_manifest import ManifestError, parse_manifest
from ansible_collections.mirrorfleet.registry.plugins.module_utils.image_reference import is_digest, is_repository
from ansible_collections.mirrorfleet.registry.plugins.module_utils.storage import StorageError, Store, Upload
from ansible_collections.mirrorfleet.registry.tests.unit.conftest import Registry, digest_of, image_of, layer_of

IMAGE = image_of(layer_of({"app": b"hello"}), labels={"naïve": "日本"})
LONGEST = "/".join(["a" * 63] * 3 + ["b" * 63])


def problems(store: Store) -> dict[str, str]:
    return {problem.path.replace("docker/registry/v2/", ""): problem.why for problem in store.problems}


def put(path: Path, content: bytes | str = b"") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


def test_what_was_pushed_is_found(registry: Registry) -> None:
    for repository in ("app", "svc", "svc/app", LONGEST):
        registry.push(repository, "1", IMAGE)
    registry.push("svc/app", "2.0_x", IMAGE)
    store = Store(str(registry.root))
    assert len(LONGEST) == 255 and store.repositories() == [LONGEST, "app", "svc", "svc/app"]
    assert store.tags("svc/app") == {"1": IMAGE.digest, "2.0_x": IMAGE.digest}
    assert store.revisions("svc") == {IMAGE.digest} and store.layers("svc") == set(IMAGE.blobs)
    assert store.blobs() == {IMAGE.digest: len(IMAGE.manifest), **{digest: len(blob) for digest, blob in IMAGE.blobs.items()}}
    assert store.read_blob(IMAGE.digest, 10_000) == IMAGE.manifest and store.read_blob(IMAGE.digest, 10) is None
    assert Path(store.blob_path(IMAGE.digest)) == registry.blob_path(IMAGE.digest)
    assert store.problems == []


def test_an_upload_under_way_is_found(registry: Registry) -> None:
    _status, location, _body = registry.request("POST", "/v2/svc/app/blobs/uploads/")
    status, _location, _body = registry.request("PATCH", location.split(f":{registry.port}", 1)[1], b"half a blob")
    assert status == 202
    store = Store(str(registry.root))
    (upload,) = store.uploads("svc/app")
    assert upload == Upload("svc/app", upload.id, 11, upload.written) and abs(upload.written - time.time()) < 60
    assert store.repositories() == ["svc/app"] and store.problems == []


def test_a_store_that_nothing_was_written_to_is_empty(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    assert (store.repositories(), store.blobs(), store.problems) == ([], {}, [])


def test_what_distribution_does_not_write_is_told_and_harms_nothing(registry: Registry, tmp_path: Path) -> None:
    registry.push("svc/app", "1", IMAGE)
    repository, blobs, outside = registry.v2 / "repositories/svc/app", registry.v2 / "blobs/sha256", tmp_path / "outside"
    put(outside / "_manifests/tags/1/current/link", IMAGE.digest)
    put(registry.v2 / "repositories/notes.txt", "x")
    put(registry.v2 / "repositories/svc/UPPER/_manifests/tags/1/current/link", IMAGE.digest)
    (registry.v2 / "repositories/svc/away").symlink_to(outside)
    put(repository / "_manifests/tags/-x/current/link", IMAGE.digest)
    put(repository / "_manifests/tags/empty/current/link")
    put(repository / "_manifests/tags/wrong/current/link", "sha256:" + "g" * 64)
    put(repository / "_manifests/tags/long/current/link", "x" * 4096)
    (repository / "_manifests/tags/unlinked/current").mkdir(parents=True)
    (repository / "_manifests/tags/pipe/current").mkdir(parents=True)
    os.mkfifo(repository / "_manifests/tags/pipe/current/link")
    (repository / "_manifests/tags/away/current").mkdir(parents=True)
    (repository / "_manifests/tags/away/current/link").symlink_to(outside / "_manifests/tags/1/current/link")
    put(repository / "_manifests/revisions/sha256/zz/link", IMAGE.digest)
    put(blobs / "ab/cd/data", "x")
    put(blobs / "00" / ("f" * 64) / "data", "x")
    put(blobs / "lost+found", "x")
    (blobs / "ee" / ("e" * 64)).mkdir(parents=True)
    os.mkdir(os.fsencode(registry.v2) + b"/repositories/\xff\xfe")
    store = Store(str(registry.root))
    assert store.repositories() == ["svc/app"]
    assert store.tags("svc/app") == {"1": IMAGE.digest}
    assert store.revisions("svc/app") == {IMAGE.digest}
    assert set(store.blobs()) == {IMAGE.digest, *IMAGE.blobs}
    link, tags = "a symbolic link, which distribution never makes; not followed", "repositories/svc/app/_manifests/tags"
    assert problems(store) == {
        "repositories/notes.txt": "a file that distribution does not put there",
        "repositories/svc/UPPER": "its name is no repository's",
        "repositories/\ufffd\ufffd": "its name is no repository's",
        "repositories/svc/away": link,
        f"{tags}/-x": "its name is no tag's",
        f"{tags}/empty/current/link": "a link that holds no digest",
        f"{tags}/wrong/current/link": "a link that holds no digest",
        f"{tags}/long/current/link": "a link that holds no digest",
        f"{tags}/pipe/current/link": "no file",
        f"{tags}/away/current/link": link,
        "repositories/svc/app/_manifests/revisions/sha256/zz": "its name is no digest's",
        "blobs/sha256/ab/cd": "its name is no digest's",
        f"blobs/sha256/00/{'f' * 64}": "its name is no digest's",
        "blobs/sha256/lost+found": "a file that distribution does not put there",
    }


def test_a_store_that_leads_out_of_itself_is_refused(registry: Registry, tmp_path: Path) -> None:
    registry.push("svc/app", "1", IMAGE)
    (tmp_path / "alias").symlink_to(registry.root)
    assert Store(str(tmp_path / "alias")).repositories() == ["svc/app"]
    (registry.v2 / "repositories").rename(tmp_path / "elsewhere")
    (registry.v2 / "repositories").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StorageError, match="symbolic link"):
        Store(str(registry.root))


def test_no_store_and_no_permission_are_told(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="no directory"):
        Store(str(tmp_path / "absent"))
    put(tmp_path / "file")
    with pytest.raises(StorageError, match="can't be read"):
        Store(str(tmp_path / "file"))


def test_what_may_not_be_read_is_told(registry: Registry) -> None:
    registry.push("svc/app", "1", IMAGE)
    registry.push("svc/secret", "1", IMAGE)
    (registry.v2 / "repositories/svc/secret").chmod(0)
    registry.blob_path(IMAGE.digest).chmod(0)
    for directory in registry.root.parents[:3]:
        directory.chmod(0o755)
    answers, answer = os.pipe()
    child = os.fork()
    if child == 0:
        # Root may read everything, so the store is read as nobody.
        if os.getuid() == 0:
            os.setuid(65534)
        store = Store(str(registry.root))
        found = [store.repositories(), store.tags("svc/app"), store.read_blob(IMAGE.digest, 10_000)]
        os.write(answer, json.dumps([found, problems(store)]).encode())
        os._exit(0)
    os.close(answer)
    assert os.waitpid(child, 0)[1] == 0
    with open(answers, "rb") as told:
        blob = str(registry.blob_path(IMAGE.digest).relative_to(registry.v2))
        assert json.load(told) == [
            [["svc/app"], {"1": IMAGE.digest}, None], {"repositories/svc/secret": "Permission denied", blob: "Permission denied"}
        ]


def test_a_store_that_is_written_to_is_read(registry: Registry) -> None:
    images = [image_of(layer_of({"app": bytes([number])})) for number in range(20)]
    pushing = threading.Thread(target=lambda: [registry.push(f"svc/{number}", "1", image) for number, image in enumerate(images)])
    pushing.start()
    while pushing.is_alive():
        store = Store(str(registry.root))
        for repository in store.repositories():
            tags, revisions = store.tags(repository), store.revisions(repository)
            # The order in which distribution writes: blobs, the manifest, its link, the tag.
            assert set(tags.values()) <= revisions
            assert revisions <= set(store.blobs())
        assert not [problem for problem in store.problems if "holds no digest" not in problem.why]
    assert len(Store(str(registry.root)).repositories()) == len(images)


names = st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=20).filter(lambda name: name not in (".", ".."))
known = ["_manifests", "_layers", "_uploads", "tags", "revisions", "current", "link", "sha256", "svc", "repositories", "blobs", "data", "a" * 64, "aa"]
contents = st.one_of(st.none(), st.binary(max_size=80), st.just(b"sha256:" + b"a" * 64))
trees = st.lists(st.tuples(st.lists(st.one_of(names, st.sampled_from(known)), min_size=1, max_size=8), contents), max_size=12)


@settings(max_examples=60)
@given(trees)
def test_any_tree_is_read_without_an_error(tree: list[tuple[list[str], bytes | None]]) -> None:
    with tempfile.TemporaryDirectory() as root:
        for path, content in tree:
            target = Path(root, "docker/registry/v2", *path)
            try:
                put(target, content) if content is not None else target.mkdir(parents=True, exist_ok=True)
            except OSError:
                continue  # it is there as the other kind, or its name is too long
        store = Store(root)
        for repository in store.repositories():
            assert is_repository(repository)
            assert all(map(is_digest, store.tags(repository).values()))
            assert all(map(is_digest, store.revisions(repository) | store.layers(repository)))
            store.uploads(repository)
        assert all(map(is_digest, store.blobs()))
        json.dumps([problem.path for problem in store.problems]).encode()


json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.sampled_from([digest_of(b""), "linux", "amd64"])),
    lambda inner: st.one_of(st.lists(inner), st.dictionaries(st.sampled_from(["digest", "size", "os", "architecture", "platform", "x"]), inner)),
    max_leaves=12,
)
manifests = st.fixed_dictionaries({"schemaVersion": st.sampled_from([1, 2, 2, 2])}, optional={
    "mediaType": json_values, "config": json_values, "layers": json_values, "manifests": json_values,
})


@given(st.one_of(manifests.map(json.dumps).map(str.encode), json_values.map(json.dumps).map(str.encode), st.binary()))
def test_any_manifest_is_parsed_or_refused(body: bytes) -> None:
    try:
        manifest = parse_manifest(body)
    except ManifestError:
        return
    assert all(is_digest(blob.digest) and blob.size >= 0 for blob in (*manifest.blobs, *manifest.manifests))


@pytest.mark.parametrize("body", [b"[" * 100_000, b'{"schemaVersion": ' + b"9" * 10_000 + b"}", b"\xff", b""])
def test_a_hostile_manifest_is_refused(body: bytes) -> None:
    with pytest.raises(ManifestError):
        parse_manifest(body)
