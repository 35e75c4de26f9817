# Copyright (c) 2026, mirrorfleet contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0
"""image_promote with real registries, skopeo and cosign."""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, Callable

import pytest

from ansible_collections.mirrorfleet.registry.plugins.module_utils.registry_client import RegistryClient
from ansible_collections.mirrorfleet.registry.plugins.modules import image_promote
from ansible_collections.mirrorfleet.registry.tests.unit.conftest import (
    COLLECTIONS,
    OCI,
    Authority,
    Image,
    Registry,
    RunModule,
    StartRegistry,
    answer,
    digest_of,
    free_port,
    image_of,
    layer_of,
    until,
)

PASSWORD = "s3cret-p4ss"
# Of PASSWORD; distribution takes bcrypt only.
HTPASSWD = "promoter:$2b$04$abcdefghijklmnopqrstuud115XDTwcNuD.yMpW49Ka0SxYpu6Md2\n"
KEY_PASSWORD = "k3y-s3cret"
PATH = "svc/app"
Promote = Callable[..., "dict[str, Any]"]


def cosign(*arguments: str, **environment: str) -> str:
    if shutil.which("cosign") is None:
        pytest.fail("cosign is missing; these tests run a real one: lab/prepare installs it")
    done = subprocess.run(
        ["cosign", *arguments], env={**os.environ, "COSIGN_PASSWORD": KEY_PASSWORD, **environment}, capture_output=True, text=True, check=False,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@dataclass
class Keys:
    directory: Path

    def public(self, name: str) -> str:
        return str(self.directory / f"{name}.pub")

    def private(self, name: str) -> str:
        return str(self.directory / f"{name}.key")

    def sign(self, name: str, registry: Registry, digest: str, path: str = PATH) -> None:
        cosign("sign", f"--key={self.private(name)}", "--tlog-upload=false", "--yes", f"127.0.0.1:{registry.port}/{path}@{digest}")

    def signed(self, name: str, registry: Registry, digest: str, path: str = PATH) -> bool:
        """Whether cosign, by itself, finds a signature by this key."""
        done = subprocess.run(
            ["cosign", "verify", f"--key={self.public(name)}", "--private-infrastructure", f"127.0.0.1:{registry.port}/{path}@{digest}"],
            capture_output=True, check=False,
        )
        return done.returncode == 0


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    directory = tmp_path_factory.mktemp("keys")
    for name in ("ci", "prod", "other"):
        cosign("generate-key-pair", f"--output-key-prefix={directory / name}")
    return Keys(directory)


@pytest.fixture
def target(start_registry: StartRegistry, registry: Registry) -> Registry:
    return start_registry()


@pytest.fixture
def promote(registry: Registry, target: Registry, run_module: RunModule) -> Promote:
    """Promote from `registry` to `target`; what must not fail does not, unless ``fails`` says so."""
    def run(*images: str, fails: bool = False, **more: Any) -> dict[str, Any]:
        given = {"source": {"url": registry.url}, "target": {"url": target.url}, "retries": 0}
        said = run_module(image_promote.main, images=list(images), **{**given, **more})
        assert bool(said.get("failed")) is fails, said
        return said

    return run


def made(created: str | None = None, labels: dict[str, str] | None = None, architecture: str = "amd64") -> Image:
    """An image with a layer of its own."""
    image = image_of(layer_of({"content": os.urandom(50_000)}), architecture=architecture, labels=labels)
    config, manifest = json.loads(next(iter(image.blobs.values()))), json.loads(image.manifest)
    config["created"] = created or f"{datetime.now(timezone.utc):%Y-%m-%dT%H:%M:%SZ}"
    written = json.dumps(config).encode()
    manifest["config"].update(digest=digest_of(written), size=len(written))
    return Image(json.dumps(manifest).encode(), {digest_of(written): written, **dict(list(image.blobs.items())[1:])})


def platforms() -> dict[str, Image]:
    return {"linux/amd64": made(), "linux/arm64": made(architecture="arm64")}


def tags(registry: Registry, path: str = PATH) -> dict[str, str]:
    """All tags of a repository with what they name; none where it is not there."""
    status, _location, body = registry.request("GET", f"/v2/{path}/tags/list")
    with RegistryClient(registry.url) as client:
        return {tag: client.manifest(path, tag)[1].digest for tag in json.loads(body).get("tags") or []} if status == 200 else {}


def state(registry: Registry) -> dict[str, int]:
    """Everything that a registry has on its disk."""
    return {str(path): path.stat().st_mtime_ns for path in registry.root.rglob("*")}


def referrer(subject: Image | bytes, content: bytes, artifact_type: str = "application/vnd.cyclonedx+json") -> Image:
    body = subject.manifest if isinstance(subject, Image) else subject
    config = b"{}"
    manifest = json.dumps({
        "schemaVersion": 2, "mediaType": f"{OCI}.manifest.v1+json", "artifactType": artifact_type,
        "config": {"mediaType": "application/vnd.oci.empty.v1+json", "digest": digest_of(config), "size": len(config)},
        "layers": [{"mediaType": artifact_type, "digest": digest_of(content), "size": len(content)}],
        "subject": {"mediaType": json.loads(body)["mediaType"], "digest": digest_of(body), "size": len(body)},
        "annotations": {"made-by": "test"},
    }).encode()
    return Image(manifest, {digest_of(config): config, digest_of(content): content})


def refer(registry: Registry, subject: str, *referrers: Image, path: str = PATH) -> None:
    """Push referrers, listed by the tag that stands in for the API."""
    listed = []
    for each in referrers:
        registry.push(path, each.digest, each)
        kind = json.loads(each.manifest)["artifactType"]
        listed.append({"mediaType": each.media_type, "digest": each.digest, "size": len(each.manifest), "artifactType": kind})
    index = json.dumps({"schemaVersion": 2, "mediaType": f"{OCI}.index.v1+json", "manifests": listed}).encode()
    registry.push_manifest(path, subject.replace(":", "-"), index, f"{OCI}.index.v1+json")


def test_an_image_comes_with_all_platforms_and_signatures_and_the_next_run_does_nothing(
    promote: Promote, registry: Registry, target: Registry, keys: Keys, tmp_path: Path
) -> None:
    images = platforms()
    digest = registry.push_index(PATH, "1", images)
    keys.sign("ci", registry, digest)
    keys.sign("ci", registry, images["linux/arm64"].digest)
    (tmp_path / "predicate.json").write_text('{"built": "here"}')
    place = f"127.0.0.1:{registry.port}/{PATH}@{digest}"
    cosign(
        "attest", f"--key={keys.private('ci')}", "--tlog-upload=false", "--yes", f"--predicate={tmp_path / 'predicate.json'}", "--type=custom", place
    )
    wanted = {"policy": {"signed_by": [keys.public("other"), keys.public("ci")]}, "record": str(tmp_path / "record.jsonl"), "promoted_by": "ana"}
    foretold = promote(f"{PATH}:1", _ansible_check_mode=True, **wanted)
    assert foretold["changed"] and not tags(target) and not (tmp_path / "record.jsonl").exists()
    assert not list(target.root.rglob("link"))
    said = promote(f"{PATH}:1", **wanted)
    one, = said["images"]
    assert said["changed"] and said["counts"] == {"images": 1, "promoted": 1, "failed": 0}
    assert {**one, "seconds": 0} == {**foretold["images"][0], "seconds": 0}
    assert one["digest"] == digest and one["platforms"] == ["linux/amd64", "linux/arm64"] and one["signed_by"].startswith("ci.pub (sha256:")
    blobs = {name: blob for image in images.values() for name, blob in image.blobs.items()}
    assert (one["blobs_copied"], one["bytes_copied"]) == (len(blobs), sum(map(len, blobs.values())))
    assert tags(target) == tags(registry) and len(tags(target)) == 4
    assert all(target.blob_path(name).read_bytes() == blob for name, blob in blobs.items())
    assert keys.signed("ci", target, digest) and keys.signed("ci", target, images["linux/arm64"].digest)
    there = f"127.0.0.1:{target.port}/{PATH}@{digest}"
    cosign("verify-attestation", f"--key={keys.public('ci')}", "--private-infrastructure", "--type=custom", there)
    line = json.loads((tmp_path / "record.jsonl").read_text())
    assert (line["by"], line["digest"], line["target"], line["actions"]) == ("ana", digest, f"127.0.0.1:{target.port}/{PATH}:1", one["actions"])
    before = state(target)
    again = promote(f"{PATH}:1", **wanted)
    assert not again["changed"] and again["images"][0]["actions"] == [] and again["images"][0]["signed_by"] == one["signed_by"]
    assert state(target) == before and len((tmp_path / "record.jsonl").read_text().splitlines()) == 1


def test_a_tag_that_points_elsewhere_is_moved_only_by_force_and_its_digest_stays(
    promote: Promote, registry: Registry, target: Registry, tmp_path: Path
) -> None:
    old = registry.push(PATH, "1", made())
    promote(f"{PATH}:1")
    new = registry.push(PATH, "1", made())
    said = promote(f"{PATH}:1", fails=True)
    assert f"the target has {PATH}:1 already, as {old}, and what would be promoted is {new}" in said["msg"] and "force" in said["msg"]
    assert tags(target) == {"1": old} and not target.blob_path(new).exists()
    before = state(target)
    foretold = promote(f"{PATH}:1", force=True, _ansible_check_mode=True)
    assert state(target) == before and foretold["images"][0]["previous"] == old
    one, = promote(f"{PATH}:1", force=True, record=str(tmp_path / "record"))["images"]
    history = one["history_tag"]
    assert history.startswith(f"1.history-{datetime.now(timezone.utc):%Y%m%dT}") and history.endswith(f"Z-{old[7:19]}")
    assert tags(target) == {"1": new, history: old}
    assert json.loads((tmp_path / "record").read_text())["history_tag"] == history
    assert not promote(f"{PATH}:1", force=True)["changed"]
    assert promote(f"{PATH}@{old} as {PATH}:1", force=True)["images"][0]["previous"] == new
    assert sorted(tags(target).values()) == sorted([old, old, new])


def test_the_digest_is_promoted_whatever_the_tag_becomes(promote: Promote, registry: Registry, target: Registry) -> None:
    old = registry.push(PATH, "1", made())
    new = registry.push(PATH, "1", made())
    said = promote(f"{PATH}:1@{old}", fails=True)
    assert f"the tag 1 moved: at the source it is {new} now, and {old} was to be promoted" in said["msg"] and not tags(target)
    promote(f"{PATH}@{old} as team/app:0.9", f"{PATH}:1@{new}", f"127.0.0.1:{registry.port}/{PATH}:1 as {PATH}:2")
    assert tags(target, "team/app") == {"0.9": old} and tags(target) == {"1": new, "2": new}


def test_what_the_policy_does_not_let_in_is_named_all_at_once(promote: Promote, registry: Registry, target: Registry, keys: Keys) -> None:
    weeks = f"{datetime.now(timezone.utc) - timedelta(days=40):%Y-%m-%dT%H:%M:%S.123456789Z}"
    images = {"linux/amd64": made(weeks, {"team": "payments", "tier": "1"}), "linux/arm64": made(architecture="arm64", labels={"team": "search"})}
    digest = registry.push_index(PATH, "1", images)
    demands = {"signed_by": [keys.public("ci")], "labels": {"team": "pay*", "tier": "*"}, "max_age": "30d", "sources": ["snapshots.example.com/**"]}
    said = promote(f"{PATH}:1", policy=demands, fails=True)["msg"]
    for part in [
        f"does not let {digest} in", f"it comes from 127.0.0.1:{registry.port}/{PATH}", "its label team for linux/arm64 is 'search'",
        "it has no label tier for linux/arm64", f"it was created at {weeks} (40.0 days ago) for linux/amd64, and policy.max_age is 30.0 days",
        "it is not signed",
    ]:
        assert part in said, (part, said)
    assert "payments" not in said and not list(target.root.rglob("data"))
    keys.sign("other", registry, digest)
    said = promote(f"{PATH}:1", policy={"signed_by": [keys.public("ci"), keys.public("prod")]}, fails=True)["msg"]
    assert "it is signed, but not by ci.pub (sha256:" in said and "not by prod.pub (sha256:" in said
    assert not list(target.root.rglob("data"))
    keys.sign("ci", registry, digest)
    held = {"signed_by": [Path(keys.public("ci")).read_text()], "labels": {"team": "*"}, "max_age": "8w", "sources": [f"127.0.0.1:{registry.port}/svc/*"]}
    assert promote(f"{PATH}:1", policy=held)["images"][0]["signed_by"].startswith("policy.signed_by[1] (sha256:")
    # What is there already may grow old.
    assert not promote(f"{PATH}:1", policy={**held, "max_age": "1d"})["changed"]
    promote(f"{PATH}:1 as {PATH}:2", policy={**held, "max_age": "1d"}, fails=True)


@pytest.mark.parametrize("hidden", ["as attestations", "by annotations", "behind itself"])
def test_no_platform_hides_from_the_policy(promote: Promote, registry: Registry, target: Registry, hidden: str) -> None:
    image = made(labels={"team": "search"})
    digest = registry.push(PATH, "1", image)
    entry: dict[str, Any] = {"mediaType": image.media_type, "digest": digest, "size": len(image.manifest)}
    unknown, linux = ({**entry, "platform": {"os": name, "architecture": arch}} for name, arch in (("unknown", "unknown"), ("linux", "amd64")))
    listed = {
        "as attestations": [unknown], "by annotations": [{**linux, "annotations": {"vnd.docker.reference.digest": digest}}], "behind itself": [linux, unknown],
    }
    index = json.dumps({"schemaVersion": 2, "mediaType": f"{OCI}.index.v1+json", "manifests": listed[hidden]}).encode()
    registry.push_manifest(PATH, "2", index, f"{OCI}.index.v1+json")
    said = promote(f"{PATH}:2", policy={"labels": {"team": "payments"}}, fails=True)["msg"]
    assert ("no image for any platform" if hidden == "as attestations" else "its label team for linux/amd64 is 'search'") in said


def test_it_is_signed_again_once_and_keeps_the_other_signatures(promote: Promote, registry: Registry, target: Registry, keys: Keys) -> None:
    digest = registry.push(PATH, "1", made())
    keys.sign("ci", registry, digest)
    wanted: dict[str, Any] = {"policy": {"signed_by": [keys.public("ci")]}, "sign": {"key": keys.private("prod"), "password": KEY_PASSWORD}}
    wanted["promoted_by"] = 'ana, "the" lead=1'
    assert promote(f"{PATH}:1", **wanted)["images"][0]["signed"]
    assert keys.signed("ci", target, digest) and keys.signed("prod", target, digest)
    payload = json.loads(cosign("verify", f"--key={keys.public('prod')}", "--private-infrastructure", f"127.0.0.1:{target.port}/{PATH}@{digest}"))
    assert payload[0]["optional"]["promoted-by"] == 'ana, "the" lead:1' and payload[0]["optional"]["promoted-from"] == f"127.0.0.1:{registry.port}/{PATH}"
    assert not promote(f"{PATH}:1", **wanted)["changed"]
    # A signature that the source got since comes too, and the target's own stays.
    keys.sign("other", registry, digest)
    one, = promote(f"{PATH}:1", **wanted)["images"]
    assert one["actions"] == [f"bring the signatures of {digest}"]
    assert all(keys.signed(name, target, digest) for name in ("ci", "prod", "other"))
    assert not promote(f"{PATH}:1", **wanted)["changed"]
    # As text, and after a merge cosign adds to it still.
    text = {"key_text": Path(keys.private("other")).read_text(), "password": KEY_PASSWORD}
    other = registry.push(PATH, "2", made())
    assert promote(f"{PATH}:2", sign=text)["images"][0]["signed"] and keys.signed("other", target, other)
    said = promote(f"{PATH}:2", sign={"key": keys.private("prod"), "password": "wr0ng-one"}, fails=True)
    assert "the signing key" in said["msg"] and "decryption failed" in said["msg"] and "wr0ng-one" not in json.dumps(said)


def test_names_of_one_image_do_not_overwrite_each_others_signatures(promote: Promote, registry: Registry, target: Registry, keys: Keys) -> None:
    digest = registry.push(PATH, "1", made())
    keys.sign("ci", registry, digest)
    names = [f"{PATH}:1 as {PATH}:{number}" for number in range(5)]
    images = promote(*names, sign={"key": keys.private("prod"), "password": KEY_PASSWORD}, parallel=5)["images"]
    assert sorted(each["signed"] for each in images) == [False] * 4 + [True]
    assert keys.signed("ci", target, digest) and keys.signed("prod", target, digest)
    assert {tag for tag in tags(target) if not tag.startswith("sha256-")} == set("01234")


def test_referrers_come_too_and_those_of_referrers(promote: Promote, registry: Registry, target: Registry, keys: Keys) -> None:
    image = made()
    digest = registry.push(PATH, "1", image)
    bill, licence = referrer(image, b"bill of materials"), referrer(image, b"licences", "text/spdx")
    refer(registry, digest, bill, licence)
    about = referrer(bill, b"signed", "application/vnd.example.signature")
    refer(registry, bill.digest, about)
    keys.sign("ci", registry, bill.digest)
    own = referrer(image, b"own", "application/vnd.own")
    refer(target, digest, own)
    one, = promote(f"{PATH}:1")["images"]
    assert sum("bring the referrer" in action for action in one["actions"]) == 3
    with RegistryClient(target.url) as client:
        assert {item.digest for item in client.referrers(PATH, digest)} == {own.digest, bill.digest, licence.digest}
        assert {item.artifact_type for item in client.referrers(PATH, digest)} == {"application/vnd.own", "application/vnd.cyclonedx+json", "text/spdx"}
        assert [item.digest for item in client.referrers(PATH, bill.digest)] == [about.digest]
    assert target.blob_path(digest_of(b"bill of materials")).read_bytes() == b"bill of materials"
    assert keys.signed("ci", target, bill.digest)
    assert not promote(f"{PATH}:1")["changed"]


@pytest.mark.parametrize("part", ["layer", "half a layer", "config", "platform"])
def test_an_image_that_is_not_whole_at_the_source_leaves_nothing_at_the_target(promote: Promote, registry: Registry, target: Registry, part: str) -> None:
    images = platforms()
    registry.push_index(PATH, "1", images)
    config, layer = images["linux/arm64"].blobs
    lost = {"config": config, "platform": images["linux/arm64"].digest}.get(part, layer)
    if part == "half a layer":
        os.truncate(registry.blob_path(lost), 1000)
    else:
        registry.blob_path(lost).unlink()
    said = promote(f"{PATH}:1", fails=True)
    assert "it is not whole at the source" in said["msg"] and lost in said["msg"]
    assert not list(target.root.rglob("data"))


def test_a_registry_that_is_gone_is_asked_once_and_named(promote: Promote, registry: Registry, target: Registry, serve: Callable[..., Any]) -> None:
    for name in ("a", "b", "c"):
        registry.push(f"svc/{name}", "1", made())
    gone = f"http://127.0.0.1:{free_port()}"
    for side in ("source", "target"):
        said = promote("svc/a:1", "svc/b:1", "svc/c:1", **{side: {"url": gone}}, fails=True)
        assert said["counts"] == {"images": 3, "promoted": 0, "failed": 3}
        assert said["msg"].count(f"{gone}/v2/svc/") == 3 and "connection refused" in said["msg"]
    for status, remedy in [(401, "Set username and password"), (403, "check its allowed networks and permissions")]:
        refusing = serve(lambda _path, status=status: answer(status, b"no"))
        said = promote("svc/a:1", target={"url": refusing.url}, fails=True)
        assert refusing.url in said["msg"] and remedy in said["msg"], said["msg"]
    silent = serve(lambda _path: None)
    began = time.monotonic()
    said = promote("svc/a:1", "svc/b:1", "svc/c:1", target={"url": silent.url}, timeout=3, parallel=1, fails=True)
    # Each would wait as long, if each were asked.
    assert "no answer within 3 seconds" in said["msg"] and time.monotonic() - began < 9


@pytest.fixture
def pause(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], Path]:
    """Hold the n-th run of skopeo or cosign at its beginning. The directory: `held` has its process then, `go` lets it go on."""
    def hold(number: int) -> Path:
        directory = tmp_path / "pause"
        directory.mkdir()
        for program in ("skopeo", "cosign"):
            script = directory / program
            script.write_text(
                f'#!/bin/sh\ncd {directory}\necho "$$ {program} $1" >>runs\n'
                f'if [ "$(wc -l <runs)" = {number} ]; then echo $$ >held.new; mv held.new held; while [ ! -e go ]; do sleep 0.02; done; fi\n'
                f'exec {shutil.which(program)} "$@"\n'
            )
            script.chmod(0o755)
        monkeypatch.setenv("PATH", f"{directory}:{os.environ['PATH']}")
        return directory

    return hold


