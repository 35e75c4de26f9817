# Copyright (c) 2026, mirrorfleet contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0
"""maintain.yml against a real cache on this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.mirrorfleet.registry.plugins.module_utils.storage import Store
from ansible_collections.mirrorfleet.registry.tests.unit.conftest import Registry, StartRegistry, ansible, image_of, layer_of
from ansible_collections.mirrorfleet.registry.tests.unit.plugins.module_utils.test_store_evict import pull, stored

PLAYBOOK = Path(__file__).resolve().parents[3] / "playbooks/maintain.yml"
APP, WEB = (image_of(layer_of({name: os.urandom(5_000)})) for name in ("app", "web"))


@pytest.fixture
def cache(start_registry: StartRegistry, registry: Registry) -> Registry:
    for name, image in (("svc/app", APP), ("svc/web", WEB)):
        registry.push(name, "1", image)
    cache = start_registry(upstream=registry.url)
    pull(cache, "svc/app:1", "svc/web:1")
    stored(cache, APP, WEB)
    return cache


def play(tmp_path: Path, *arguments: str, **variables: Any) -> subprocess.CompletedProcess[str]:
    inventory = {"mirrors": {"hosts": {"here": {"ansible_connection": "local", "ansible_python_interpreter": sys.executable, "ansible_become": False}}}}
    (tmp_path / "hosts.yml").write_text(json.dumps(inventory))
    return ansible(
        "ansible-playbook", "--inventory", "hosts.yml", "--extra-vars", json.dumps({**variables, "ansible_become": False}), *arguments, str(PLAYBOOK),
        directory=tmp_path,
    )


@pytest.mark.parametrize(("given", "says"), [
    ({}, "Nothing is to be done. Give the options of cache_evict in maintain_evict"),
    ({"maintain_evict": "svc/app:1"}, "Give the options of cache_evict in maintain_evict"),
    ({"maintain_evict": {"unused_for": "30d", "pined": ["svc/*"]}}, "maintain_evict: pined is no option. Write one of caches, images, unused_for,"),
    ({"maintain_scrub": {"max_byte": 1}}, "maintain_scrub: max_byte is no option. Write one of caches, max_seconds,"),
    ({"maintain_evict": {"caches": []}}, "This would evict everything."),
])
def test_nothing_is_done_that_is_not_asked_for(tmp_path: Path, given: dict[str, Any], says: str) -> None:
    done = play(tmp_path, **given)
    assert done.returncode != 0 and says in " ".join(done.stdout.split()), done.stdout


def test_what_the_guard_keeps_stays(cache: Registry, tmp_path: Path) -> None:
    caches = [{"name": "central", "path": str(cache.root)}]
    done = play(tmp_path, maintain_evict={"caches": caches, "images": ["svc/*"]}, pull_through_cache_guard_pinned=["svc/app:1"])
    assert done.returncode == 0 and "svc/app:1 stays: pinned" in done.stdout, done.stdout
    assert Store(str(cache.root)).repositories() == ["svc/app"]


def test_check_mode_says_what_would_go_and_a_run_does_it(cache: Registry, tmp_path: Path) -> None:
    caches = [{"name": "central", "path": str(cache.root)}]
    layer = list(WEB.blobs)[1]
    cache.blob_path(layer).write_bytes(b"x" * len(WEB.blobs[layer]))
    os.utime(cache.blob_path(layer), (0, 0))
    options = {"maintain_evict": {"caches": caches, "images": ["svc/app:1"]}, "maintain_scrub": {"caches": caches}}
    looked = play(tmp_path, "--check", **options)
    assert looked.returncode == 0, looked.stdout + looked.stderr
    assert "central: 1 images would be evicted" in looked.stdout and f"wrong bytes: {layer}, of svc/web:1" in looked.stdout
    assert Store(str(cache.root)).repositories() == ["svc/app", "svc/web"] and cache.blob_path(layer).exists()
    done = play(tmp_path, **options)
    assert done.returncode == 0 and "changed=2" in done.stdout and "central: 1 images evicted" in done.stdout, done.stdout + done.stderr
    assert Store(str(cache.root)).repositories() == ["svc/web"] and not cache.blob_path(layer).exists()
    again = play(tmp_path, **options)
    assert again.returncode == 0 and "changed=0" in again.stdout
