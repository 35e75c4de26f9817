# Copyright (c) 2026, mirrorfleet contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0
"""The scope archive: the role's files, run by HAProxy, distribution and skopeo, with distribution as upstreams."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import os
import random
import shutil
import signal
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Iterator

import pytest

from ansible_collections.mirrorfleet.registry.plugins.module_utils.archive import USER, hashed
from ansible_collections.mirrorfleet.registry.plugins.module_utils.archive_list import parse
from ansible_collections.mirrorfleet.registry.plugins.module_utils.registry_client import RegistryClient
from ansible_collections.mirrorfleet.registry.tests.unit.conftest import (
    OCI,
    Image,
    Registry,
    StartRegistry,
    free_port,
    image_of,
    layer_of,
    listens,
    until,
)
from ansible_collections.mirrorfleet.registry.tests.unit.roles.conftest import Render
from ansible_collections.mirrorfleet.registry.tests.unit.roles.test_registry import program, put_down, running, variables

MEGABYTE = 1024 * 1024


def made(size: int = 20_000, architecture: str = "amd64") -> Image:
    """An image with a layer of its own."""
    return image_of(layer_of({"content": os.urandom(size)}), architecture=architecture)


@dataclass
class Archive:
    """What the role brings up: an archive, and its synchroniser as its unit starts it."""

    base: Path
    port: int
    command: list[str]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def htpasswd(self) -> Path:
        return self.base / "run/archive.htpasswd"

    def wants(self, *images: str, **more: Any) -> None:
        """Write down what is to be brought; a domain is asked at its own address, unless ``sources`` says otherwise."""
        path = self.base / "etc/archive-archive.json"
        parsed = [parse(image) for image in images]
        sources = [
            {"domain": domain, "url": f"http://{domain}", "username": "", "password": "", "ca_certificate": "", "validate_certs": True}
            for domain in dict.fromkeys(image["domain"] for image in parsed)
        ]
        path.write_text(json.dumps({**json.loads(path.read_text()), "images": parsed, "sources": sources, "most_tags": 100, "platforms": [], **more}))

    def start(self, **environment: str) -> subprocess.Popen[str]:
        given = {"PATH": os.environ["PATH"], **environment}
        return subprocess.Popen(self.command, cwd="/", env=given, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def run(self, fails: bool = False) -> list[str]:
        process = self.start()
        said = process.communicate(timeout=120)[0].splitlines()
        assert process.returncode == int(fails), said
        return said

    def tags(self, repository: str) -> dict[str, str]:
        """Tags with what they name, each of it whole, as whoever comes without a login gets it."""
        found: dict[str, str] = {}
        with RegistryClient(self.url) as client:
            # Not there, or only begun.
            if self.request("GET", f"/v2/{repository}/tags/list")[0] == 404:
                return found
            for tag in client.tags(repository):
                manifest, transfer = client.manifest(repository, tag)
                found[tag] = transfer.digest
                for each in [client.manifest(repository, item.digest)[0] for item in manifest.manifests] or [manifest]:
                    for blob in each.blobs:
                        client.blob(repository, blob)
            return found

    def request(self, method: str, target: str, login: str = "", outside: bool = False, body: bytes = b"") -> tuple[int, http.client.HTTPMessage, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10, source_address=("127.0.0.2", 0) if outside else None)
        headers = {"Accept": f"{OCI}.manifest.v1+json", **({"Authorization": f"Basic {base64.b64encode(login.encode()).decode()}"} if login else {})}
        connection.request(method, target, body or None, headers)
        answer = connection.getresponse()
        result = answer.status, answer.headers, answer.read()
        connection.close()
        return result


@pytest.fixture(scope="module")
def disk() -> Iterator[Path]:
    """A directory with a disk of its own, where whoever runs this may mount one."""
    # The path of a socket has 107 characters at most, and pytest's directories are long.
    with tempfile.TemporaryDirectory(prefix="mf-") as directory:
        store = Path(directory) / "store/archive"
        store.mkdir(parents=True)
        is_mounted = os.geteuid() == 0 and subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(store)], check=False).returncode == 0
        yield Path(directory)
        if is_mounted:
            subprocess.run(["umount", "--lazy", str(store)], check=True)


@pytest.fixture(scope="module")
def put(render: Render, disk: Path) -> tuple[Path, int]:
    """The role's files are where they belong."""
    base, port = disk, free_port()
    wanted = variables(base, {"archive": port})
    wanted["registry_here"][0]["images"] = ["docker.io/library/debian:12"]
    wanted.update(registry_users=[], registry_metrics=str(base / "metrics"), __registry_archive_state=str(base / "state"), mirror_upstreams=[])
    put_down(base, *render("registry", wanted), *render("registry", wanted, template="front_files.yml.j2"))
    for name in ("metrics", "state/archive", "run"):
        (base / name).mkdir(parents=True)
    # The unit of the door does this.
    (base / "run/archive.htpasswd").touch()
    return base, port


