# Copyright (c) 2026, mirrorfleet contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0
"""Registries by scope: the role's files, rendered by Ansible, run by HAProxy and distribution; who may do what."""

from __future__ import annotations

import base64
import contextlib
import ctypes
import http.client
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Iterator

import pytest
import yaml

from ansible_collections.mirrorfleet.registry.tests.unit.conftest import (
    Image,
    ObjectStorage,
    ansible,
    digest_of,
    free_port,
    image_of,
    layer_of,
    listens,
    until,
)
from ansible_collections.mirrorfleet.registry.tests.unit.roles.conftest import ROLES, Render

KEY = "-----BEGIN PUBLIC KEY-----\nMFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAE\n-----END PUBLIC KEY-----\n"
PASSWORDS = {"alice": "tea", "builder": "steel", "promoter": "stairs"}
ROLE_OF = {"alice": "reader", "builder": "ci", "promoter": "promotion"}
# Who comes, as Authorization says it.
CALLERS = {
    "none": "", **{ROLE_OF[name]: f"{name}:{password}" for name, password in PASSWORDS.items()},
    "wrong-ci": "builder:wrong", "wrong-promotion": "promoter:wrong", "unknown": "mallory:wrong",
}
SCOPES = ("sandbox", "ci_tests", "ci_snapshots", "prod")
# Who may write where.
WRITERS = {"sandbox": set(CALLERS), "ci_tests": {"ci"}, "ci_snapshots": {"ci"}, "prod": {"promotion"}}


def bcrypt(password: str) -> str:
    """As htpasswd does, by the C library's crypt(3)."""
    crypt = ctypes.CDLL("libcrypt.so.1").crypt
    crypt.restype = ctypes.c_char_p
    found = crypt(password.encode(), b"$2b$04$abcdefghijklmnopqrstuu")
    assert found
    return str(found.decode())


@dataclass
class Registries:
    """What the role brings up, one registry of each scope."""

    base: Path
    ports: dict[str, int]

    def request(
        self, scope: str, method: str, target: str, who: str = "none", body: bytes = b"", scheme: str = "Basic", **headers: str,
    ) -> tuple[int, http.client.HTTPMessage, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.ports[scope], timeout=10)
        sent = {key.replace("_", "-"): value for key, value in headers.items()}
        if CALLERS[who]:
            sent["Authorization"] = f"{scheme} {base64.b64encode(CALLERS[who].encode()).decode()}"
        connection.request(method, target, body or None, sent)
        answer = connection.getresponse()
        result = answer.status, answer.headers, answer.read()
        connection.close()
        return result

    def push_blob(self, scope: str, repository: str, blob: bytes, who: str) -> int:
        status, headers, _body = self.request(scope, "POST", f"/v2/{repository}/blobs/uploads/", who)
        if status == 202:
            status, _headers, _body = self.request(scope, "PUT", f"{headers['Location']}&digest={digest_of(blob)}", who, blob)
        return status

    def push(self, scope: str, repository: str, tag: str, image: Image, who: str) -> str:
        for blob in image.blobs.values():
            assert self.push_blob(scope, repository, blob, who) == 201
        status, _headers, said = self.request(scope, "PUT", f"/v2/{repository}/manifests/{tag}", who, image.manifest, Content_Type=image.media_type)
        assert status == 201, said
        return image.digest

    def log(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.base / "front.log").read_text().splitlines() if line.startswith("{")]


def variables(base: Path, ports: dict[str, int], **more: Any) -> dict[str, Any]:
    """What an operator writes, and where it lies instead of in /etc, /run and /var/lib."""
    guarded = {"backup_target": "/srv/backup", "signing_key": KEY}
    return {
        "registry_here": [
            {"name": scope.replace("_", "-"), "scope": scope, "port": port, "storage": str(base / "store" / scope), **(guarded if scope == "prod" else {})}
            for scope, port in ports.items()
        ],
        "registry_users": [{"name": name, "role": role, "hash": bcrypt(PASSWORDS[name])} for name, role in ROLE_OF.items()],
        "registry_backup_password": "of the backup", "registry_tls": "none", "registry_ca_directory": str(base), "registry_allowed_networks": ["127.0.0.0/8"],
        "__registry_config": str(base / "etc"), "__registry_run": str(base / "run"), "__registry_keeper_lib": str(base / "lib"),
        "__registry_front_config": str(base / "front"), "__registry_front_run": str(base / "run"), **more,
    }