class During:
    """Does something while a run is held, and then lets it go on."""

    def __init__(self, directory: Path, act: Callable[[int], object]) -> None:
        self._directory, self._act = directory, act
        self.seen: list[object] = []
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()

    def _watch(self) -> None:
        try:
            until((self._directory / "held").exists)
            self.seen.append(self._act(int((self._directory / "held").read_text())))
        finally:
            (self._directory / "go").touch()

    def join(self) -> object:
        self._thread.join()
        return self.seen[0]


def test_a_tag_that_somebody_else_sets_meanwhile_stays(promote: Promote, registry: Registry, target: Registry, pause: Callable[[int], Path]) -> None:
    registry.push(PATH, "1", made())
    during = During(pause(1), lambda _process: target.push(PATH, "1", made()))
    said = promote(f"{PATH}:1", fails=True)
    theirs = during.join()
    assert f"the tag {PATH}:1 at the target was set by somebody else meanwhile, to {theirs}; it was left as it is" in said["msg"]
    assert tags(target) == {"1": theirs}


def test_a_tag_that_moves_at_the_source_meanwhile_changes_nothing(
    promote: Promote, registry: Registry, target: Registry, pause: Callable[[int], Path]
) -> None:
    digest = registry.push(PATH, "1", made())
    during = During(pause(1), lambda _process: registry.push(PATH, "1", made()))
    promote(f"{PATH}:1")
    assert during.join() != digest and tags(target) == {"1": digest}