@pytest.fixture(scope="module")
def archive(put: tuple[Path, int]) -> Iterator[Archive]:
    base, port = put
    unit = (base / "units/mirrorfleet-registry-archive@.service").read_text().replace("%i", "archive")
    command, = (line.partition("=")[2].split() for line in unit.splitlines() if line.startswith("ExecStart="))
    with running(base, {"archive": port}):
        yield Archive(base, port, command)


@pytest.fixture
def upstream(registry: Registry) -> Registry:
    return registry


def domain(upstream: Registry) -> str:
    return f"127.0.0.1:{upstream.port}"


def place(upstream: Registry, path: str = "svc/app") -> str:
    """What its repository is called in the archive."""
    return f"127.0.0.1_{upstream.port}/{path}"


def asked(upstream: Registry) -> list[str]:
    """What was asked of it, by its log: method and path."""
    text = upstream.root.with_suffix(".log").read_text()
    return [line.split('"')[1].rpartition(" ")[0] for line in text.splitlines() if '"GET /' in line or '"HEAD /' in line]


def test_what_the_operator_wrote_is_what_is_asked_for(put: tuple[Path, int]) -> None:
    settings = json.loads((put[0] / "etc/archive-archive.json").read_text())
    assert settings["sources"] == [
        {"domain": "docker.io", "url": "https://registry-1.docker.io", "username": "", "password": "", "ca_certificate": "", "validate_certs": True}
    ]
    assert [(image["path"], image["to"], image["tag"]) for image in settings["images"]] == [("library/debian", "docker.io/library/debian", "12")]
    assert settings["target"] == f"http://127.0.0.1:{put[1]}"


def test_images_come_whole_with_signatures_and_the_next_run_asks_for_no_manifest(archive: Archive, upstream: Registry) -> None:
    images = {"linux/amd64": made(), "linux/arm64": made(architecture="arm64")}
    digest = upstream.push_index("svc/app", "1", images)
    single = upstream.push("svc/other", "latest", made())
    signature = upstream.push("svc/app", f"{digest.replace(':', '-')}.sig", made())
    archive.wants(f"{domain(upstream)}/svc/app:1", f"{domain(upstream)}/svc/other:latest")
    said = archive.run()
    blobs = [blob for image in images.values() for blob in image.blobs.values()]
    assert f"{place(upstream)}:1: came: {digest}, {len(blobs)} blobs, {sum(map(len, blobs))} bytes" in said
    assert archive.tags(place(upstream)) == {"1": digest, f"{digest.replace(':', '-')}.sig": signature}
    assert archive.tags(place(upstream, "svc/other")) == {"latest": single}
    before, written = len(asked(upstream)), {path: path.stat().st_mtime_ns for path in (archive.base / "store").rglob("*")}
    assert archive.run() == ["0 tags came, 0 bytes; 2 are as they were, 0 failed"]
    # Docker Hub counts what is fetched, and not what is only asked about.
    later = asked(upstream)[before:]
    assert not [each for each in later if each.startswith("GET ") and "/manifests/sha256:" in each or "/blobs/" in each], later
    assert {path: path.stat().st_mtime_ns for path in (archive.base / "store").rglob("*")} == written