def put_down(base: Path, *lists: list[dict[str, Any]]) -> None:
    """Write what belongs below `base`; units go beside it."""
    for files in lists:
        for each in files:
            path = Path(each["path"])
            path = path if base in path.parents else base / "units" / path.relative_to("/etc/systemd/system")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(each["content"])


@contextlib.contextmanager
def running(base: Path, ports: dict[str, int]) -> Iterator[Registries]:
    """HAProxy and the two distributions of each registry."""
    (base / "run").mkdir(exist_ok=True)
    processes = []
    try:
        for scope in ports:
            for door in ("read", "write"):
                (base / "store" / scope).mkdir(parents=True, exist_ok=True)
                processes.append(start_door(base, scope, door))
        with open(base / "front.log", "wb") as log:
            processes.append(subprocess.Popen([program("haproxy"), "-W", "-db", "-f", str(base / "front/haproxy.cfg")], stdout=log, stderr=log))
        until(lambda: all(listens(port) for port in ports.values()) or processes[-1].poll() is not None)
        assert processes[-1].poll() is None, (base / "front.log").read_text()
        yield Registries(base, ports)
    finally:
        for process in reversed(processes):
            process.terminate()
            process.wait(20)


def start_door(base: Path, scope: str, door: str) -> subprocess.Popen[bytes]:
    name = f"{scope.replace('_', '-')}-{door}"
    # systemd passes on nothing that this environment may have for S3.
    environment = {key: value for key, value in os.environ.items() if not key.startswith("AWS_")}
    with open(base / f"{name}.log", "ab") as log:
        process = subprocess.Popen(
            [program("docker-registry"), "serve", str(base / "etc" / f"{name}.yml")], stdout=log, stderr=log,
            env={**environment, "REGISTRY_HTTP_SECRET": "of the test"},
        )
    until(lambda: (base / "run" / f"{name}.sock").exists() or process.poll() is not None)
    assert process.poll() is None, (base / f"{name}.log").read_text()
    return process


def program(name: str) -> str:
    found = shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
    if found is None:
        pytest.fail(f"{name} is missing; these tests run a real one")
    return found


@pytest.fixture(scope="module")
def registries(render: Render) -> Iterator[Registries]:
    # The path of a socket has 107 characters at most, and pytest's directories are long.
    with tempfile.TemporaryDirectory(prefix="mf-") as directory:
        base = Path(directory)
        ports = {scope: free_port() for scope in SCOPES}
        wanted = variables(base, ports)
        put_down(base, *render("registry", wanted), *render("registry", wanted, template="front_files.yml.j2"))
        with running(base, ports) as found:
            yield found


IMAGE = image_of(layer_of({"a": b"a" * 5000}))


@pytest.fixture(scope="module")
def filled(registries: Registries) -> Registries:
    """Each registry has svc/app:1."""
    for scope, who in (("sandbox", "none"), ("ci_tests", "ci"), ("ci_snapshots", "ci"), ("prod", "promotion")):
        registries.push(scope, "svc/app", "1", IMAGE, who)
    return registries


@pytest.mark.parametrize("who", CALLERS)
@pytest.mark.parametrize("scope", SCOPES)
def test_everybody_reads(filled: Registries, scope: str, who: str) -> None:
    for method in ("GET", "HEAD"):
        status, headers, body = filled.request(scope, method, "/v2/svc/app/manifests/1", who, Accept=IMAGE.media_type)
        assert (status, headers["Docker-Content-Digest"]) == (200, IMAGE.digest)
        assert body == (IMAGE.manifest if method == "GET" else b"")
        for digest, blob in IMAGE.blobs.items():
            status, _headers, body = filled.request(scope, method, f"/v2/svc/app/blobs/{digest}", who)
            assert (status, body) == (200, blob if method == "GET" else b"")
    assert json.loads(filled.request(scope, "GET", "/v2/svc/app/tags/list", who)[2])["tags"] == ["1"]
    assert json.loads(filled.request(scope, "GET", "/v2/_catalog", who)[2])["repositories"]


