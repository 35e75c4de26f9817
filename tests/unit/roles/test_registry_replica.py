# Copyright (c) 2026, mirrorfleet contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0
"""A primary and its replica: the files of both roles, rendered by Ansible, run by HAProxy, distribution and the replicator."""

from __future__ import annotations

import base64
import csv
import http.client
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, Iterator

import pytest

from ansible_collections.mirrorfleet.registry.plugins.module_utils.errors import RegistryFleetError
from ansible_collections.mirrorfleet.registry.plugins.module_utils.image_promote import promote
from ansible_collections.mirrorfleet.registry.plugins.module_utils.storage import Store
from ansible_collections.mirrorfleet.registry.tests.unit.conftest import (
    Image,
    Registry,
    ansible,
    digest_of,
    free_port,
    image_of,
    index_of,
    layer_of,
    until,
)
from ansible_collections.mirrorfleet.registry.tests.unit.roles.conftest import render_role
from ansible_collections.mirrorfleet.registry.tests.unit.roles.test_registry import program, put_down, variables

HOSTS = {"registry-a": "127.0.0.1", "registry-b": "127.0.0.2"}
PROMOTER = "Basic " + base64.b64encode(b"promoter:stairs").decode()
SECRET = "a secret of sixteen"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"


def listens(address: str, port: int) -> bool:
    try:
        http.client.HTTPConnection(address, port, timeout=1).connect()
    except OSError:
        return False
    return True


class Host:
    """One host with the registry prod."""

    def __init__(self, name: str, base: Path, port: int) -> None:
        self.name, self.address, self.base, self.port = name, HOSTS[name], base, port
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def write(self, rendered: list[list[dict[str, Any]]], role: str, primary: str, epoch: int) -> None:
        put_down(self.base, *rendered)
        for part in ("run/fill", "states", "replicator/prod", "metrics", "store/prod"):
            (self.base / part).mkdir(parents=True, exist_ok=True)
        self.tell(role, primary, epoch)

    def tell(self, role: str, primary: str, epoch: int) -> None:
        (self.base / "states/prod.json").write_text(json.dumps({"role": role, "primary": primary, "epoch": epoch}))

    def start(self, *names: str) -> None:
        for name in names or ("read", "write", "fill", "front", "replicator"):
            self.start_one(name)

    def start_one(self, name: str) -> None:
        command = {
            "front": [program("haproxy"), "-W", "-db", "-f", str(self.base / "front/haproxy.cfg")],
            "replicator": [sys.executable, "-I", "-S", "-B", str(self.base / "lib-replica/replicator.py"), str(self.base / "etc-replica/prod.json")],
        }.get(name, [program("docker-registry"), "serve", str(self.base / f"etc/prod-{name}.yml")])
        path = self.base / {"replicator": "run/prod-replica.sock", "fill": "run/fill/prod.sock"}.get(name, f"run/prod-{name}.sock")
        path.unlink(missing_ok=True)
        with open(self.base / f"{name}.log", "ab") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, "REGISTRY_HTTP_SECRET": "of the test"})
        self.processes[name] = process
        until(lambda: (listens(self.address, self.port) if name == "front" else path.exists()) or process.poll() is not None)
        assert process.poll() is None, self.log(name)

    def stop(self, *names: str, kill: bool = False) -> None:
        for name in names or tuple(reversed(self.processes)):
            process = self.processes.pop(name, None)
            if process is not None:
                process.send_signal(signal.SIGKILL if kill else signal.SIGTERM)
                process.wait(20)

    def log(self, name: str) -> str:
        return (self.base / f"{name}.log").read_text()

    def request(self, method: str, target: str, body: bytes = b"", login: str = "", **headers: str) -> tuple[int, http.client.HTTPMessage, bytes]:
        connection = http.client.HTTPConnection(self.address, self.port, timeout=15)
        sent = {key.replace("_", "-"): value for key, value in headers.items()}
        connection.request(method, target, body or None, {**sent, **({"Authorization": login} if login else {})})
        answer = connection.getresponse()
        result = answer.status, answer.headers, answer.read()
        connection.close()
        return result

    def push_blob(self, repository: str, blob: bytes) -> None:
        status, headers, said = self.request("POST", f"/v2/{repository}/blobs/uploads/", login=PROMOTER)
        assert status == 202, said
        status, _headers, said = self.request("PUT", f"{headers['Location']}&digest={digest_of(blob)}", blob, PROMOTER)
        assert status == 201, said

    def push_manifest(self, repository: str, tag: str, manifest: bytes, media_type: str) -> None:
        status, _headers, said = self.request("PUT", f"/v2/{repository}/manifests/{tag}", manifest, PROMOTER, Content_Type=media_type)
        assert status == 201, said

    def push(self, repository: str, tag: str, image: Image) -> None:
        for blob in image.blobs.values():
            self.push_blob(repository, blob)
        self.push_manifest(repository, tag, image.manifest, image.media_type)

    def pull(self, repository: str, tag: str, image: Image) -> bool:
        """Whether it can be pulled, all of it."""
        status, _headers, body = self.request("GET", f"/v2/{repository}/manifests/{tag}", Accept=f"{image.media_type}, {OCI_INDEX}")
        if (status, body) != (200, image.manifest):
            return False
        return all(self.request("GET", f"/v2/{repository}/blobs/{digest}")[::2] == (200, blob) for digest, blob in image.blobs.items())

    def said(self) -> dict[str, Any]:
        status, _headers, body = self.request("GET", "/replica")
        return dict(json.loads(body)) if status == 200 else {}

    def has(self, repository: str, tag: str) -> str:
        """What the tag names in the storage here."""
        return Store(str(self.base / "store/prod")).tags(repository).get(tag, "")

    def doors_of(self, path: str) -> list[str]:
        return [each["door"] for each in map(json.loads, filter(lambda line: line.startswith("{"), self.log("front").splitlines())) if each["path"] == path]