def test_a_signature_that_comes_later_comes(archive: Archive, upstream: Registry) -> None:
    digest = upstream.push("svc/app", "1", made())
    archive.wants(f"{domain(upstream)}/svc/app:1")
    archive.run()
    signature = upstream.push("svc/app", f"{digest.replace(':', '-')}.sig", made())
    archive.run()
    assert archive.tags(place(upstream)) == {"1": digest, f"{digest.replace(':', '-')}.sig": signature}


def test_a_tag_that_is_moved_keeps_its_old_digest_and_one_that_is_deleted_stays(archive: Archive, upstream: Registry) -> None:
    old = upstream.push("svc/app", "1", made())
    archive.wants(f"{domain(upstream)}/svc/app:1")
    archive.run()
    new = upstream.push("svc/app", "1", made())
    said = archive.run()
    tags = archive.tags(place(upstream))
    history, = (tag for tag in tags if tag != "1")
    assert tags == {"1": new, history: old} and history.startswith("1.history-") and history.endswith(old[7:19])
    assert [line for line in said if f"{place(upstream)}:1: came: {new}" in line and f"it was {old}, which stays as {history}" in line]
    lines = [json.loads(line) for line in (archive.base / "state/archive/history.jsonl").read_text().splitlines()]
    assert [(line["digest"], line["previous"], line["history_tag"]) for line in lines if f"/{place(upstream)}:" in line["target"]] == [
        (old, "", ""), (new, old, history)
    ]
    shutil.rmtree(upstream.v2 / "repositories/svc/app/_manifests/tags/1")
    said = archive.run()
    assert said == [f"<5>{place(upstream)}:1: is no longer at the upstream, and stays here as {new}", "0 tags came, 0 bytes; 0 are as they were, 0 failed"]
    shutil.rmtree(upstream.v2 / "repositories/svc")
    archive.run()
    assert archive.tags(place(upstream)) == tags


def test_a_tag_that_is_held_stays_and_the_journal_says_that_the_upstream_differs(archive: Archive, upstream: Registry) -> None:
    old = upstream.push("svc/app", "1", made())
    new = upstream.push("svc/app", "1", made())
    archive.wants(f"{domain(upstream)}/svc/app:1@{old}")
    said = archive.run()
    assert f"<5>{place(upstream)}:1: is held at {old}, and the upstream has {new}" in said
    assert archive.tags(place(upstream)) == {"1": old}
    assert archive.run()[-1] == "0 tags came, 0 bytes; 1 are as they were, 0 failed"
    # Let go, and held again when the upstream has neither tag nor digest any more.
    archive.wants(f"{domain(upstream)}/svc/app:1")
    archive.run()
    assert archive.tags(place(upstream))["1"] == new
    shutil.rmtree(upstream.v2 / "repositories/svc")
    archive.wants(f"{domain(upstream)}/svc/app:1@{old}")
    archive.run()
    tags = archive.tags(place(upstream))
    assert tags["1"] == old and sorted(tags.values()) == sorted([old, old, new])


