# Copyright (c) 2026, mirrorfleet contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0
"""image_promote from a registry of the scope ci_snapshots into one of the scope prod: the role's own front and doors, TLS, logins, real keys."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Iterator

import pytest

from ansible_collections.mirrorfleet.registry.plugins.module_utils.registry_client import RegistryClient
from ansible_collections.mirrorfleet.registry.plugins.modules import image_promote
from ansible_collections.mirrorfleet.registry.tests.unit.conftest import Authority, Image, Registry, RunModule, free_port, image_of, layer_of
from ansible_collections.mirrorfleet.registry.tests.unit.roles.conftest import Render
from ansible_collections.mirrorfleet.registry.tests.unit.roles.test_registry import PASSWORDS, program, put_down, running, variables

KEY_PASSWORD = "of the keys"
PATH = "svc/app"
Promote = Callable[..., "dict[str, Any]"]


@dataclass
class Organisation:
    """Two registries behind one front, with the keys of CI and of prod, and what a client has who logs in as `builder`, or does not."""

    base: Path
    ports: dict[str, int]
    authority: str

    def place(self, scope: str) -> str:
        return f"127.0.0.1:{self.ports[scope]}"

    def key(self, name: str) -> str:
        return str(self.base / "keys" / name)

    def run(self, *command: str, login: str = "") -> subprocess.CompletedProcess[str]:
        """A client's program, which finds its login where `docker login` leaves it."""
        (self.base / f"home-{login}").mkdir(exist_ok=True)
        auth = base64.b64encode(f"{login}:{PASSWORDS[login]}".encode()).decode() if login else ""
        logins = {self.place(scope): {"auth": auth} for scope in self.ports} if login else {}
        (self.base / f"home-{login}/config.json").write_text(json.dumps({"auths": logins}))
        environment = {"DOCKER_CONFIG": str(self.base / f"home-{login}"), "SSL_CERT_FILE": self.authority, "COSIGN_PASSWORD": KEY_PASSWORD}
        return subprocess.run(
            command, env={**os.environ, **environment}, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL, cwd=self.base,
        )

    def sign(self, scope: str, digest: str, login: str) -> subprocess.CompletedProcess[str]:
        place = f"{self.place(scope)}/{PATH}@{digest}"
        return self.run("cosign", "sign", f"--key={self.key('ci.key')}", "--tlog-upload=false", "--yes", place, login=login)

    def signed(self, name: str, scope: str, digest: str) -> bool:
        """Whether cosign finds a signature by this key, for somebody without a login."""
        place = f"{self.place(scope)}/{PATH}@{digest}"
        return self.run("cosign", "verify", f"--key={self.key(name)}", "--private-infrastructure", place).returncode == 0

    def tags(self, scope: str) -> dict[str, str]:
        """The tags of the image and what they name; not those that cosign set."""
        with RegistryClient(f"https://{self.place(scope)}", ca_certificate=self.authority) as client:
            if not (self.base / "store" / scope / "docker/registry/v2/repositories" / PATH).exists():
                return {}
            found = {tag: client.head_manifest(PATH, tag) for tag in client.tags(PATH) if not tag.startswith("sha256-")}
            return {tag: each.digest for tag, each in found.items() if each}


@pytest.fixture
def organisation(render: Render, authority: Authority) -> Iterator[Organisation]:
    # The path of a socket has 107 characters at most, and pytest's directories are long.
    with tempfile.TemporaryDirectory(prefix="mf-") as directory:
        base = Path(directory)
        ports = {scope: free_port() for scope in ("ci_snapshots", "prod")}
        wanted = variables(
            base, ports, registry_tls="given", registry_certificate=authority.server_certificate.read_text(),
            registry_private_key=authority.server_key.read_text(),
        )
        put_down(base, *render("registry", wanted), *render("registry", wanted, template="front_files.yml.j2"))
        for name in ("keys", "certs"):
            (base / name).mkdir()
        # Skopeo looks for a client's certificate beside a key.
        shutil.copy(authority.certificate, base / "certs")
        found = Organisation(base, ports, str(authority.certificate))
        for name in ("ci", "prod", "other"):
            done = found.run(program("cosign"), "generate-key-pair", f"--output-key-prefix={base / 'keys' / name}")
            assert done.returncode == 0, done.stderr
        with running(base, ports):
            yield found


def made(**labels: str) -> Image:
    return image_of(layer_of({"content": os.urandom(50_000)}), labels=labels)


@pytest.fixture
def push(organisation: Organisation, registry: Registry) -> Callable[..., str]:
    """CI pushes an image for two platforms into the snapshots with skopeo and signs it; its digest."""
    def run(tag: str, signed: bool = True) -> str:
        digest = registry.push_index(PATH, tag, {"linux/amd64": made(tier="1"), "linux/arm64": made(tier="1")})
        done = organisation.run(
            "skopeo", "copy", "--all", "--src-tls-verify=false", f"--dest-cert-dir={organisation.base}/certs",
            f"--dest-creds=builder:{PASSWORDS['builder']}", f"docker://127.0.0.1:{registry.port}/{PATH}:{tag}",
            f"docker://{organisation.place('ci_snapshots')}/{PATH}:{tag}",
        )
        assert done.returncode == 0, done.stderr
        if signed:
            done = organisation.sign("ci_snapshots", digest, "builder")
            assert done.returncode == 0, done.stderr
        return digest

    return run