def rendered(directory: Path, base: Path, host: str, port: int, primary: str, drained: bool = False, **more: Any) -> list[list[dict[str, Any]]]:
    """The files of both roles on a host."""
    role = "replica" if host != primary else "drained" if drained else "primary"
    site = {"prod": {"role": role, "here": host, "primary": primary, "port": port, "addresses": HOSTS}}
    wanted = {
        **variables(base, {"prod": port}), "registry_bind": HOSTS[host], "__registry_sites": site, "registry_replica_secret": SECRET,
        "registry_drain_seconds": 1, **more,
    }
    own = {
        **wanted, "registry_primaries": {"prod": primary}, "__registry_replica_sites": site, "registry_replica_metrics": str(base / "metrics"),
        "registry_replica_sweep_seconds": 3600, "__registry_replica_config": str(base / "etc-replica"), "__registry_replica_run": str(base / "run"),
        "__registry_replica_states": str(base / "states"), "__registry_replica_directory": str(base / "replicator"),
        "__registry_replica_lib": str(base / "lib-replica"),
    }
    return [
        *render_role(directory / "files", "registry", wanted), *render_role(directory / "front", "registry", wanted, template="front_files.yml.j2"),
        *render_role(directory / "replica", "registry_replica", own),
    ]


Files = dict[tuple[str, str], list[list[dict[str, Any]]]]


@pytest.fixture(scope="module")
def bases() -> Iterator[dict[str, Path]]:
    with tempfile.TemporaryDirectory(prefix="mf-") as directory:
        yield {name: Path(directory) / name[-1] for name in HOSTS}


@pytest.fixture(scope="module")
def port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def files(bases: dict[str, Path], port: int, tmp_path_factory: pytest.TempPathFactory) -> Files:
    """By host and by primary."""
    return {
        (host, primary): rendered(tmp_path_factory.mktemp("render"), bases[host], host, port, primary)
        for host in HOSTS for primary in HOSTS
    }


@pytest.fixture
def hosts(bases: dict[str, Path], files: Files, port: int) -> Iterator[dict[str, Host]]:
    """Primary and replica, empty."""
    for base in bases.values():
        subprocess.run(["rm", "-rf", str(base)], check=True)
    found = {name: Host(name, bases[name], port) for name in HOSTS}
    for name, host in found.items():
        host.write(files[name, "registry-a"], "primary" if name == "registry-a" else "replica", "registry-a", 1 if name == "registry-a" else 0)
    try:
        for host in found.values():
            host.start()
        until(lambda: found["registry-a"].said().get("follows") and found["registry-b"].said().get("follows"))
        # The front of the replica has looked at its primary.
        until(lambda: found["registry-b"].request("POST", "/v2/is/up/blobs/uploads/", login=PROMOTER)[0] == 202)
        yield found
    finally:
        for host in found.values():
            host.stop()