@pytest.mark.parametrize("who", CALLERS)
@pytest.mark.parametrize("scope", SCOPES)
def test_only_who_may_writes(filled: Registries, scope: str, who: str) -> None:
    """Each kind of caller with each method that writes; what is refused leaves nothing behind."""
    may = who in WRITERS[scope]
    # Whether a password is right is found out of those only whose name may write.
    refused = 401 if who == "none" or who in {f"wrong-{role}" for role in WRITERS[scope]} else 403
    repository = f"of/{who}"
    blob = f"{scope} {who}".encode()

    status, headers, _body = filled.request(scope, "POST", f"/v2/{repository}/blobs/uploads/", who)
    assert status == (202 if may else refused)
    # An upload of somebody who may, so that it is there.
    by = who if may else min(WRITERS[scope])
    place = filled.request(scope, "POST", "/v2/of/theirs/blobs/uploads/", by)[1]["Location"]
    assert filled.request(scope, "GET", place, who)[0] == (204 if may else refused)
    status, headers, _body = filled.request(scope, "PATCH", place, who, blob, Content_Type="application/octet-stream")
    assert status == (202 if may else refused)
    place = headers["Location"] if may else place
    if may:
        assert filled.request(scope, "PUT", f"{place}&digest={digest_of(blob)}", who)[0] == 201
        assert filled.request(scope, "POST", f"/v2/of/another/blobs/uploads/?mount={digest_of(blob)}&from=of/theirs", who)[0] == 201
        other_place = filled.request(scope, "POST", f"/v2/{repository}/blobs/uploads/", who)[1]["Location"]
        assert filled.request(scope, "DELETE", other_place, who)[0] == 204
    else:
        assert filled.request(scope, "PUT", f"{place}&digest={digest_of(blob)}", who, blob)[0] == refused
        assert filled.request(scope, "DELETE", place, who)[0] == refused
        assert filled.request(scope, "DELETE", place, by)[0] == 204

    before = filled.request(scope, "GET", "/v2/svc/app/manifests/1", Accept=IMAGE.media_type)[2]
    other = image_of(layer_of({"a": b"a" * 5000}), labels={"by": f"{scope} {who}"})
    if may:
        filled.push(scope, repository, "1", other, who)
        gone = filled.request(scope, "DELETE", f"/v2/{repository}/manifests/{other.digest}", who)[0]
        assert gone == (405 if scope == "prod" else 202)
    else:
        assert filled.request(scope, "PUT", "/v2/svc/app/manifests/1", who, other.manifest, Content_Type=other.media_type)[0] == refused
        gone = filled.request(scope, "DELETE", f"/v2/svc/app/manifests/{IMAGE.digest}", who)[0]
        assert gone == (405 if scope == "prod" else refused)
    assert filled.request(scope, "GET", "/v2/svc/app/manifests/1", Accept=IMAGE.media_type)[2] == before
    if not may:
        assert not (filled.base / "store" / scope / "docker/registry/v2/repositories" / repository).exists()


def test_a_client_that_asks_for_tokens_gets_its_login_back(filled: Registries) -> None:
    """What docker, containerd and skopeo do: /v2/, the token that the challenge names, the request again."""
    status, headers, _body = filled.request("ci_snapshots", "GET", "/v2/")
    assert status == 401
    host = f"127.0.0.1:{filled.ports['ci_snapshots']}"
    assert headers["WWW-Authenticate"] == f'Bearer realm="http://{host}/token",service="mirrorfleet"'
    status, _headers, body = filled.request("ci_snapshots", "GET", "/token?service=mirrorfleet&scope=repository:svc/app:pull")
    assert status == 200
    connection = http.client.HTTPConnection("127.0.0.1", filled.ports["ci_snapshots"], timeout=10)
    for target, method, expected in (("/v2/", "GET", 200), ("/v2/svc/app/tags/list", "GET", 200), ("/v2/svc/app/blobs/uploads/", "POST", 401)):
        connection.request(method, target, headers={"Authorization": f"Bearer {json.loads(body)['token']}"})
        answer = connection.getresponse()
        answer.read()
        assert answer.status == expected, target
    assert answer.headers["WWW-Authenticate"].endswith(',scope="repository:svc/app:pull,push"')
    connection.close()
    status, _headers, body = filled.request("ci_snapshots", "GET", "/token?account=builder", "ci")
    assert (status, base64.b64decode(json.loads(body)["token"]).decode()) == (200, CALLERS["ci"])
    assert filled.request("ci_snapshots", "POST", "/v2/svc/app/blobs/uploads/", "ci", scheme="Bearer")[0] == 202