@pytest.mark.parametrize("number", [2, 3, 4, 5])
def test_a_run_that_is_killed_leaves_the_tag_and_the_next_one_goes_on(
    promote: Promote, registry: Registry, target: Registry, keys: Keys, pause: Callable[[int], Path], number: int
) -> None:
    old = registry.push(PATH, "1", made())
    promote(f"{PATH}:1")
    digest = registry.push(PATH, "1", made())
    keys.sign("ci", registry, digest)
    wanted = {
        "policy": {"signed_by": [keys.public("ci")]}, "sign": {"key": keys.private("prod"), "password": KEY_PASSWORD}, "force": True, "promoted_by": "ana",
    }
    directory = pause(number)
    code = (
        "import json, sys; from ansible_collections.mirrorfleet.registry.plugins.module_utils.image_promote import promote;"
        "print(promote(**json.loads(sys.argv[1])))"
    )
    arguments = {"images": [f"{PATH}:1"], "source": {"url": registry.url}, "target": {"url": target.url}, **wanted}
    environment = {**os.environ, "PYTHONPATH": str(COLLECTIONS), "TMPDIR": str(directory)}
    process = subprocess.Popen([sys.executable, "-c", code, json.dumps(arguments)], start_new_session=True, env=environment)
    until((directory / "held").exists)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    names = [line.split(maxsplit=1)[1] for line in (directory / "runs").read_text().splitlines()]
    assert names == ["cosign public-key", "cosign verify", "skopeo copy", "skopeo copy", "cosign sign"][:number]
    assert tags(target)["1"] == old
    (directory / "go").touch()
    one, = promote(f"{PATH}:1", **wanted)["images"]
    assert one["previous"] == old and tags(target)["1"] == digest and tags(target)[one["history_tag"]] == old
    assert keys.signed("ci", target, digest) and keys.signed("prod", target, digest)