@pytest.fixture
def a(hosts: dict[str, Host]) -> Host:
    return hosts["registry-a"]


@pytest.fixture
def b(hosts: dict[str, Host]) -> Host:
    return hosts["registry-b"]


def layer(name: str, size: int = 5000) -> bytes:
    return layer_of({name: random.Random(name).randbytes(size)})


def image(*names: str, size: int = 5000) -> Image:
    return image_of(*(layer(name, size) for name in names))


def test_what_is_pushed_at_the_primary_comes_by_itself(a: Host, b: Host) -> None:
    wanted = image("base", "one")
    a.push("svc/app", "1", wanted)
    until(lambda: b.has("svc/app", "1") == wanted.digest)
    a.stop()
    assert b.pull("svc/app", "1", wanted)
    assert set(b.doors_of("/v2/svc/app/manifests/1")) <= {"prod_near", "prod_alone"}
    until(lambda: b.said()["lacking"] == [])
    assert 'mirrorfleet_replica_lag_seconds{registry="prod"} 0\n' in (b.base / "metrics/mirrorfleet_replica_prod.prom").read_text()


def test_a_push_by_the_replica_goes_to_the_primary(a: Host, b: Host) -> None:
    wanted = image("base", "two")
    b.push("svc/app", "2", wanted)
    assert a.has("svc/app", "2") == wanted.digest
    assert b.pull("svc/app", "2", wanted)
    until(lambda: b.has("svc/app", "2") == wanted.digest)


def test_what_is_not_here_yet_is_read_at_the_primary(a: Host, b: Host) -> None:
    b.stop("replicator")
    wanted = image("base", "three")
    a.push("svc/app", "3", wanted)
    assert b.pull("svc/app", "3", wanted)
    assert b.has("svc/app", "3") == ""
    for target in ("/v2/svc/none/manifests/1", f"/v2/svc/app/blobs/sha256:{'0' * 64}"):
        assert b.request("GET", target)[0] == 404


def test_without_its_primary_a_replica_serves_and_says_why_it_takes_nothing(a: Host, b: Host) -> None:
    wanted = image("base", "one")
    a.push("svc/app", "1", wanted)
    until(lambda: b.has("svc/app", "1") == wanted.digest)
    a.stop()
    begun = time.monotonic()
    statuses = set()
    while time.monotonic() - begun < 6:
        assert b.pull("svc/app", "1", wanted)
        status, headers, said = b.request("POST", "/v2/svc/app/blobs/uploads/", login=PROMOTER)
        statuses.add(status)
    # What docker push takes for an end, and shows.
    assert (status, json.loads(said)["errors"][0]["code"], headers["Retry-After"]) == (405, "UNSUPPORTED", "30")
    assert "the primary registry-a of the registry prod (prod) does not answer" in said.decode()
    assert 202 not in statuses
    status, _headers, said = b.request("GET", "/v2/svc/other/manifests/1")
    assert status == 503 and "has no such image, or does not answer, and its primary registry-a does not answer" in said.decode()
    # Who is logged in may go on pulling.
    assert b.request("GET", "/v2/", login=PROMOTER)[0] == 200
    assert b.request("GET", "/token", login=PROMOTER)[0] == 200
    assert b.request("GET", "/token", login="Basic " + base64.b64encode(b"promoter:wrong").decode())[0] == 401


def test_who_may_not_write_may_not_at_a_replica_either(b: Host) -> None:
    assert b.request("POST", "/v2/svc/app/blobs/uploads/")[0] == 401
    assert b.request("POST", "/v2/svc/app/blobs/uploads/", login="Basic " + base64.b64encode(b"alice:tea").decode())[0] == 403
    assert b.request("POST", "/v2/svc/app/blobs/uploads/", login="Basic " + base64.b64encode(b"promoter:wrong").decode())[0] == 401


def test_only_who_knows_the_secret_tells_of_a_push(a: Host, b: Host) -> None:
    event = json.dumps({"events": [{"action": "push", "target": {"repository": "svc/app", "tag": "1", "digest": f"sha256:{'0' * 64}"}}]}).encode()
    for login in ("", PROMOTER, "Basic " + base64.b64encode(b"replica:wrong").decode()):
        assert b.request("POST", "/replica", event, login)[0] == 401
    # The replicator has seen the last of them alone.
    def asked() -> list[bool]:
        lines = map(json.loads, filter(lambda line: line.startswith("{"), b.log("front").splitlines()))
        return [each["door"] == "prod_replica" for each in lines if (each["method"], each["path"]) == ("POST", "/replica")]

    until(lambda: asked()[-3:] == [False, False, True])
    assert b.said()["lacking"] == []
    assert b.request("POST", "/replica", event, "Basic " + base64.b64encode(f"replica:{SECRET}".encode()).decode())[0] == 200
    # There is none.
    until(lambda: b.said()["lacking"] == [])