def test_a_pattern_brings_the_highest_versions_and_says_what_it_leaves(archive: Archive, upstream: Registry) -> None:
    pushed = {tag: upstream.push("svc/app", tag, made()) for tag in ("v1.2", "v1.9", "v1.10", "v2.0", "latest")}
    upstream.push("svc/app", f"{pushed['v1.9'].replace(':', '-')}.att", made())
    archive.wants(f"{domain(upstream)}/svc/app:v1.*", f"{domain(upstream)}/svc/app:v1.2@{pushed['latest']}", most_tags=2)
    said = archive.run()
    assert f"<5>{place(upstream)}:v1.*: 1 tags more fit than most_tags, which is 2: the highest versions come" in said
    assert archive.tags(place(upstream)) == {
        "v1.10": pushed["v1.10"], "v1.9": pushed["v1.9"], "v1.2": pushed["latest"], f"{pushed['v1.9'].replace(':', '-')}.att": archive.tags(
            place(upstream))[f"{pushed['v1.9'].replace(':', '-')}.att"],
    }
    shutil.rmtree(upstream.v2 / "repositories/svc/app/_manifests/tags/v1.10")
    assert f"<5>{place(upstream)}:v1.10: is no longer at the upstream, and stays here" in archive.run()
    assert archive.tags(place(upstream))["v1.10"] == pushed["v1.10"]


def test_only_the_platforms_that_are_wanted_come(archive: Archive, upstream: Registry) -> None:
    images = {"linux/amd64": made(), "linux/arm64": made(architecture="arm64"), "linux/s390x": made(architecture="s390x")}
    digest = upstream.push_index("svc/app", "1", images)
    single = upstream.push("svc/app", "2", made())
    here = f"{domain(upstream)}/svc/app"
    archive.wants(f"{here}:1", f"{here}:2", platforms=["linux/amd64", "linux/arm64"])
    archive.run()
    tags = archive.tags(place(upstream))
    assert set(tags) == {"1", "2"} and tags["1"] != digest and tags["2"] == single
    with RegistryClient(archive.url) as client:
        assert [item.digest for item in client.manifest(place(upstream), "1")[0].manifests] == [images[name].digest for name in list(images)[:2]]
        assert client.head_manifest(place(upstream), images["linux/s390x"].digest) is None
    before = len(asked(upstream))
    assert archive.run() == ["0 tags came, 0 bytes; 2 are as they were, 0 failed"]
    assert not [each for each in asked(upstream)[before:] if each.startswith("GET ") and "/manifests/sha256:" in each]
    # Held at what the upstream calls it.
    upstream.push_index("svc/app", "1", {**images, "linux/amd64": made()})
    archive.wants(f"{here}:1@{digest}", platforms=["linux/amd64", "linux/arm64"])
    assert archive.run()[-1] == "0 tags came, 0 bytes; 1 are as they were, 0 failed" and archive.tags(place(upstream))["1"] == tags["1"]
    # Of an image that is for none of them nothing comes.
    archive.wants(f"{here}:1", platforms=["linux/riscv64"])
    said = archive.run(fails=True)
    assert "the image is not made for linux/riscv64, but for linux/amd64, linux/arm64, linux/s390x" in said[0]
    archive.wants(f"{here}:1@{digest}")
    archive.run()
    found = archive.tags(place(upstream))
    assert found["1"] == digest and tags["1"] in found.values()


def test_images_come_by_a_mirror(archive: Archive, upstream: Registry, start_registry: StartRegistry) -> None:
    """Which knows neither referrers nor what it has not fetched yet."""
    mirror = start_registry(upstream=upstream.url)
    digest = upstream.push_index("svc/app", "1", {"linux/amd64": made(), "linux/arm64": made(architecture="arm64")})
    sources = [{"domain": "quay.io", "url": mirror.url, "username": "", "password": "", "ca_certificate": "", "validate_certs": True}]
    archive.wants("quay.io/svc/app:1", sources=sources)
    archive.run()
    assert archive.tags("quay.io/svc/app") == {"1": digest}


