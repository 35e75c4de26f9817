# Copyright (c) 2026, mirrorfleet contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0
"""promote.yml as an operator runs it, between two real registries. The module's own tests: tests/unit/plugins/modules/test_image_promote.py."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Callable

import pytest

from ansible_collections.mirrorfleet.registry.plugins.module_utils.registry_client import RegistryClient
from ansible_collections.mirrorfleet.registry.tests.unit.conftest import Registry, StartRegistry, ansible, image_of, layer_of

PLAYBOOK = Path(__file__).resolve().parents[3] / "playbooks/promote.yml"
Play = Callable[..., str]


@pytest.fixture
def target(start_registry: StartRegistry, registry: Registry) -> Registry:
    return start_registry()


@pytest.fixture
def play(registry: Registry, target: Registry, tmp_path: Path) -> Play:
    """Run promote.yml from `registry`, of the scope ci_snapshots, to `target`; what it prints."""
    def run(
        *arguments: str, fails: bool = False, scope: str = "archive", policy: dict[str, Any] | None = None, sign: dict[str, Any] | None = None,
        groups: dict[str, Any] | None = None, slash: str = "", **variables: Any,
    ) -> str:
        released = {"name": "released", "scope": scope, "url": target.url, "policy": policy, "sign": sign}
        known = [{"name": "snapshots", "scope": "ci_snapshots", "url": registry.url + slash}, {key: value for key, value in released.items() if value}]
        (tmp_path / "inventory.json").write_text(json.dumps({**(groups or {}), "all": {"vars": {
            "promote_registries": known, "promote_record": str(tmp_path / "record.jsonl"), "ansible_python_interpreter": sys.executable,
            "promote_from": "snapshots", "promote_to": "released", **variables,
        }}}))
        done = ansible(
            "ansible-playbook", "-i", "inventory.json", str(PLAYBOOK), *arguments, directory=tmp_path, ANSIBLE_CALLBACK_RESULT_FORMAT="yaml", PWD=str(tmp_path)
        )
        assert (done.returncode != 0) is fails, done.stdout + done.stderr
        return done.stdout + done.stderr

    return run


def push(registry: Registry, path: str, tag: str) -> str:
    return registry.push(path, tag, image_of(layer_of({"content": os.urandom(1000)})))


def digest_at(registry: Registry, path: str, tag: str) -> str:
    with RegistryClient(registry.url) as client:
        found = client.head_manifest(path, tag)
        return found.digest if found else ""


def test_a_list_is_promoted_and_what_fails_stops_nothing(play: Play, registry: Registry, target: Registry, tmp_path: Path) -> None:
    digest = push(registry, "svc/app", "1-rc")
    (tmp_path / "release.txt").write_text("# Friday\nsvc/app:1-rc as svc/app:1   # the first\nsvc/absent:1\n")
    arguments = ("-e", "promote_images_file=release.txt", "-e", "promote_by=ana")
    said = play(*arguments, "--check", fails=True)
    assert "set the tag 1" in said and "would be promoted" in said, said
    assert not digest_at(target, "svc/app", "1") and not (tmp_path / "record.jsonl").exists()
    said = play(*arguments, fails=True)
    assert digest_at(target, "svc/app", "1") == digest
    assert "2 images, 1 promoted, 0 there already, 1 failed" in said
    assert f"svc/absent:1: the source {registry.url} has no svc/absent:1" in said.rpartition("None failed")[2]
    line = json.loads((tmp_path / "record.jsonl").read_text())
    assert (line["by"], line["digest"]) == ("ana", digest)
    said = play(promote_images=["svc/app:1-rc as svc/app:1"])
    assert "1 images, 0 promoted, 1 there already, 0 failed" in said and "changed=0" in said


def test_what_is_wrong_is_said_before_anything_is_asked(play: Play, registry: Registry, target: Registry) -> None:
    digest = push(registry, "svc/app", "1")
    for variables, says in [
        ({}, "There are no images."),
        ({"promote_images": "svc/app:1"}, "There are no images."),
        ({"promote_images_file": "/absent/release.txt"}, "there is no file /absent/release.txt on the controller"),
        ({"promote_images": ["svc/app:1"], "promote_to": "prd"}, 'promote_to: "prd" is no registry. Write one of snapshots, released.'),
        ({"promote_images": ["svc/app:1"], "promote_from": ""}, "promote_from: it has no value"),
        ({"promote_images": ["svc/app:1"], "promote_registries": []}, "promote_registries, of which there is none"),
        ({"promote_images": ["svc/app:1"], "scope": "prod"}, "released has the scope prod, and its policy has no signed_by"),
        ({"promote_images": ["svc/app"]}, "has neither a tag nor a digest"),
    ]:
        said = play(fails=True, **variables)
        assert says in " ".join(said.split()), said
    assert digest and not digest_at(target, "svc/app", "1")


def test_prod_takes_what_is_signed_and_from_the_snapshots(play: Play, registry: Registry, target: Registry, tmp_path: Path) -> None:
    push(registry, "svc/app", "1")
    environment = {**os.environ, "COSIGN_PASSWORD": "k3y-s3cret"}
    for name in ("ci", "prod"):
        subprocess.run(["cosign", "generate-key-pair", f"--output-key-prefix={tmp_path / name}"], env=environment, check=True, capture_output=True)
    # A slash at the end of the snapshots' URL is no part of a path.
    wanted = {"scope": "prod", "promote_images": ["svc/app:1"], "slash": "/"}
    rules = {"signed_by": [str(tmp_path / "ci.pub")]}
    assert "it is not signed" in play(fails=True, policy=rules, **wanted)
    place = f"127.0.0.1:{registry.port}/svc/app:1"
    subprocess.run(["cosign", "sign", f"--key={tmp_path / 'ci.key'}", "--tlog-upload=false", "--yes", place], env=environment, check=True, capture_output=True)
    said = play(fails=True, policy={**rules, "sources": ["ci.test/**"]}, **wanted)
    assert "and policy.sources has only ci.test/**" in " ".join(said.split())
    assert not digest_at(target, "svc/app", "1")
    said = play("-vvv", policy=rules, sign={"key": str(tmp_path / "prod.key"), "password": "k3y-s3cret"}, **wanted)
    assert "sign it with the target's key, set the tag 1" in " ".join(said.split()) and "k3y-s3cret" not in said
    place = f"127.0.0.1:{target.port}/svc/app:1"
    subprocess.run(["cosign", "verify", f"--key={tmp_path / 'prod.pub'}", "--private-infrastructure", place], check=True, capture_output=True)


def test_what_was_promoted_is_warmed_where_an_upstream_has_it(play: Play, registry: Registry, target: Registry) -> None:
    """Here is no mirror host: how far warm.yml comes says which images it was given."""
    push(registry, "svc/app", "1")
    fleet = {
        "promote_images": ["svc/app:1", "svc/absent:1"], "mirror_edge_tls": "none", "promote_warm": True,
        "mirror_upstreams": [{"name": "released", "url": "http://other.test", "port": 5000, "canary": "a:1"}],
    }
    groups = {"mirrors": {"hosts": {"mirror1": {"ansible_connection": "local"}}}, "dc_a": {"hosts": {"mirror1": {}}}}
    said = " ".join(play(groups=groups, fails=True, **{**fleet, "promote_warm": False}).split())
    assert "no upstream serves" not in said and "svc/absent:1: the source" in said.rpartition("None failed")[2]
    said = " ".join(play(groups=groups, fails=True, **fleet).split())
    assert f"127.0.0.1:{target.port}/svc/app:1: no upstream serves 127.0.0.1:{target.port}" in said, said
    assert f"127.0.0.1:{target.port}/svc/absent:1" not in said.rpartition("The upstream of each image is known")[2]