@pytest.fixture
def guarded(start_registry: StartRegistry, authority: Authority, keys: Keys, tmp_path: Path) -> tuple[Registry, Registry, str]:
    """Two registries that speak TLS by an authority of their own and ask for a login; the first has a signed image, whose digest it is."""
    (tmp_path / "htpasswd").write_text(HTPASSWD)
    registries = start_registry(), start_registry()
    digest = registries[0].push(PATH, "1", made())
    keys.sign("ci", registries[0], digest)
    for each in registries:
        each.stop()
        each.start({
            "version": 0.1, "log": {"level": "warn"}, "storage": {"filesystem": {"rootdirectory": str(each.root)}},
            "http": {"addr": f"127.0.0.1:{each.port}", "tls": {"certificate": str(authority.server_certificate), "key": str(authority.server_key)}},
            "auth": {"htpasswd": {"realm": "lab", "path": str(tmp_path / "htpasswd")}},
        })
        each.scheme = "https"
    return (*registries, digest)


def arguments_of_children() -> list[str]:
    """Of all processes that this one has started, and those have. Others' secrets may be the same: those of the tests that run beside this."""
    known, lines = {os.getpid()}, []
    command = ["ps", "-eo", "pid,ppid,args", "-ww", "--no-headers", "--forest"]
    for line in subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines():
        pid, parent, *arguments = line.split(maxsplit=2)
        if int(parent) in known:
            known.add(int(pid))
            lines += arguments
    return lines


