# Copyright (c) 2026, mirrorfleet contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0
"""promote.yml as an operator runs it, between two real registries. The module's own tests: tests/unit/plugins/modules/test_image_promote.py."""

from __future__ import annotations

import json
import os
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
    def run(*arguments: str, fails: bool = False, policy: dict[str, Any] | None = None, scope: str = "archive", **variables: Any) -> str:
        known = [
            {"name": "snapshots", "scope": "ci_snapshots", "url": registry.url},
            {"name": "released", "scope": scope, "url": target.url, **({"policy": policy} if policy else {})},
        ]
        (tmp_path / "inventory.json").write_text(json.dumps({"all": {"vars": {
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
