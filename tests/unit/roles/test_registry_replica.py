# Copyright (c) 2026, mirrorfleet contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0
"""A primary and its replica: the files of both roles, rendered by Ansible, run by HAProxy, distribution and the replicator."""

from __future__ import annotations

import base64
import contextlib
import csv
import http.client
import json
import math
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
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Iterator

import pytest

from ansible_collections.mirrorfleet.registry.plugins.module_utils.errors import RegistryFleetError
from ansible_collections.mirrorfleet.registry.plugins.module_utils.host_program import replace
from ansible_collections.mirrorfleet.registry.plugins.module_utils.image_promote import promote
from ansible_collections.mirrorfleet.registry.plugins.module_utils.storage import Store
from ansible_collections.mirrorfleet.registry.tests.unit.conftest import (
    Image,
    Registry,
    Way,
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


def takes(path: Path) -> bool:
    """Whether somebody listens there: a socket is there before."""
    with socket.socket(socket.AF_UNIX) as client:
        try:
            client.connect(str(path))
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
        # In one go, as the role does: the replicator may look at any moment.
        replace(str(self.base / "states/prod.json"), json.dumps({"role": role, "primary": primary, "epoch": epoch}), 0o644)

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
        until(lambda: (listens(self.address, self.port) if name == "front" else takes(path)) or process.poll() is not None)
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

    def ask_replicator(self, word: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-I", "-S", "-B", str(self.base / "lib-replica/replicator.py"), str(self.base / "etc-replica/prod.json"), word]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=90)

    def proc(self, key: str) -> int:
        """What Linux says of the replicator: a size in kB, or a number."""
        lines = Path(f"/proc/{self.processes['replicator'].pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))

    def said(self) -> dict[str, Any]:
        status, _headers, body = self.request("GET", "/replica")
        return dict(json.loads(body)) if status == 200 else {}

    def has(self, repository: str, tag: str) -> str:
        """What the tag names in the storage here."""
        return Store(str(self.base / "store/prod")).tags(repository).get(tag, "")

    def file_of(self, digest: str) -> Path:
        return Path(Store(str(self.base / "store/prod")).blob_path(digest))

    def link_of(self, repository: str, tag: str) -> Path:
        return self.base / f"store/prod/docker/registry/v2/repositories/{repository}/_manifests/tags/{tag}/current/link"

    def doors_of(self, path: str) -> list[str]:
        return [each["door"] for each in self.requests() if each["path"] == path]

    def requests(self) -> list[dict[str, Any]]:
        """What the front has logged; its last line may not be whole yet."""
        whole, _newline, _rest = self.log("front").rpartition("\n")
        return [json.loads(line) for line in whole.splitlines() if line.startswith("{")]


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
        # What a test pushes comes by an event then, not by the first sweep.
        until(lambda: found["registry-a"].said().get("follows") and found["registry-b"].said().get("swept"))
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
    until(lambda: 'mirrorfleet_replica_lag_seconds{registry="prod"} 0\n' in (b.base / "metrics/mirrorfleet_replica_prod.prom").read_text())


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
        return [each["door"] == "prod_replica" for each in b.requests() if (each["method"], each["path"]) == ("POST", "/replica")]

    until(lambda: sorted(asked()) == [False, False, True])
    assert b.said()["lacking"] == []
    assert b.request("POST", "/replica", event, "Basic " + base64.b64encode(f"replica:{SECRET}".encode()).decode())[0] == 200
    # There is none.
    until(lambda: b.said()["lacking"] == [])
    assert f"svc/app:1@sha256:{'0' * 64} does not come: the primary registry-a has none" in b.log("replicator")


def test_many_events_at_once_are_written_down(b: Host) -> None:
    knows = "Basic " + base64.b64encode(f"replica:{SECRET}".encode()).decode()

    def tell(number: int) -> int:
        target = {"repository": f"svc/app-{number}", "tag": "1", "digest": f"sha256:{'0' * 64}"}
        return b.request("POST", "/replica", json.dumps({"events": [{"action": "push", "target": target}]}).encode(), knows)[0]

    with ThreadPoolExecutor(8) as pool:
        answers = pool.map(tell, range(200))
        for _number in range(500):
            assert json.loads((b.base / "replicator/prod/status.json").read_text())["host"] == "registry-b"
    assert set(answers) == {200}
    assert "can't be written" not in b.log("replicator")


def test_who_does_not_know_the_secret_takes_no_memory(b: Host) -> None:
    before = b.proc("VmHWM")
    connections = []
    for login in (b"", b"Authorization: Basic cmVwbGljYTp3cm9uZw==\r\n") * 15:
        connections.append(socket.create_connection((b.address, b.port), 5))
        with contextlib.suppress(OSError):
            connections[-1].sendall(b"POST /replica HTTP/1.1\r\nHost: x\r\nContent-Length: 16000000\r\n%s\r\n" % login)
            connections[-1].settimeout(0.2)
            connections[-1].sendall(bytes(10_000_000))
    assert b.said()["host"] == "registry-b"
    assert b.proc("VmHWM") - before < 30_000
    for each in connections:
        each.close()
    knows = "Basic " + base64.b64encode(f"replica:{SECRET}".encode()).decode()
    # The answer may be lost with what nobody read.
    with contextlib.suppress(OSError, http.client.HTTPException):
        assert b.request("POST", "/replica", b"{}" + bytes(2_000_000), knows)[0] == 400
    assert b.request("POST", "/replica", b"{}", knows)[0] == 200


def test_who_says_nothing_takes_few_threads(b: Host) -> None:
    connections = [socket.socket(socket.AF_UNIX) for _each in range(100)]
    for connection in connections:
        connection.connect(str(b.base / "run/prod-replica.sock"))
    until(lambda: b.proc("Threads") > 30)
    time.sleep(1)
    assert b.proc("Threads") < 50
    for connection in connections:
        connection.close()
    assert b.said()["host"] == "registry-b"


def test_a_replica_far_behind_is_no_burden(a: Host, b: Host) -> None:
    """90,000 images that lack, of which some status told."""
    a.stop()
    b.stop("replicator")
    path = b.base / "replicator/prod/status.json"
    status = json.loads(path.read_text())
    each = {"tag": "1", "digest": f"sha256:{'0' * 64}", "since": time.time(), "why": ""}
    status["lacking"] = [{"repository": f"group/of/some/length/service-{number:06}", **each} for number in range(90_000)]
    path.write_text(json.dumps(status))
    (a.base / "run/prod-confirmed").unlink()
    b.start("replicator")
    until(lambda: "does not answer" in b.said()["problem"])
    body = b.request("GET", "/replica")[2]
    said = json.loads(body)
    assert (said["lacking_images"], len(said["lacking"]), len(body) < 40_000) == (90_000, 100, True)
    metrics = b.base / "metrics/mirrorfleet_replica_prod.prom"
    until(lambda: 'mirrorfleet_replica_lacking_images{registry="prod"} 90000\n' in metrics.read_text())
    assert len(json.loads(path.read_text())["lacking"]) == 90_000
    done = b.ask_replicator("status")
    assert (json.loads(done.stdout)["lacking_images"], len(json.loads(done.stdout)["lacking"])) == (90_000, 10_000)
    assert b.proc("VmHWM") < 500_000
    # Nobody but this replica can tell the primary that it is the only one.
    a.start()
    until(lambda: a.said().get("role") == "primary")


def test_what_is_known_is_not_written_anew_with_each_image(a: Host, b: Host) -> None:
    b.stop("replicator")
    for number in range(40):
        a.push(f"svc/app-{number}", "1", image("small", size=100))
    forget_events(a)
    seen = set()
    path = b.base / "replicator/prod/status.json"
    b.start("replicator")

    def has_come() -> bool:
        seen.add(path.stat().st_mtime_ns)
        return all(b.has(f"svc/app-{number}", "1") for number in range(39, -1, -1))

    began = time.monotonic()
    until(has_come, 60)
    # One for the sweep, and then one in five seconds, or when a round is done.
    assert len(seen) <= 5 + (time.monotonic() - began) / 2


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
        each["bytes"] for each in a.requests() if each["door"] == "prod_packed" and "/svc/two/" in each["path"]
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


def forget_events(host: Host) -> None:
    """Distribution would tell of what was pushed again and again, until somebody listens."""
    host.stop("write")
    host.start("write")


def test_broken_tags_of_the_primary_stop_no_other(a: Host, b: Host) -> None:
    """As a power cut leaves them: files without content."""
    known, healthy = image("known"), image("healthy")
    a.push("svc/app", "known", known)
    until(lambda: b.has("svc/app", "known") == known.digest)
    b.stop("replicator")
    broken = {f"broken-{number:02}": image(f"broken {number}") for number in range(12)}
    for tag, each in broken.items():
        a.push("svc/app", tag, each)
    a.push("svc/app", "unparsable", image("unparsable"))
    a.push("svc/app", "healthy", healthy)
    forget_events(a)
    for tag in ("known", *broken):
        a.link_of("svc/app", tag).write_bytes(b"")
    a.file_of(image("unparsable").digest).write_bytes(b"")
    assert a.request("HEAD", "/v2/svc/app/manifests/broken-01")[0] >= 500
    b.start("replicator")
    until(lambda: b.has("svc/app", "healthy") == healthy.digest)
    # What an event tells comes, whatever else does not.
    a.push("svc/app", "new", image("new"))
    until(lambda: b.has("svc/app", "new") == image("new").digest)
    until(lambda: b.said()["swept"] and all(each["why"] for each in b.said()["lacking"]))
    # What is here already does not lack.
    assert {each["tag"] for each in b.said()["lacking"]} == {*broken, "unparsable"}
    assert "svc/app:known can't be read at the primary registry-a: HEAD " in b.log("replicator")
    assert b.has("svc/app", "known") == known.digest and b.said()["leftovers"] == []
    # Somebody pushes it again.
    a.push("svc/app", "broken-01", broken["broken-01"])
    until(lambda: b.has("svc/app", "broken-01") == broken["broken-01"].digest)
    until(lambda: "broken-01" not in {each["tag"] for each in b.said()["lacking"]}, 90)


def test_broken_tags_of_the_replica_heal(a: Host, b: Host) -> None:
    platforms = {"linux/amd64": image("base", "amd"), "linux/arm64": image("base", "arm")}
    wanted = image("base", "one")
    for each in platforms.values():
        a.push("svc/many", each.digest, each)
    a.push_manifest("svc/many", "1", index_of(platforms), OCI_INDEX)
    a.push("svc/app", "1", wanted)
    until(lambda: b.has("svc/app", "1") and b.has("svc/many", "1"))
    b.stop("replicator")
    b.link_of("svc/app", "1").write_bytes(b"")
    b.link_of("svc/many", "1").write_bytes(b"")
    repositories = b.base / "store/prod/docker/registry/v2/repositories"
    layer_digest = list(wanted.blobs)[-1].replace(":", "/")
    (repositories / f"svc/app/_layers/{layer_digest}/link").write_bytes(b"")
    (repositories / f"svc/many/_manifests/revisions/{platforms['linux/arm64'].digest.replace(':', '/')}/link").write_bytes(b"")
    b.start("replicator")
    until(lambda: b.has("svc/app", "1") == wanted.digest and b.has("svc/many", "1") == digest_of(index_of(platforms)))
    until(lambda: b.said()["lacking"] == [])
    a.stop()
    assert b.pull("svc/app", "1", wanted) and all(b.pull("svc/many", each.digest, each) for each in platforms.values())


def test_a_blob_of_a_wrong_digest_is_not_fetched_again_and_again(a: Host, b: Host) -> None:
    wanted = image("rotten")
    b.stop("replicator")
    a.push("svc/rotten", "1", wanted)
    digest, blob = list(wanted.blobs.items())[-1]
    a.file_of(digest).write_bytes(bytes(len(blob)))
    began = time.monotonic()
    b.start("replicator")
    until(lambda: any(each["why"] for each in b.said().get("lacking", [])))
    for number in range(10):
        a.push("svc/app", str(number), image(f"layer {number}"))
        until(lambda: b.has("svc/app", str(number)))  # noqa: B023
        time.sleep(1)
    # At once and after 1, 2, 4, 8 seconds and so on, once more from the beginning when its own event comes: no event of another image makes
    # that less.
    assert a.doors_of(f"/v2/svc/rotten/blobs/{digest}").count("prod_packed") <= 3 + math.log2(1 + time.monotonic() - began)
    lacking, = b.said()["lacking"]
    assert lacking["tag"] == "1" and "400" in lacking["why"]
    a.file_of(digest).write_bytes(blob)
    a.push("svc/rotten", "1", wanted)
    until(lambda: b.has("svc/rotten", "1") == wanted.digest, 10)


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
    until(lambda: "registry-b is the primary of the registry prod since epoch 2, and this host knows of epoch 1 only" in a.log("replicator"))
    assert a.said()["role"] == "unsure"
    # When it began without having heard of it.
    b.stop("replicator")
    (a.base / "run/prod-confirmed").touch()
    until(lambda: a.said().get("role") == "primary")
    b.start("replicator")
    assert a.processes["replicator"].wait(30) == 1
    until(lambda: b.said()["role"] == "primary")


def test_two_primaries_of_the_same_epoch_both_take_nothing(a: Host, b: Host, files: Files) -> None:
    """The WAN was cut, and in each data center somebody has made its own host the primary; then the WAN is whole again."""
    path = a.base / "etc-replica/prod.json"
    kept = path.read_text()
    a.stop("replicator")
    b.stop()
    path.write_text(json.dumps({**json.loads(kept), "urls": {"registry-b": f"http://127.0.0.1:{free_port()}"}}))
    a.tell("primary", "registry-a", 2)
    a.start("replicator")
    until(lambda: a.said().get("role") == "primary")
    b.write(files["registry-b", "registry-b"], "primary", "registry-b", 2)
    (b.base / "run/prod-confirmed").touch()
    b.start()
    why = "in epoch 2, in which this host is it, too. Neither takes anything. Decide for one, and run failover.yml -e registry=prod"
    until(lambda: f"registry-a says that registry-a is the primary of the registry prod {why}" in b.log("replicator"))
    assert b.said()["role"] == "unsure"
    a.stop("replicator")
    until(lambda: b.said()["problem"].startswith("none of registry-a answers"))
    # Now b has begun, and hears of a later.
    (b.base / "run/prod-confirmed").touch()
    until(lambda: b.said()["role"] == "primary")
    path.write_text(kept)
    a.start("replicator")
    assert b.processes["replicator"].wait(30) == 1
    b.start("replicator")
    until(lambda: f"registry-b says that registry-b is the primary of the registry prod {why}" in a.log("replicator"))
    time.sleep(5)
    assert (a.said()["role"], b.said()["role"]) == ("unsure", "unsure")
    # What failover.yml does.
    b.tell("primary", "registry-b", 3)
    until(lambda: b.said()["role"] == "primary")
    assert a.said()["role"] == "unsure"


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
    until(lambda: len(a.doors_of("/v2/svc/none/manifests/1") + b.doors_of("/v2/svc/none/manifests/1")) == 2)


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
    found = 0
    for part in (host.base / "replicator/prod/parts").glob("sha256-*"):
        # It may be whole, and gone, by now.
        with contextlib.suppress(FileNotFoundError):
            found += part.stat().st_size
    return found


@contextlib.contextmanager
def gate(follower: Host, host: Host) -> Iterator[Way]:
    """What the follower's replicator reads of the host comes by this way from its next start on, and no more than 2 MB at once until it is open."""
    with Way((host.address, host.port), holds_after=2_000_000) as way:
        path = follower.base / "etc-replica/prod.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "urls": {host.name: f"http://127.0.0.1:{way.port}"}}))
        yield way


def test_a_blob_goes_on_where_it_was_after_a_kill(a: Host, b: Host) -> None:
    wanted = image("large", size=60_000_000)
    b.stop("replicator")
    with gate(b, a) as wan:
        a.push("svc/app", "1", wanted)
        b.start("replicator")
        until(lambda: begun(b) > 1_000_000)
        b.stop("replicator", kill=True)
        kept = begun(b)
        assert b.has("svc/app", "1") == "" and kept > 1_000_000
        # An event may have made it write down what had come.
        before = json.loads((b.base / "replicator/prod/status.json").read_text())["received_bytes"]
        wan.open.set()
        b.start("replicator")
        until(lambda: b.has("svc/app", "1") == wanted.digest, 60)
        # The config may have come before, or not.
        missing = max(map(len, wanted.blobs.values())) - kept
        assert missing - 1000 <= b.said()["received_bytes"] - before <= missing + 1000
        assert b.pull("svc/app", "1", wanted) and begun(b) == 0


def test_of_a_blob_that_is_too_long_nothing_is_kept(a: Host, b: Host) -> None:
    wanted = image("large")
    b.stop("replicator")
    for digest in wanted.blobs:
        (b.base / f"replicator/prod/parts/{digest.replace(':', '-')}").write_bytes(bytes(20_000))
    b.start("replicator")
    a.push("svc/app", "1", wanted)
    until(lambda: b.has("svc/app", "1") == wanted.digest)
    a.stop()
    assert b.pull("svc/app", "1", wanted) and begun(b) == 0


def test_a_cut_in_the_middle_of_a_blob(a: Host, b: Host) -> None:
    wanted = image("large", size=60_000_000)
    b.stop("replicator")
    with gate(b, a) as wan:
        a.push("svc/app", "1", wanted)
        b.start("replicator")
        until(lambda: begun(b) > 1_000_000)
        a.stop("front")
        wan.open.set()
        until(lambda: not b.said()["follows"])
        assert b.has("svc/app", "1") == ""
        a.start("front")
        until(lambda: b.has("svc/app", "1") == wanted.digest, 60)
        a.stop()
        assert b.pull("svc/app", "1", wanted)


def take_over(a: Host, b: Host, files: Files) -> None:
    """What failover.yml does with the primary gone."""
    a.stop()
    b.stop()
    b.write(files["registry-b", "registry-b"], "primary", "registry-b", 2)
    (b.base / "run/prod-confirmed").touch()
    b.start()
    until(lambda: b.request("POST", "/v2/is/up/blobs/uploads/", login=PROMOTER)[0] == 202)


def come_back(a: Host, files: Files) -> None:
    """What site.yml does with the old primary."""
    a.write(files["registry-a", "registry-b"], "replica", "registry-b", 2)
    a.start()


def test_what_the_old_primary_had_alone_is_fetched_under_a_free_name(a: Host, b: Host, files: Files) -> None:
    first, second, other, both = image("one"), image("two"), image("three"), image("four")
    a.push("svc/app", "1", first)
    until(lambda: b.has("svc/app", "1") == first.digest)
    b.stop("replicator")
    a.push("svc/app", "2", second)
    a.push("svc/both", "1", other)
    take_over(a, b, files)
    b.push("svc/both", "1", both)
    come_back(a, files)
    until(lambda: b.has("svc/app", "2") == second.digest)
    until(lambda: b.has("svc/both", f"1-of-registry-a-{other.digest[7:19]}") == other.digest)
    assert b.has("svc/both", "1") == both.digest
    until(lambda: a.said()["leftovers"] == [] and a.has("svc/both", "1") == both.digest)
    for name, digest in (("svc/app:2", second.digest), ("svc/both:1", other.digest)):
        assert f"{name}@{digest} is here and not at the primary registry-b" in a.log("replicator")
        assert f"{name}@{digest} came from registry-a" in b.log("replicator")
    assert a.pull("svc/both", f"1-of-registry-a-{other.digest[7:19]}", other)


def test_tags_that_the_old_primary_gave_alone_are_not_lost(a: Host, b: Host, files: Files) -> None:
    """Their images were there already, at both: a release of what had been a candidate, and a roll-back."""
    candidate, newest = image("candidate"), image("newest")
    a.push("svc/app", "2.7.0-rc3", candidate)
    a.push("svc/app", "current", newest)
    until(lambda: b.has("svc/app", "2.7.0-rc3") == candidate.digest and b.has("svc/app", "current") == newest.digest)
    b.stop("replicator")
    for tag in ("2.7.0", "current"):
        a.push("svc/app", tag, candidate)
    take_over(a, b, files)
    come_back(a, files)
    rolled_back = f"current-of-registry-a-{candidate.digest[7:19]}"
    until(lambda: b.has("svc/app", "2.7.0") == candidate.digest and b.has("svc/app", rolled_back) == candidate.digest)
    until(lambda: a.has("svc/app", "current") == newest.digest == b.has("svc/app", "current"))
    until(lambda: a.said()["leftovers"] == [] and a.has("svc/app", rolled_back) == candidate.digest)
    for tag in ("2.7.0", "current"):
        assert f"svc/app:{tag}@{candidate.digest} is here and not at the primary registry-b" in a.log("replicator")
    assert Store(str(b.base / "store/prod")).tags("svc/app").keys() == {"2.7.0-rc3", "2.7.0", "current", rolled_back}
    # From now on it is a replica like any other.
    b.stop("replicator")
    a.stop("replicator")
    b.push("svc/app", "current", candidate)
    forget_events(b)
    b.start("replicator")
    until(lambda: b.said()["role"] == "primary")
    a.start("replicator")
    until(lambda: a.has("svc/app", "current") == candidate.digest)
    assert a.said()["leftovers"] == [] and f"svc/app:current@{newest.digest} is here" not in a.log("replicator")


def test_a_replica_that_lags_has_nothing_alone(a: Host, b: Host) -> None:
    """A tag was moved at the primary by force, and this host has not heard of it."""
    first, second = image("first"), image("second")
    a.push("svc/app", "1", first)
    until(lambda: b.has("svc/app", "1") == first.digest)
    b.stop("replicator")
    a.push("svc/app", "1", second)
    forget_events(a)
    b.start("replicator")
    until(lambda: b.has("svc/app", "1") == second.digest)
    until(lambda: b.said()["swept"])
    assert b.said()["leftovers"] == [] and "is here and not at the primary" not in b.log("replicator")
    assert list(Store(str(a.base / "store/prod")).tags("svc/app")) == ["1"]


def test_what_can_not_be_rescued_stops_nothing_else(a: Host, b: Host, files: Files) -> None:
    b.stop("replicator")
    rotten, large = image("rotten"), image("large", size=60_000_000)
    # In the order of their names.
    a.push("svc/a-rotten", "1", rotten)
    a.push("svc/b-large", "1", large)
    a.push("svc/c-healthy", "1", image("healthy"))
    digest, blob = list(rotten.blobs.items())[-1]
    a.file_of(digest).write_bytes(bytes(len(blob)))
    take_over(a, b, files)
    come_back(a, files)
    until(lambda: b.has("svc/c-healthy", "1"), 60)
    assert b.has("svc/b-large", "1") == large.digest and b.has("svc/a-rotten", "1") == ""
    until(lambda: "/v2/svc/a-rotten/blobs/uploads/" in b.said()["problem"])
    assert b.said()["role"] == "primary"
    begun_at, fetched = time.monotonic(), a.doors_of(f"/v2/svc/a-rotten/blobs/{digest}").count("prod_packed")
    while time.monotonic() - begun_at < 8:
        assert "/v2/svc/a-rotten/blobs/uploads/" in b.said()["problem"]
        time.sleep(0.2)
    assert a.doors_of(f"/v2/svc/a-rotten/blobs/{digest}").count("prod_packed") - fetched <= 3
    a.file_of(digest).write_bytes(blob)
    until(lambda: b.has("svc/a-rotten", "1") == rotten.digest, 60)
    until(lambda: a.said()["leftovers"] == [] and b.said()["problem"] == "", 90)


def test_a_primary_that_rescues_hears_of_its_successor_at_once(a: Host, b: Host, files: Files) -> None:
    b.stop("replicator")
    large = image("large", size=60_000_000)
    a.push("svc/large", "1", large)
    take_over(a, b, files)
    b.stop("replicator")
    with gate(b, a):
        b.start("replicator")
        come_back(a, files)
        # The blob hangs in the middle.
        until(lambda: begun(b) > 100_000)
        a.tell("replica", "registry-a", 3)
        assert b.processes["replicator"].wait(15) == 1
        assert b.has("svc/large", "1") == ""


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
    done = b.ask_replicator("sweep")
    assert done.returncode == 0
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


def test_a_sweep_that_could_not_compare_is_none(a: Host, b: Host) -> None:
    """failover.yml must not take "nothing lacks" for an answer then."""
    a.stop("read")
    done = b.ask_replicator("sweep")
    said = json.loads(done.stdout)
    assert (done.returncode, said["follows"], said["lacking"]) == (1, True, []) and "503" in said["problem"]
    a.start("read")
    assert b.ask_replicator("sweep").returncode == 0
    a.stop("front")
    until(lambda: not b.said()["follows"])
    assert b.ask_replicator("sweep").returncode == 1


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