@pytest.mark.parametrize(("who", "expected"), [
    ("none", 401), ("reader", 200), ("ci", 200), ("promotion", 200), ("wrong-ci", 401), ("wrong-promotion", 401),
    ("unknown", 401),
])
@pytest.mark.parametrize("scope", SCOPES[1:])
def test_a_login_is_checked(filled: Registries, scope: str, who: str, expected: int) -> None:
    assert filled.request(scope, "GET", "/v2/", who)[0] == expected
    status, headers, _body = filled.request(scope, "GET", "/token", who)
    assert status == (200 if who == "none" else expected)
    assert (status == 200) or headers["WWW-Authenticate"].startswith("Bearer ")


def test_the_sandbox_asks_for_no_login(filled: Registries) -> None:
    assert filled.request("sandbox", "GET", "/v2/")[0] == 200


def skopeo(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([program("skopeo"), "copy", *arguments], capture_output=True, text=True, check=False)


def layout(directory: Path, wanted: Image) -> Path:
    """An image as a directory that skopeo reads (OCI image layout)."""
    (directory / "blobs/sha256").mkdir(parents=True)
    for digest, blob in {**wanted.blobs, wanted.digest: wanted.manifest}.items():
        (directory / "blobs/sha256" / digest[7:]).write_bytes(blob)
    (directory / "oci-layout").write_text(json.dumps({"imageLayoutVersion": "1.0.0"}))
    (directory / "index.json").write_text(json.dumps({
        "schemaVersion": 2, "manifests": [{"mediaType": wanted.media_type, "digest": wanted.digest, "size": len(wanted.manifest)}],
    }))
    return directory


def test_skopeo_pushes_with_its_login_and_pulls_without(filled: Registries, tmp_path: Path) -> None:
    place = f"docker://127.0.0.1:{filled.ports['ci_snapshots']}/svc/copied:1"
    source = f"docker://127.0.0.1:{filled.ports['ci_snapshots']}/svc/app:1"
    both = ("--src-tls-verify=false", "--dest-tls-verify=false")
    refused = skopeo(*both, source, place)
    assert refused.returncode != 0 and "takes a login" in refused.stderr, refused.stderr
    refused = skopeo(*both, "--dest-creds", CALLERS["reader"], source, place)
    assert refused.returncode != 0 and "the user alice may not write" in refused.stderr, refused.stderr
    done = skopeo(*both, "--dest-creds", CALLERS["ci"], source, place)
    assert done.returncode == 0, done.stderr
    done = skopeo("--src-tls-verify=false", place, f"dir:{tmp_path}/copy")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "copy/manifest.json").read_bytes() == IMAGE.manifest


@pytest.mark.parametrize(("method", "target", "expected"), [
    ("GET", "/", 404), ("GET", "/v2", 404), ("GET", "/metrics", 404), ("GET", "/debug/vars", 404), ("GET", "/v2/../token", 404), ("GET", "/v2/%2e%2e/x", 404),
    ("GET", "/v2//manifests/1", 404), ("GET", "/v2/A/manifests/1", 404), ("GET", "/v2/a/manifests/..", 404), ("GET", "/v2/a/blobs/sha256:ab", 404),
    ("GET", "/v2/a/blobs/uploads/", 405), ("POST", "/v2/a/manifests/1", 405), ("PATCH", "/v2/a/manifests/1", 405), ("POST", "/token", 405),
    ("PUT", "/v2/a/tags/list", 405), ("DELETE", "/v2/a/manifests/1", 405), ("DELETE", "/v2/a/blobs/sha256:" + "0" * 64, 405), ("PUT", "/v2/", 405),
    ("OPTIONS", "/v2/", 405), ("TRACE", "/v2/", 405), ("GET", "http://other/v2/", 400),
])
def test_other_paths_and_methods_are_refused(filled: Registries, method: str, target: str, expected: int) -> None:
    for scope in ("sandbox", "prod"):
        assert filled.request(scope, method, target, "promotion")[0] == expected