def test_all_platforms_come_and_signatures(a: Host, b: Host) -> None:
    platforms = {"linux/amd64": image("base", "amd"), "linux/arm64": image("base", "arm")}
    for each in platforms.values():
        a.push("svc/app", each.digest, each)
    index = index_of(platforms)
    a.push_manifest("svc/app", "1", index, OCI_INDEX)
    signature = image("signature")
    a.push("svc/app", f"{digest_of(index).replace(':', '-')}.sig", signature)
    until(lambda: b.has("svc/app", "1") == digest_of(index) and b.has("svc/app", f"{digest_of(index).replace(':', '-')}.sig") == signature.digest)
    a.stop()
    assert all(b.pull("svc/app", each.digest, each) for each in platforms.values())


def test_only_what_lacks_crosses_the_wan(a: Host, b: Host) -> None:
    a.push("svc/one", "1", image("base", "one", size=3_000_000))
    until(lambda: b.has("svc/one", "1"))
    before = b.said()["received_bytes"]
    second = image("base", "two", size=3_000_000)
    a.push("svc/two", "1", second)
    until(lambda: b.has("svc/two", "1") == second.digest)
    new = [blob for digest, blob in second.blobs.items() if blob != layer("base", 3_000_000)]
    assert b.said()["received_bytes"] - before == sum(map(len, new))
    assert Store(str(b.base / "store/prod")).layers("svc/two") == set(second.blobs)
    crossed = sum(
        each["bytes"] for each in map(json.loads, filter(lambda line: line.startswith("{"), a.log("front").splitlines()))
        if each["door"] == "prod_packed" and "/svc/two/" in each["path"]
    )
    assert crossed <= 1.02 * sum(map(len, new))


def test_text_is_compressed_on_the_way(a: Host, b: Host) -> None:
    text = b"all work and no play makes jack a dull boy\n" * 50_000
    manifest = json.loads(image("x").manifest)
    config = next(iter(image("x").blobs.values()))
    manifest["layers"] = [{"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": digest_of(text), "size": len(text)}]
    for blob in (config, text):
        a.push_blob("svc/text", blob)
    a.push_manifest("svc/text", "1", json.dumps(manifest).encode(), manifest["mediaType"])
    until(lambda: b.has("svc/text", "1"))
    assert b.request("GET", f"/v2/svc/text/blobs/{digest_of(text)}")[2] == text
    # What went in to be compressed, and what came out.
    with socket.socket(socket.AF_UNIX) as admin:
        admin.connect(str(a.base / "run/admin.sock"))
        admin.sendall(b"show stat\n")
        rows = list(csv.DictReader(admin.makefile()))
    row, = (row for row in rows if (row["# pxname"], row["svname"]) == ("prod_packed", "BACKEND"))
    assert int(row["comp_in"]) >= len(text) and int(row["comp_out"]) < len(text) / 10


def test_a_sweep_finds_what_no_event_told(a: Host, b: Host) -> None:
    b.stop("replicator", kill=True)
    first = image("one")
    a.push("svc/app", "1", first)
    a.stop("write")
    a.start("write")
    b.start("replicator")
    until(lambda: b.has("svc/app", "1") == first.digest)


def test_a_primary_that_returns_is_followed_by_nobody_and_takes_nothing(a: Host, b: Host, files: Files) -> None:
    """b took over while a was gone; a comes back as it was."""
    wanted = image("base", "one")
    a.push("svc/app", "1", wanted)
    until(lambda: b.has("svc/app", "1") == wanted.digest)
    a.stop()
    b.stop()
    b.write(files["registry-b", "registry-b"], "primary", "registry-b", 2)
    b.start()
    until(lambda: "none of registry-a answers, so one of them may be the primary by now" in b.log("replicator"))
    assert b.said()["role"] == "unsure"
    (b.base / "run/prod-confirmed").touch()
    until(lambda: b.said()["follows"])
    a.start("read", "fill", "front", "replicator")
    until(lambda: a.said().get("epoch"))
    assert a.said()["role"] == "unsure"
    # When it does not start, but hears of it.
    (a.base / "states/prod.json").write_text(json.dumps({"role": "primary", "primary": "registry-a", "epoch": 2}))
    until(lambda: a.said().get("role") == "primary")
    a.tell("primary", "registry-a", 1)
    assert a.processes["replicator"].wait(10) == 1
    assert "registry-b is the primary of the registry prod since epoch 2, and this host knows of epoch 1 only" in a.log("replicator")