@pytest.mark.parametrize("number", [1, 2, 3, 4, 5])
def test_no_secret_is_an_argument_or_where_others_can_read_it(
    run_module: RunModule, guarded: tuple[Registry, Registry, str], keys: Keys, authority: Authority, tmp_path: Path,
    pause: Callable[[int], Path], monkeypatch: pytest.MonkeyPatch, number: int,
) -> None:
    source, target, _digest = guarded
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    login = {"username": "promoter", "password": PASSWORD, "ca_certificate": str(authority.certificate)}
    arguments = {
        "images": [f"{PATH}:1"], "source": {"url": source.url, **login}, "target": {"url": target.url, **login}, "retries": 0,
        "policy": {"signed_by": [keys.public("ci")]}, "sign": {"key_text": Path(keys.private("prod")).read_text(), "password": KEY_PASSWORD},
        "record": str(tmp_path / "record"),
    }
    secrets = (PASSWORD, KEY_PASSWORD, base64.b64encode(f"promoter:{PASSWORD}".encode()).decode(), "PRIVATE KEY")

    def look(process: int) -> dict[str, str]:
        lines = "\n".join(arguments_of_children())
        assert f"{PATH}@sha256:" in lines or number == 1
        assert not [secret for secret in secrets if secret in lines]
        assert [stat.S_IMODE(path.stat().st_mode) for path in temporary.iterdir()] == [0o700]
        on_disk = b"".join(path.read_bytes() for path in temporary.rglob("*") if path.is_file() and not path.is_symlink()).decode()
        assert not [secret for secret in secrets if secret in on_disk]
        return dict(item.split("=", 1) for item in Path(f"/proc/{process}/environ").read_text().split("\0") if "=" in item)

    during = During(pause(number), look)
    said = run_module(image_promote.main, **arguments)
    environment = during.join()
    assert said.get("changed") and said["images"][0]["signed"], said
    # Only cosign gets the key, and only where it is needed.
    assert isinstance(environment, dict) and ("COSIGN_PASSWORD" in environment) is (number in (1, 5))
    assert any("PRIVATE KEY" in value for value in environment.values()) is (number in (1, 5))
    assert not [name for name, value in environment.items() if PASSWORD in value]
    assert not list(temporary.iterdir())
    everything = json.dumps({**said, "invocation": {}}) + (tmp_path / "record").read_text()
    assert not [secret for secret in secrets if secret in everything]
    assert stat.S_IMODE((tmp_path / "record").stat().st_mode) & 0o007 == 0