def test_a_host_that_is_none_is_not_named_in_a_challenge(filled: Registries) -> None:
    status, headers, _body = filled.request("prod", "GET", "/v2/", Host='evil",realm="http://other')
    assert status == 400 and "WWW-Authenticate" not in headers


def test_the_log_names_the_user_and_no_secret(filled: Registries) -> None:
    filled.request("ci_tests", "POST", "/v2/svc/app/blobs/uploads/", "ci")
    filled.request("ci_tests", "GET", "/token", "ci")
    until(lambda: any(each["user"] == "builder" and each["door"] == "ci-tests_write" for each in filled.log()))
    text = (filled.base / "front.log").read_text()
    assert not [word for word in (*PASSWORDS.values(), base64.b64encode(CALLERS["ci"].encode()).decode()) if word in text]


def test_the_door_to_read_writes_nothing_whatever_comes(filled: Registries) -> None:
    """Should the front fail to see that a request writes, distribution refuses it."""
    connection = http.client.HTTPConnection("localhost", timeout=10)
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.connect(str(filled.base / "run/sandbox-read.sock"))
    for method, target in (("POST", "/v2/a/blobs/uploads/"), ("PUT", "/v2/svc/app/manifests/2"), ("DELETE", f"/v2/svc/app/manifests/{IMAGE.digest}")):
        connection.request(method, target, IMAGE.manifest, {"Content-Type": IMAGE.media_type})
        answer = connection.getresponse()
        answer.read()
        assert answer.status == 405
    connection.close()


def test_the_keeper_runs_with_nothing_but_what_was_put_down(filled: Registries) -> None:
    unit = (filled.base / "units/mirrorfleet-registry-keeper.service").read_text()
    command = next(line for line in unit.splitlines() if line.startswith("ExecStart=")).partition("=")[2].split()
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd="/", env={})
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines() == [f"{name}: 0 tags, 0 manifests and 0 blobs went, 0 bytes" for name in ("sandbox", "ci-tests", "ci-snapshots")]


def test_without_retention_there_is_no_keeper(render: Render) -> None:
    wanted = variables(Path("/base"), {"prod": 5012})
    (files,) = render("registry", wanted)
    assert not [each["path"] for each in files if "keeper" in each["path"]]


def test_systemd_takes_the_units(filled: Registries, tmp_path: Path) -> None:
    shutil.copytree(filled.base / "units", tmp_path / "units")
    for path in (tmp_path / "units").rglob("*.*"):
        if path.is_file():
            path.write_text(path.read_text().replace("mirrorfleet-registry-front\n", "daemon\n").replace("=mirrorfleet-registry\n", "=daemon\n"))
    names = ["front.service", "keeper.service", "keeper.timer", "read@prod.service", "write@prod.service"]
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", *(f"{tmp_path}/units/mirrorfleet-registry-{name}" for name in names)],
        capture_output=True, text=True, check=False, env={**os.environ, "SYSTEMD_UNIT_PATH": f"{tmp_path}/units:"},
    )
    assert done.returncode == 0 and "mirrorfleet" not in done.stderr, done.stderr


def test_each_instance_may_write_to_its_own_storage_only(filled: Registries) -> None:
    for scope in SCOPES:
        for door in ("read", "write"):
            text = (filled.base / f"units/mirrorfleet-registry-{door}@{scope.replace('_', '-')}.service.d/storage.conf").read_text()
            assert f"ReadWritePaths={filled.base}/store/{scope}\n" in text
            assert f"RequiresMountsFor={filled.base}/store/{scope}\n" in text
    assert str(filled.base / "store") not in (filled.base / "units/mirrorfleet-registry-write@.service").read_text()


@pytest.mark.parametrize("storage", [
    {"s3": {"bucket": "images", "region": "eu-central-1", "accesskey": "AKIA", "secretkey": "wander3r", "encrypt": True, "chunksize": 10485760}},
    {"azure": {"accountname": "name", "accountkey": "wander3r", "container": "images"}},
    {"gcs": {"bucket": "images", "rootdirectory": "/prod", "credentials": {"type": "service_account", "private_key": "wander3r"}}},
])
def test_object_storage_is_passed_on_and_stays_secret(render: Render, storage: dict[str, Any]) -> None:
    wanted = variables(Path("/base"), {"prod": 5012})
    wanted["registry_here"][0] |= {"storage": storage, "backup_target": None}
    (files,) = render("registry", wanted)
    for door in ("read", "write"):
        file, = (each for each in files if each["path"].endswith(f"prod-{door}.yml"))
        found = yaml.safe_load(file["content"])["storage"]
        assert {key: found[key] for key in storage} == storage and "filesystem" not in found
        assert (file["secret"], file["mode"], found["redirect"]) == (True, "0400", {"disable": True})
    assert not [each["path"] for each in files if "wander3r" in each["content"] and not each.get("secret")]
    assert not [each["path"] for each in files if each["path"].endswith("storage.conf")]