def test_one_broken_image_stops_no_other(archive: Archive, upstream: Registry) -> None:
    """A layer that is lost, a manifest that is lost (it is listed still), and two that never were."""
    broken, lost, good = made(), made(), made()
    upstream.push("svc/app", "broken", broken)
    upstream.push("svc/app", "b-lost", lost)
    digest = upstream.push("svc/app", "b", good)
    upstream.blob_path(list(broken.blobs)[1]).unlink()
    upstream.blob_path(lost.digest).unlink()
    archive.wants(f"{domain(upstream)}/svc/app:none", f"{domain(upstream)}/svc/app:b*", f"{domain(upstream)}/svc/none:v*")
    said = archive.run(fails=True)
    assert archive.tags(place(upstream)) == {"b": digest}
    assert f"<4>{place(upstream)}:none: the upstream has no such tag. Correct it, or take it out." in said
    assert f"<4>{place(upstream, 'svc/none')}:v*: the upstream has no tag that fits. Correct the pattern, or take it out." in said
    assert [line for line in said if line.startswith(f"<4>{place(upstream)}:broken: ")]
    assert [line for line in said if line.startswith(f"<4>{place(upstream)}:b-lost: ")]
    assert said[-1].endswith("; 0 are as they were, 4 failed")
    metrics = (archive.base / "metrics/mirrorfleet_archive_archive.prom").read_text()
    assert 'mirrorfleet_archive_tags{registry="archive",state="failed"} 4\n' in metrics


def test_an_upstream_that_is_gone_stops_no_other_and_loses_nothing(archive: Archive, start_registry: StartRegistry) -> None:
    one, two = start_registry(), start_registry()
    first, second = one.push("svc/app", "1", made()), two.push("svc/app", "1", made())
    archive.wants(f"{domain(one)}/svc/app:1", f"{domain(one)}/svc/app:2", f"{domain(two)}/svc/app:1")
    archive.run(fails=True)
    before = json.loads((archive.base / "state/archive/.mirrorfleet/archive.json").read_text())
    one.stop()
    third = two.push("svc/app", "1", made())
    said = archive.run(fails=True)
    assert [line for line in said if line.startswith(f"<4>{place(one)}:1: ") and "connection refused" in line]
    assert archive.tags(place(one)) == {"1": first}
    tags = archive.tags(place(two))
    assert tags["1"] == third and second in tags.values()
    after = json.loads((archive.base / "state/archive/.mirrorfleet/archive.json").read_text())
    assert after["ran"] > before["ran"] and after["succeeded"] == before["succeeded"]
    one.start()
    archive.wants(f"{domain(one)}/svc/app:1", f"{domain(two)}/svc/app:1")
    assert archive.run()[-1] == "0 tags came, 0 bytes; 2 are as they were, 0 failed"


@contextlib.contextmanager
def limited(upstream: Registry, requests: int, retry_after: int) -> Iterator[int]:
    """HAProxy before an upstream: so many requests a minute, and 429 from then on; its port."""
    port = free_port()
    configuration = upstream.root.with_suffix(".cfg")
    configuration.write_text(f"""
defaults
    mode http
    timeout connect 2s
    timeout client 10s
    timeout server 10s
frontend limited
    bind 127.0.0.1:{port}
    stick-table type ip size 10 expire 1m store http_req_rate(1m)
    http-request track-sc0 src
    http-request return status 429 content-type application/json string '{{"errors":[{{"code":"TOOMANYREQUESTS","message":"enough"}}]}}' \
hdr Retry-After {retry_after} if {{ sc_http_req_rate(0) gt {requests} }}
    default_backend upstream
backend upstream
    server upstream 127.0.0.1:{upstream.port}
""")
    process = subprocess.Popen([program("haproxy"), "-db", "-f", str(configuration)])
    try:
        yield port
    finally:
        process.terminate()
        process.wait(20)


def test_an_upstream_that_has_had_enough_is_asked_no_more_and_the_next_run_goes_on(archive: Archive, upstream: Registry) -> None:
    pushed = {f"{number}": upstream.push("svc/app", f"{number}", made()) for number in range(6)}
    with limited(upstream, 4, 3600) as port:
        until(lambda: listens(port))
        at = f"127.0.0.1:{port}"
        archive.wants(*(f"{at}/svc/app:{tag}" for tag in pushed))
        began = time.monotonic()
        said = archive.run(fails=True)
        assert time.monotonic() - began < 30
        assert [line for line in said if "429 Too Many Requests" in line and "asks to wait 3600 seconds" in line], said
        # Four were answered, and one was not.
        assert len(asked(upstream)) <= 4
        sources = [{"domain": at, "url": upstream.url, "username": "", "password": "", "ca_certificate": "", "validate_certs": True}]
        archive.wants(*(f"{at}/svc/app:{tag}" for tag in pushed), sources=sources)
        archive.run()
        assert archive.tags(f"127.0.0.1_{port}/svc/app") == pushed