def test_what_refuses_a_login_or_is_not_trusted_is_named(
    run_module: RunModule, guarded: tuple[Registry, Registry, str], authority: Authority, serve: Callable[..., Any], registry: Registry
) -> None:
    source, target, _digest = guarded
    login = {"username": "promoter", "password": PASSWORD, "ca_certificate": authority.certificate.read_text()}
    given = {"images": [f"{PATH}:1"], "source": {"url": source.url, **login}, "retries": 0}
    for change, says in [
        ({"password": "wr0ng-s3cret"}, "The given username and password were refused; correct them."),
        ({"username": None, "password": None}, "Set username and password."),
        ({"ca_certificate": None}, "its certificate is not trusted"),
    ]:
        said = run_module(image_promote.main, **given, target={"url": target.url, **login, **change})
        assert said["failed"] and says in said["msg"] and target.url in said["msg"] and "wr0ng-s3cret" not in said["msg"], said
    assert not list(target.root.rglob("data"))
    run_module(image_promote.main, **given, target={"url": target.url, **login, "ca_certificate": None, "validate_certs": False})
    assert list(target.root.rglob("data"))
    # One that lets read and not write.
    registry.push(PATH, "1", made())
    for status, says in [(403, "does not let this user or host push"), (401, "Correct username and password of the target")]:
        refusing = serve(lambda path, status=status: answer(200 if path == "/v2/" else status if "/uploads/" in path else 404, b"", Connection="close"))
        said = run_module(image_promote.main, images=[f"{PATH}:1"], source={"url": registry.url}, target={"url": refusing.url}, retries=0)
        assert said["failed"] and says in said["msg"], said["msg"]