# What is wrong with a registry's storage, and what of it stands in the registry's log.
BROKEN = {
    "wrong-secret": ({"secretkey": "wander3r"}, "SignatureDoesNotMatch"),
    "wrong-key": ({"accesskey": "nobody"}, "InvalidAccessKeyId"),
    "no-bucket": ({"bucket": "elsewhere"}, "NoSuchBucket"),
    "nobody-there": ({"regionendpoint": "http://127.0.0.1:9"}, "connection refused"),
}


@dataclass
class InBuckets(Registries):
    """Registries of the scope prod with their storage behind a real S3 server: `whole`, and one for each thing that may be wrong."""

    bucket: str

    def probe(self) -> subprocess.CompletedProcess[str]:
        """What the role does when all is up."""
        (self.base / "play.yml").write_text(json.dumps([{
            "hosts": "localhost", "gather_facts": False,
            "vars_files": [*(str(ROLES / "registry" / name / "main.yml") for name in ("defaults", "vars")), "values.json"],
            "tasks": [{"ansible.builtin.import_tasks": str(ROLES / "registry/tasks/storage.yml")}],
        }]))
        interpreter = f"ansible_python_interpreter={sys.executable}"
        return ansible("ansible-playbook", "-vvv", "-i", "localhost,", "--connection", "local", "--extra-vars", interpreter, "play.yml", directory=self.base)


@pytest.fixture(scope="module")
def in_buckets(render: Render, object_storage: ObjectStorage) -> Iterator[InBuckets]:
    with tempfile.TemporaryDirectory(prefix="mf-") as directory:
        base = Path(directory)
        ports = {name: free_port() for name in ("whole", *BROKEN)}
        wanted = variables(base, {"prod": 0})
        (prod,) = wanted["registry_here"]
        bucket = object_storage.bucket()
        right = {
            "bucket": bucket, "region": "us-east-1", "regionendpoint": object_storage.url, "secure": False, "chunksize": 5 * 1024**2,
            "accesskey": object_storage.access_key, "secretkey": object_storage.secret_key,
        }
        wanted["registry_here"] = [
            {
                **prod, "name": name, "port": port, "backup_target": None,
                "storage": {"s3": {**right, "rootdirectory": f"/of/{name}", **(BROKEN[name][0] if name in BROKEN else {})}},
            }
            for name, port in ports.items()
        ]
        put_down(base, *render("registry", wanted), *render("registry", wanted, template="front_files.yml.j2"))
        (base / "values.json").write_text(json.dumps(wanted))
        with running(base, ports):
            yield InBuckets(base, ports, bucket)


def test_images_go_into_a_bucket_and_come_out_of_it(in_buckets: InBuckets, object_storage: ObjectStorage, tmp_path: Path) -> None:
    """By skopeo, the front, both doors and the S3 server; one layer is larger than a part of an upload."""
    wanted = image_of(layer_of({"large": random.Random(1).randbytes(12_000_000)}), layer_of({"small": b"small"}))
    source, place = f"oci:{layout(tmp_path / 'source', wanted)}", f"docker://127.0.0.1:{in_buckets.ports['whole']}/svc/app:1"
    refused = skopeo("--dest-tls-verify=false", "--dest-creds", CALLERS["ci"], source, place)
    assert refused.returncode != 0 and "the user builder may not write" in refused.stderr, refused.stderr
    assert not object_storage.objects(in_buckets.bucket)
    done = skopeo("--dest-tls-verify=false", "--dest-creds", CALLERS["promotion"], source, place)
    assert done.returncode == 0, done.stderr
    done = skopeo("--src-tls-verify=false", place, f"dir:{tmp_path}/copy")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "copy/manifest.json").read_bytes() == wanted.manifest
    for digest, blob in wanted.blobs.items():
        assert (tmp_path / "copy" / digest[7:]).read_bytes() == blob
        assert in_buckets.request("whole", "GET", f"/v2/svc/app/blobs/{digest}", Range="bytes=5-9")[2] == blob[5:10]
    assert in_buckets.request("whole", "DELETE", f"/v2/svc/app/manifests/{wanted.digest}", "promotion")[0] == 405
    sizes = object_storage.objects(in_buckets.bucket)
    for digest, blob in {**wanted.blobs, wanted.digest: wanted.manifest}.items():
        assert sizes[f"of/whole/docker/registry/v2/blobs/sha256/{digest[7:9]}/{digest[7:]}/data"] == len(blob)
    assert all(key.startswith("of/whole/docker/") for key in sizes)