def test_a_run_that_is_killed_anywhere_loses_nothing_and_the_next_one_heals(archive: Archive, upstream: Registry) -> None:
    archive.wants(f"{domain(upstream)}/svc/app:*")
    seen: dict[str, set[str]] = {}
    generator = random.Random(5)
    for turn in range(12):
        for tag in ("a", "b", "c"):
            digest = upstream.push("svc/app", tag, made(200_000))
            seen.setdefault(tag, set()).add(digest)
        process = archive.start()
        time.sleep(generator.uniform(0.1, 1.6))
        # What systemd kills, or the kernel: skopeo is orphaned, and goes on beside the next run.
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=20)
        tags = archive.tags(place(upstream))
        assert all(digest in seen[tag[0]] for tag, digest in tags.items()), turn
        if turn % 4 == 3:
            came = set(tags.values())
            archive.run()
            tags = archive.tags(place(upstream))
            assert came <= set(tags.values())
            with RegistryClient(upstream.url) as client:
                assert {tag: tags[tag] for tag in "abc"} == {tag: client.manifest("svc/app", tag)[1].digest for tag in "abc"}
    assert archive.htpasswd.read_text() == ""


def test_a_disk_that_is_full_loses_nothing_and_the_next_run_heals(archive: Archive, upstream: Registry) -> None:
    store = archive.base / "store/archive"
    if not os.path.ismount(store):
        pytest.skip("only root can mount")
    first = upstream.push("svc/app", "1", made())
    archive.wants(f"{domain(upstream)}/svc/app:1", f"{domain(upstream)}/svc/app:2")
    upstream.push("svc/app", "2", made())
    archive.run()
    second, third = upstream.push("svc/app", "1", made(MEGABYTE)), upstream.push("svc/app", "2", made(MEGABYTE))
    before = archive.tags(place(upstream))
    ballast = store / "ballast"
    with open(ballast, "wb") as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(65536))
            file.flush()
    said = archive.run(fails=True)
    assert [line for line in said if line.startswith(f"<4>{place(upstream)}:1: ")], said
    assert archive.tags(place(upstream)) == before
    ballast.unlink()
    archive.run()
    tags = archive.tags(place(upstream))
    assert (tags["1"], tags["2"]) == (second, third) and first in tags.values()


@pytest.mark.parametrize("login", ["", "builder:steel", f"{USER}:wrong"])
@pytest.mark.parametrize("outside", [True, False])
def test_nobody_writes_and_everybody_reads(archive: Archive, upstream: Registry, login: str, outside: bool) -> None:
    image = made()
    upstream.push("svc/app", "1", image)
    archive.wants(f"{domain(upstream)}/svc/app:1")
    archive.run()
    name = f"/v2/{place(upstream)}"
    for method in ("GET", "HEAD"):
        for target in (f"{name}/manifests/1", f"{name}/blobs/{next(iter(image.blobs))}", f"{name}/tags/list"):
            assert archive.request(method, target, login, outside)[0] == (405 if (method, target) == ("HEAD", f"{name}/tags/list") else 200), target
    refused = 405 if outside or login.startswith("builder") else 401
    for method, target in (
        ("POST", f"{name}/blobs/uploads/"), ("PUT", f"{name}/manifests/1"), ("PATCH", f"{name}/blobs/uploads/{'0' * 8}-0000-0000-0000-{'0' * 12}"),
        ("DELETE", f"{name}/blobs/uploads/{'0' * 8}-0000-0000-0000-{'0' * 12}"),
    ):
        assert archive.request(method, target, login, outside, image.manifest)[0] == refused, (method, target)
    assert archive.request("DELETE", f"{name}/manifests/{image.digest}", login, outside)[0] == 405
    # docker login, docker pull and a mirror ask this first.
    status, headers, _body = archive.request("GET", "/v2/", login, outside)
    assert status == (401 if not outside and not login.startswith("builder") else 200)
    status, _headers, body = archive.request("GET", "/token", login, outside)
    if outside or not login.startswith(USER):
        assert base64.b64decode(json.loads(body)["token"]) == b"anonymous:"
    else:
        assert status == 401
    assert archive.tags(place(upstream)) == {"1": image.digest}