def test_a_replica_follows_no_earlier_epoch(a: Host, b: Host) -> None:
    """The primary reaches nobody, so it does not know; once it does, it ends by itself, which the test above shows."""
    path = a.base / "etc-replica/prod.json"
    kept = path.read_text()
    a.stop("replicator")
    path.write_text(json.dumps({**json.loads(kept), "urls": {"registry-b": f"http://127.0.0.1:{free_port()}"}}))
    b.tell("replica", "registry-a", 3)
    a.start("replicator")
    until(lambda: "registry-a is a primary of epoch 1, and there was one of epoch 3 since: it is not followed" in b.said()["problem"])
    a.push("svc/app", "1", image("one"))
    time.sleep(3)
    assert b.has("svc/app", "1") == ""
    b.tell("replica", "registry-a", 1)
    until(lambda: b.has("svc/app", "1"))
    path.write_text(kept)


def test_two_replicas_that_take_each_other_for_the_primary_make_no_circle(a: Host, b: Host, files: Files) -> None:
    a.stop()
    a.write(files["registry-a", "registry-b"], "replica", "registry-b", 1)
    a.start()
    until(lambda: "says that it is a replica" in a.said()["problem"] and "says that it is a replica" in b.said()["problem"])
    until(lambda: b.request("POST", "/v2/svc/app/blobs/uploads/", login=PROMOTER)[0] == 405)
    assert a.request("GET", "/v2/svc/none/manifests/1")[0] == 404
    assert len(a.doors_of("/v2/svc/none/manifests/1") + b.doors_of("/v2/svc/none/manifests/1")) == 2


def test_the_replicator_is_killed_at_many_points(a: Host, b: Host) -> None:
    """Whatever it was doing: what is visible is whole, and the next one goes on."""
    wanted = {f"{number}": image("base", f"layer {number}", size=6_000_000) for number in range(6)}
    for tag, each in wanted.items():
        a.push("svc/app", tag, each)
        time.sleep(random.Random(tag).random() * 0.3)
        b.stop("replicator", kill=True)
        store = Store(str(b.base / "store/prod"))
        for seen, digest in store.tags("svc/app").items():
            assert digest == wanted[seen].digest
            assert set(wanted[seen].blobs) <= store.layers("svc/app") and all(Path(store.blob_path(blob)).exists() for blob in wanted[seen].blobs)
        b.start("replicator")
    until(lambda: all(b.has("svc/app", tag) == each.digest for tag, each in wanted.items()), 60)
    a.stop()
    assert all(b.pull("svc/app", tag, each) for tag, each in wanted.items())


def begun(host: Host) -> int:
    """The bytes of blobs that are on their way."""
    return sum(part.stat().st_size for part in (host.base / "replicator/prod/parts").glob("sha256-*"))


def test_a_blob_goes_on_where_it_was_after_a_kill(a: Host, b: Host) -> None:
    wanted = image("large", size=60_000_000)
    b.stop("replicator")
    a.push("svc/app", "1", wanted)
    b.start("replicator")
    until(lambda: begun(b) > 1_000_000)
    b.stop("replicator", kill=True)
    kept = begun(b)
    assert b.has("svc/app", "1") == "" and kept > 1_000_000
    b.start("replicator")
    until(lambda: b.has("svc/app", "1") == wanted.digest)
    # The config may have come before, or not.
    missing = max(map(len, wanted.blobs.values())) - kept
    assert missing - 1000 <= b.said()["received_bytes"] <= missing + 1000
    assert b.pull("svc/app", "1", wanted) and begun(b) == 0


def test_a_cut_in_the_middle_of_a_blob(a: Host, b: Host) -> None:
    wanted = image("large", size=60_000_000)
    b.stop("replicator")
    a.push("svc/app", "1", wanted)
    b.start("replicator")
    until(lambda: begun(b) > 1_000_000)
    a.stop("front")
    assert b.has("svc/app", "1") == ""
    a.start("front")
    until(lambda: b.has("svc/app", "1") == wanted.digest, 60)
    a.stop()
    assert b.pull("svc/app", "1", wanted)