@pytest.fixture
def promote(organisation: Organisation, run_module: RunModule) -> Promote:
    """Promote as `promoter`, unless another login is given; what must not fail does not."""
    def run(*images: str, fails: bool = False, username: str = "promoter", password: str = PASSWORDS["promoter"], **more: Any) -> dict[str, Any]:
        ends = {name: {"url": f"https://{organisation.place(scope)}", "ca_certificate": organisation.authority}
                for name, scope in (("source", "ci_snapshots"), ("target", "prod"))}
        ends["target"].update(username=username, password=password)
        given: dict[str, Any] = {
            "policy": {"signed_by": [organisation.key("ci.pub")], "labels": {"tier": "*"}, "sources": [f"{organisation.place('ci_snapshots')}/**"]},
            "sign": {"key": organisation.key("prod.key"), "password": KEY_PASSWORD}, "promoted_by": "ana", "retries": 0,
        }
        said = run_module(image_promote.main, images=list(images), **ends, **{**given, **more})
        assert bool(said.get("failed")) is fails, said
        assert password not in json.dumps({**said, "invocation": {}})
        return said

    return run


def test_what_ci_signed_comes_into_prod_and_is_read_there_by_everybody(
    organisation: Organisation, promote: Promote, push: Callable[..., str], tmp_path: Path
) -> None:
    digest = push("1")
    foretold = promote(f"{PATH}:1", _ansible_check_mode=True)
    assert foretold["changed"] and not organisation.tags("prod")
    one, = promote(f"{PATH}:1", record=str(tmp_path / "record.jsonl"))["images"]
    assert one["actions"] == foretold["images"][0]["actions"] and one["platforms"] == ["linux/amd64", "linux/arm64"]
    assert organisation.tags("prod") == {"1": digest}
    assert organisation.signed("ci.pub", "prod", digest) and organisation.signed("prod.pub", "prod", digest)
    assert not organisation.signed("other.pub", "prod", digest) and not organisation.signed("prod.pub", "ci_snapshots", digest)
    assert json.loads((tmp_path / "record.jsonl").read_text())["digest"] == digest
    done = organisation.run(
        "skopeo", "copy", "--all", f"--src-cert-dir={organisation.base}/certs", f"docker://{organisation.place('prod')}/{PATH}:1",
        f"dir:{tmp_path}/pulled",
    )
    assert done.returncode == 0, done.stderr
    assert not promote(f"{PATH}:1")["changed"]
    # Nobody else signs there, and neither does who promotes delete.
    assert "the user builder may not write into the registry prod" in organisation.sign("prod", digest, "builder").stderr
    place = f"docker://{organisation.place('prod')}/{PATH}:1"
    gone = organisation.run("skopeo", "delete", f"--cert-dir={organisation.base}/certs", place, login="promoter")
    assert gone.returncode != 0 and organisation.tags("prod") == {"1": digest}


@pytest.mark.parametrize("username", ["builder", "alice"])
def test_who_may_not_write_does_not_promote(organisation: Organisation, promote: Promote, push: Callable[..., str], username: str) -> None:
    push("1")
    said = promote(f"{PATH}:1", username=username, password=PASSWORDS[username], fails=True)
    assert f"the user {username} may not write into the registry prod" in said["msg"], said["msg"]
    assert "The target does not let this user or host push: check its permissions and allowed networks." in said["msg"]
    assert not list((organisation.base / "store/prod").rglob("data"))


@pytest.mark.parametrize("username", ["promoter", "mallory"])
def test_a_login_that_is_wrong_is_seen_before_anything_is_asked(organisation: Organisation, promote: Promote, username: str) -> None:
    for check in (True, False):
        said = promote(f"{PATH}:1", username=username, password="wr0ng", fails=True, _ansible_check_mode=check)
        assert f"https://{organisation.place('prod')}/token" in said["msg"] and "The given username and password were refused" in said["msg"], said["msg"]
        assert "images" not in said


def test_what_is_not_signed_by_ci_stays_out(organisation: Organisation, promote: Promote, push: Callable[..., str]) -> None:
    digest = push("1", signed=False)
    assert f"does not let {digest} in: it is not signed." in promote(f"{PATH}:1", fails=True)["msg"]
    organisation.sign("ci_snapshots", digest, "builder")
    said = promote(f"{PATH}:1", fails=True, policy={"signed_by": [organisation.key("other.pub")]})
    assert "it is signed, but not by other.pub" in said["msg"]
    assert not list((organisation.base / "store/prod").rglob("data"))


def test_a_release_that_is_moved_by_force_stays_under_its_history_tag(organisation: Organisation, promote: Promote, push: Callable[..., str]) -> None:
    old = push("1")
    promote(f"{PATH}:1")
    new = push("1")
    assert f"the target has {PATH}:1 already, as {old}" in promote(f"{PATH}:1", fails=True)["msg"]
    one, = promote(f"{PATH}:1", force=True)["images"]
    assert organisation.tags("prod") == {"1": new, one["history_tag"]: old}
    assert all(organisation.signed("prod.pub", "prod", digest) for digest in (old, new))