def test_what_is_wrong_with_the_arguments_is_said_before_anything_is_asked(
    promote: Promote, registry: Registry, target: Registry, keys: Keys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry.push(PATH, "1", made())
    (tmp_path / "file").touch()
    image = f"{PATH}:1"
    for given, says in [
        ({"record": str(tmp_path / "absent" / "record")}, f"record: {tmp_path}/absent/record can't keep the record: {tmp_path}/absent is no directory"),
        ({"record": str(tmp_path)}, "can't be written to"),
        ({"policy": {"signed_by": ["/absent.pub"]}}, "policy.signed_by[1]: /absent.pub can't be read (No such file or directory)"),
        ({"policy": {"signed_by": [keys.private("ci")]}}, "ci.key is a private key"),
        ({"policy": {"signed_by": [str(tmp_path / "file")]}}, "file is no public key"),
        ({"policy": {"max_age": "a month"}}, "policy.max_age: 'a month' is no length of time"),
        ({"sign": {"key": "/absent.key"}}, "sign.key: /absent.key can't be read"),
        ({"sign": {"key": keys.public("ci")}}, "the signing key"),
        ({"sign": {"password": KEY_PASSWORD}}, "one of the following is required: key, key_text"),
        ({"source": {"url": f"{registry.url}/artifactory/docker"}}, f"source.url: {registry.url}/artifactory/docker has a path"),
        ({"target": {"url": "prod.test"}}, "it is no URL of a registry"),
        ({"parallel": 0}, "parallel: 0 promotes nothing"),
    ]:
        said = promote(image, fails=True, **given)
        assert says in said["msg"], (says, said["msg"])
    monkeypatch.setenv("PATH", str(tmp_path))
    said = promote(image, fails=True, policy={"signed_by": [keys.public("ci")]})
    assert "skopeo and cosign not found on this host. Install: apt-get install skopeo cosign" in said["msg"]
    assert not list(target.root.rglob("*"))


def test_a_record_that_the_disk_refuses_is_in_the_error(promote: Promote, registry: Registry, target: Registry) -> None:
    digest = registry.push(PATH, "1", made())
    said = promote(f"{PATH}:1", record="/dev/full", fails=True)
    assert "it was done, but /dev/full can't be written to (No space left on device)" in said["msg"] and tags(target) == {"1": digest}
    assert json.loads(said["msg"].rpartition("Append this line to it: ")[2])["digest"] == digest and said["changed"]