def test_what_the_old_primary_had_alone_is_fetched_under_a_free_name(a: Host, b: Host, files: Files) -> None:
    first, second, other, both = image("one"), image("two"), image("three"), image("four")
    a.push("svc/app", "1", first)
    until(lambda: b.has("svc/app", "1") == first.digest)
    b.stop("replicator")
    a.push("svc/app", "2", second)
    a.push("svc/both", "1", other)
    a.stop()
    b.stop()
    b.write(files["registry-b", "registry-b"], "primary", "registry-b", 2)
    (b.base / "run/prod-confirmed").touch()
    b.start()
    until(lambda: b.request("POST", "/v2/is/up/blobs/uploads/", login=PROMOTER)[0] == 202)
    b.push("svc/both", "1", both)
    a.write(files["registry-a", "registry-b"], "replica", "registry-b", 2)
    a.start()
    until(lambda: b.has("svc/app", "2") == second.digest)
    until(lambda: b.has("svc/both", f"1-of-registry-a-{other.digest[7:19]}") == other.digest)
    assert b.has("svc/both", "1") == both.digest
    until(lambda: a.said()["leftovers"] == [] and a.has("svc/both", "1") == both.digest)
    for name, digest in (("svc/app:2", second.digest), ("svc/both:1", other.digest)):
        assert f"{name}@{digest} is here and not at the primary registry-b" in a.log("replicator")
        assert f"{name}@{digest} came from registry-a" in b.log("replicator")
    assert a.pull("svc/both", f"1-of-registry-a-{other.digest[7:19]}", other)


def test_a_handover_loses_nothing(a: Host, b: Host, bases: dict[str, Path], port: int, tmp_path: Path) -> None:
    """What failover.yml does with the doors: the old primary is drained while somebody pushes, the sweep finds the rest."""
    b.stop("replicator")
    acknowledged = {}
    for number in range(3):
        acknowledged[str(number)] = image("base", f"layer {number}")
        a.push("svc/app", str(number), acknowledged[str(number)])
    a.stop("front", "write", "replicator")
    a.write(rendered(tmp_path, bases["registry-a"], "registry-a", port, "registry-a", drained=True), "drained", "registry-a", 1)
    a.start("write", "front", "replicator")
    status, _headers, said = a.request("POST", "/v2/svc/app/blobs/uploads/", login=PROMOTER)
    assert status == 405 and "hands over to another host" in said.decode()
    b.start("replicator")
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-B", str(b.base / "lib-replica/replicator.py"), str(b.base / "etc-replica/prod.json"), "sweep"],
        capture_output=True, text=True, check=True, timeout=60,
    )
    said = json.loads(done.stdout)
    assert (said["follows"], said["lacking"]) == (True, [])
    assert {tag: b.has("svc/app", tag) for tag in acknowledged} == {tag: each.digest for tag, each in acknowledged.items()}
    # Its front has to find out that the old primary's is there again.
    until(lambda: "hands over to another host" in b.request("POST", "/v2/svc/app/blobs/uploads/", login=PROMOTER)[2].decode())


def test_nothing_is_promoted_by_what_a_replica_knows(a: Host, b: Host, registry: Registry) -> None:
    old, new = image("base", "old"), image("base", "new")
    for each in (old, new):
        registry.push("svc/app", each.digest[7:19], each)

    def promote_to(host: Host, promoted: Image, **more: Any) -> dict[str, Any]:
        target = {"url": f"http://{host.address}:{host.port}", "username": "promoter", "password": "stairs"}
        return promote([f"svc/app:{promoted.digest[7:19]} as svc/app:1"], {"url": registry.url}, target, retries=0, **more)["images"][0]

    assert promote_to(a, old)["actions"][-1] == "set the tag 1"
    until(lambda: b.has("svc/app", "1") == old.digest)
    b.stop("replicator")
    # There it is refused without force, and here it would be there already.
    promote_to(a, new, force=True)
    assert "the target has svc/app:1 already" in promote_to(a, old)["error"]
    for why in ("leads to a host whose replicator does not answer", "leads to registry-b, a replica of registry-a"):
        for dry in (True, False):
            with pytest.raises(RegistryFleetError, match=f"{why}.*Write the primary's own name"):
                promote_to(b, old, dry=dry)
        if "replicator" not in b.processes:
            b.start("replicator")
    assert a.has("svc/app", "1") == new.digest