def test_the_password_of_a_run_is_good_on_this_host_and_ends_with_it(archive: Archive) -> None:
    archive.htpasswd.write_text(f"{USER}:{hashed('s3cret')}\n")
    target = "/v2/a/blobs/uploads/"
    assert archive.request("POST", target, f"{USER}:s3cret")[0] == 202
    assert archive.request("POST", target, f"{USER}:s3cret", outside=True)[0] == 405
    assert archive.request("GET", "/v2/", f"{USER}:s3cret")[0] == 200
    archive.wants("127.0.0.1:9/svc/app:1")
    archive.run(fails=True)
    assert archive.htpasswd.read_text() == ""
    assert archive.request("POST", target, f"{USER}:s3cret")[0] == 401


def test_no_password_is_an_argument_in_the_environment_or_on_the_disk(archive: Archive, upstream: Registry, tmp_path: Path) -> None:
    upstream.push("svc/app", "1", made())
    sources = [{"domain": domain(upstream), "url": upstream.url, "username": "reader", "password": "wander3r", "ca_certificate": "", "validate_certs": True}]
    archive.wants(f"{domain(upstream)}/svc/app:1", sources=sources)
    # Writes down what skopeo is given, and what of it is on the disk, and becomes skopeo.
    look = tmp_path / "skopeo"
    look.write_text(f"""#!/bin/sh
{{ tr '\\0' ' ' </proc/$$/cmdline; tr '\\0' ' ' </proc/$$/environ; find . -type f -exec cat {{}} +; }} >>{tmp_path}/seen
exec {program('skopeo')} "$@"
""")
    look.chmod(0o755)
    process = archive.start(PATH=f"{tmp_path}:{os.environ['PATH']}")
    said = process.communicate(timeout=60)[0]
    assert process.returncode == 0, said
    seen = (tmp_path / "seen").read_text()
    assert f"docker://{domain(upstream)}/svc/app@sha256:" in seen and "wander3r" not in seen + said
    assert base64.b64encode(b"reader:wander3r").decode() not in seen and base64.b64encode(f"{USER}:".encode()).decode()[:20] not in seen
    for root in ("state", "metrics", "run", "lib"):
        assert not [path for path in (archive.base / root).rglob("*") if path.is_file() and "wander3r" in path.read_text()]


def test_systemd_takes_the_units(put: tuple[Path, int], tmp_path: Path) -> None:
    shutil.copytree(put[0] / "units", tmp_path / "units")
    for path in (tmp_path / "units").rglob("*.*"):
        if path.is_file():
            path.write_text(path.read_text().replace("mirrorfleet-registry-front\n", "daemon\n").replace("=mirrorfleet-registry\n", "=daemon\n"))
    names = ["archive@archive.service", "archive@archive.timer", "write@archive.service"]
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", *(f"{tmp_path}/units/mirrorfleet-registry-{name}" for name in names)],
        capture_output=True, text=True, check=False, env={**os.environ, "SYSTEMD_UNIT_PATH": f"{tmp_path}/units:"},
    )
    assert done.returncode == 0 and "mirrorfleet" not in done.stderr, done.stderr