def test_a_bucket_that_can_not_be_read_is_told(in_buckets: InBuckets, object_storage: ObjectStorage, tmp_path: Path) -> None:
    done = in_buckets.probe()
    expected = f"registry_here: registry {', '.join(BROKEN)}: storage: it can't be read: its place, its credentials or the way there is wrong."
    assert done.returncode != 0 and expected in " ".join(done.stdout.split()), done.stdout
    source = f"oci:{layout(tmp_path / 'source', IMAGE)}"
    for name, (_what, why) in BROKEN.items():
        # Clients show the status; who asks by curl is told why.
        place = f"docker://127.0.0.1:{in_buckets.ports[name]}/svc/app:1"
        for each in (
            skopeo("--src-tls-verify=false", place, f"dir:{tmp_path}/copy"),
            skopeo("--dest-tls-verify=false", "--dest-creds", CALLERS["promotion"], source, place),
        ):
            assert each.returncode != 0 and "503" in each.stderr, each.stderr
        for door, method, target in (("read", "GET", "manifests/1"), ("write", "POST", "blobs/uploads/")):
            status, _headers, said = in_buckets.request(name, method, f"/v2/svc/app/{target}", "promotion")
            told = f"the storage of the registry {name} (prod) fails; its log says why: journalctl -u mirrorfleet-registry-{door}@{name}"
            assert (status, json.loads(said)["errors"][0]["message"]) == (503, told)
            assert why in (in_buckets.base / f"{name}-{door}.log").read_text()
    logs = [path.read_text() for path in in_buckets.base.glob("*.log")]
    assert not [each for each in (*logs, done.stdout, done.stderr) if "wander3r" in each or object_storage.secret_key in each]


@pytest.mark.parametrize(("more", "message"), [
    ({"registry_allowed_networks": "10.0.0.0/8"}, "registry_allowed_networks: 10.0.0.0/8: write a list of networks"),
    ({"registry_allowed_networks": ["10.0.0.0/8 or more"]}, "registry_allowed_networks: 10.0.0.0/8 or more: write a list of networks"),
    ({"registry_keeper_grace": "24h"}, "registry_keeper_grace: 24h: write at least 25h"),
    ({"registry_keeper_grace": "1d"}, "registry_keeper_grace: 1d: write at least 25h"),
    ({"registry_maxconn": 0}, "registry_maxconn: 0: write a whole number from 1."),
    ({"registry_here": [{"name": "play", "scope": "play", "port": 5010}]}, "registry_here: registry 'play': scope: 'play': is no scope."),
    ({"registry_users": []}, "registry_users: nobody has the role promotion"),
    ({}, ""),
])
def test_values_that_can_not_be_meant_are_refused(tmp_path: Path, more: dict[str, Any], message: str) -> None:
    (tmp_path / "play.yml").write_text(json.dumps([{
        "hosts": "localhost", "gather_facts": False,
        "vars_files": [*(str(ROLES / "registry" / name / "main.yml") for name in ("defaults", "vars")), "values.json"],
        "tasks": [{"ansible.builtin.import_tasks": str(ROLES / "registry/tasks/check.yml")}],
    }]))
    (tmp_path / "values.json").write_text(json.dumps({**variables(Path("/srv"), {"prod": 5012}), **more}))
    done = ansible("ansible-playbook", "--inventory", "localhost,", "--connection", "local", "play.yml", directory=tmp_path)
    assert (done.returncode != 0) is bool(message), done.stdout
    assert message in " ".join(done.stdout.split()), done.stdout