CATCH_UP = Path(__file__).resolve().parents[3] / "playbooks/tasks/catch_up.yml"


def catch_up(host: Host, directory: Path, **variables: Any) -> str:
    """Run playbooks/tasks/catch_up.yml at the host; why it failed."""
    known = {
        "ansible_connection": "local", "ansible_python_interpreter": sys.executable, "catch_up_registry": "prod",
        "__registry_replica_lib": str(host.base / "lib-replica"), "__registry_replica_config": str(host.base / "etc-replica"), **variables,
    }
    # The template lies beside the playbooks.
    (directory / "templates").mkdir(exist_ok=True)
    shutil.copy(CATCH_UP.parents[1] / "templates/catch_up.txt.j2", directory / "templates")
    (directory / "hosts.json").write_text(json.dumps({"all": {"hosts": {host.name: known}}}))
    said = {"name": "Why", "ansible.builtin.debug": {"msg": "{{ ansible_failed_result.msg }}"}}
    tasks = {"block": [{"ansible.builtin.import_tasks": str(CATCH_UP)}], "rescue": [said]}
    (directory / "play.yml").write_text(json.dumps([{"hosts": "all", "gather_facts": False, "tasks": [tasks]}]))
    done = ansible("ansible-playbook", "-i", "hosts.json", "play.yml", directory=directory, ANSIBLE_STDOUT_CALLBACK="json")
    assert done.returncode == 0, done.stdout + done.stderr
    ran = {task["task"]["name"]: task["hosts"][host.name] for task in json.loads(done.stdout[done.stdout.index("{"):])["plays"][0]["tasks"]}
    return str(ran["Why"]["msg"]) if "Why" in ran else ""


def test_to_catch_up_waits_for_a_replicator_that_starts(a: Host, b: Host, tmp_path: Path) -> None:
    b.stop("replicator")
    wanted = image("base", "one")
    a.push("svc/app", "1", wanted)
    starts = threading.Timer(5, b.start_one, ["replicator"])
    starts.start()
    assert catch_up(b, tmp_path) == ""
    starts.join()
    assert b.has("svc/app", "1") == wanted.digest


def test_to_catch_up_waits_for_nothing_but_what_is_wanted(a: Host, b: Host, tmp_path: Path) -> None:
    b.stop("replicator")
    broken, wanted = image("base", "broken"), image("base", "one")
    a.push("svc/app", "broken", broken)
    a.push("svc/app", "1", wanted)
    lost = digest_of(layer("broken"))
    Path(Store(str(a.base / "store/prod")).blob_path(lost)).unlink()
    b.start("replicator")
    assert catch_up(b, tmp_path, catch_up_images=["svc/app:1", f"svc/app@{wanted.digest}"]) == ""
    assert b.has("svc/app", "1") == wanted.digest and b.has("svc/app", "broken") == ""
    # Nothing is left out otherwise. Two of its twenty tries are enough to see that.
    for images in ({}, {"catch_up_images": ["svc/app:broken"]}, {"catch_up_images": [f"svc/app@{broken.digest}"]}):
        said = catch_up(b, tmp_path, catch_up_retries=2, **images)
        assert said.startswith(f"registry-b: 1 images lack: svc/app:broken@{broken.digest} ("), said


def test_to_catch_up_a_host_that_is_not_reached_says_so(b: Host, tmp_path: Path) -> None:
    said = catch_up(b, tmp_path, ansible_connection="ssh", ansible_host="127.0.0.1", ansible_port=free_port())
    assert said.startswith("registry-b: ") and "Connection refused" in said, said


@pytest.mark.parametrize("offset", ["+ 86400", "- 86400"])
def test_clocks_that_differ_do_no_harm(a: Host, b: Host, offset: str) -> None:
    """The replicator of the replica lives tomorrow, or yesterday."""
    b.stop("replicator")
    wrapper = b.base / "lib-replica/skewed.py"
    wrapper.write_text(
        f"import time, runpy, sys\nreal = time.time\ntime.time = lambda: real() {offset}\nsys.argv = sys.argv[1:]\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    command = [sys.executable, "-I", "-S", "-B", str(wrapper), str(b.base / "lib-replica/replicator.py"), str(b.base / "etc-replica/prod.json")]
    with open(b.base / "replicator.log", "ab") as log:
        b.processes["replicator"] = subprocess.Popen(command, stdout=log, stderr=log)
    wanted = image("base", "clock")
    a.push("svc/app", "1", wanted)
    until(lambda: b.has("svc/app", "1") == wanted.digest)
    until(lambda: b.said().get("lacking") == [] and b.said()["lag_seconds"] == 0)


def test_a_full_disk_stops_no_read_and_heals(a: Host, b: Host) -> None:
    small, large = image("small", size=3_000_000), image("large", size=20_000_000)
    store = str(b.base / "store/prod")
    b.stop()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=12m,mode=0777", "tmpfs", store], check=True)
    try:
        b.start()
        a.push("svc/app", "small", small)
        until(lambda: b.has("svc/app", "small") == small.digest)
        a.push("svc/app", "large", large)
        until(lambda: any(each["why"] for each in b.said()["lacking"]))
        lacking, = b.said()["lacking"]
        assert (lacking["repository"], lacking["tag"], lacking["digest"]) == ("svc/app", "large", large.digest)
        assert b.pull("svc/app", "small", small) and b.pull("svc/app", "large", large)
        assert b.has("svc/app", "large") == ""
        received = b.said()["received_bytes"]
        subprocess.run(["mount", "-o", "remount,size=100m", store], check=True)
        until(lambda: b.has("svc/app", "large") == large.digest, 90)
        # What had come did not come again.
        assert b.said()["received_bytes"] - received < 1_000_000
        until(lambda: b.said()["lacking"] == [])
    finally:
        b.stop()
        subprocess.run(["umount", store], check=True)


def test_systemd_takes_the_units(hosts: dict[str, Host], tmp_path: Path) -> None:
    units = tmp_path / "units"
    shutil.copytree(hosts["registry-a"].base / "units", units)
    for path in units.rglob("*.*"):
        if path.is_file():
            path.write_text(path.read_text().replace("=mirrorfleet-registry-front\n", "=daemon\n").replace("=mirrorfleet-registry\n", "=daemon\n"))
    names = ["mirrorfleet-replicator@prod.service", "mirrorfleet-registry-write@prod.service", "mirrorfleet-registry-fill@prod.service"]
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", *(str(units / name) for name in names)],
        capture_output=True, text=True, check=False, env={**os.environ, "SYSTEMD_UNIT_PATH": f"{units}:"},
    )
    assert done.returncode == 0 and "mirrorfleet" not in done.stderr, done.stderr
    assert "BindsTo=mirrorfleet-replicator@prod.service\n" in (units / "mirrorfleet-registry-write@prod.service.d/replica.conf").read_text()
    assert not (hosts["registry-b"].base / "units/mirrorfleet-registry-write@prod.service.d/replica.conf").exists()


def test_a_door_to_write_opens_where_the_host_is_the_primary_or_has_no_replicas(hosts: dict[str, Host], tmp_path: Path) -> None:
    """What systemd asks before it opens the door."""
    base = hosts["registry-a"].base
    line, = re.findall(r"^ExecCondition=/bin/sh -c '(.*)'$", (base / "units/mirrorfleet-registry-write@.service").read_text(), re.MULTILINE)
    command = line.replace("$$", "$").replace("%i", "prod").replace("/var/lib/mirrorfleet/registry-replicas", str(tmp_path))

    def opens(told: str, door: str) -> bool:
        (tmp_path / "prod.json").write_text(json.dumps({"role": told, "primary": "registry-b", "epoch": 2}))
        (base / "etc/prod-write.yml").write_text(door)
        return subprocess.run(["sh", "-c", command], check=False).returncode == 0

    primary, replica = ((host.base / "etc/prod-write.yml").read_text() for host in hosts.values())
    alone = primary[:primary.index("# The replicas are told")]
    assert [opens("primary", door) for door in (primary, replica, alone)] == [True, True, True]
    assert [opens("replica", door) for door in (primary, replica, alone)] == [False, True, True]
    (tmp_path / "prod.json").unlink()
    (base / "etc/prod-write.yml").write_text(primary)
    assert subprocess.run(["sh", "-c", command], check=False).returncode == 0


def test_no_file_that_others_read_has_the_secret(files: Files) -> None:
    for lists in files.values():
        for each in (each for files in lists for each in files):
            if SECRET in each["content"] or base64.b64encode(f"replica:{SECRET}".encode()).decode() in each["content"]:
                assert (each["mode"], each["secret"]) == ("0400", True), each["path"]
