# Copyright (c) 2026, mirrorfleet contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0
"""The tables of warm.yml and diff.yml where mirror hosts fail and their names have dots. A whole fleet's are made by Molecule."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import yaml

from ansible_collections.mirrorfleet.registry.tests.unit.conftest import ansible

PLAYBOOKS = Path(__file__).resolve().parents[3] / "playbooks"
HOSTS = [f"mirror{number}.zagreb.example.com" for number in (1, 2, 3)]


def play(directory: Path, tasks: list[dict[str, Any]], facts: dict[str, Any], **more: Any) -> tuple[int, str]:
    inventory = {"mirrors": {"hosts": {host: facts.get(host, {}) for host in HOSTS}}, "dc_zagreb": {"hosts": dict.fromkeys(HOSTS, {})}}
    (directory / "inventory.json").write_text(json.dumps({"all": {"vars": {"ansible_python_interpreter": sys.executable}}, **inventory}))
    (directory / "play.yml").write_text(json.dumps([{"hosts": "mirrors", "connection": "local", "gather_facts": False, "tasks": tasks, **more}]))
    (directory / "templates").symlink_to(PLAYBOOKS / "templates")
    done = ansible("ansible-playbook", "-i", "inventory.json", "play.yml", directory=directory)
    return done.returncode, done.stdout + done.stderr


def lines_of(said: str) -> list[str]:
    return list(json.loads("{" + said.partition(" => {")[2].partition("\n}")[0] + "}")["msg"])


def test_what_was_warmed(tmp_path: Path) -> None:
    image = {"image": "svc/app:1", "bytes_fetched": 2_500_000, "bytes_present": 0, "bytes_left": 0, "seconds": 1.25, "complete": True, "error": ""}
    late, bad = {**image, "image": "svc/b:1", "complete": False, "bytes_left": 900_000}, {**image, "image": "svc/c:1", "complete": False, "error": "404"}
    results = [
        {"item": {"key": "central"}, "failed": True, "msg": "1 of 3 images …", "images": [image, late, bad]},
        # Refused before anything was begun.
        {"item": {"key": "hub"}, "failed": True, "msg": "platforms: 'x' is no platform."},
    ]
    facts = {HOSTS[0]: {"wan_bytes": [1_000_000, 6_500_000], "__warmed": {"results": results}}, HOSTS[1]: {"wan_bytes": [0, 0], "__warmed": {"results": []}}}
    last = yaml.safe_load((PLAYBOOKS / "warm.yml").read_text())[-1]
    code, said = play(tmp_path, last["tasks"], facts)
    assert lines_of(said) == [
        f"dc_zagreb, {HOSTS[0]}: 5.5 MB came over the WAN meanwhile",
        "      fetched   was there  seconds",
        "       2.5 MB      0.0 MB      1.2  central svc/app:1",
        "       2.5 MB      0.0 MB      1.2  central svc/b:1  LEFT: 0.9 MB",
        "       2.5 MB      0.0 MB      1.2  central svc/c:1  FAILED",
        f"dc_zagreb, {HOSTS[1]}: 0.0 MB came over the WAN meanwhile",
        "      fetched   was there  seconds",
        f"{HOSTS[2]}: FAILED",
    ]
    assert code != 0 and "1 of 3 images …" in said and "platforms: 'x' is no platform." in said


def test_what_is_where(tmp_path: Path) -> None:
    def answer(host: str, in_cache: str, missing: int | None, upstream: str = "sha256:" + "a" * 64, named: str | None = None) -> dict[str, Any]:
        cache = {"name": f"zagreb/{host}", "in_cache": in_cache, "digest": named, "bytes_missing": missing, "unknown": ""}
        image = {"image": "svc/app:1", "digest": upstream, "unknown": "" if upstream else "connection refused", "caches": [cache]}
        return {"__diffed": {"results": [{"item": {"key": "central"}, "images": [image]}]}}

    second = yaml.safe_load((PLAYBOOKS / "diff.yml").read_text())[1]
    facts = {
        # The first has no way to the upstream.
        HOSTS[0]: answer(HOSTS[0], "complete", 0, "", "sha256:" + "a" * 64), HOSTS[1]: answer(HOSTS[1], "absent", 2_500_000, named="sha256:" + "b" * 64),
        HOSTS[2]: {"__diffed": {"failed": True, "results": [{"item": {"key": "central"}, "failed": True, "msg": "no Python"}]}},
    }
    code, said = play(tmp_path, second["tasks"][1:], facts, vars={**second["vars"], "diff_fail": True})
    assert [" ".join(line.split()) for line in lines_of(said)] == [
        f"image upstream zagreb/{HOSTS[0]} zagreb/{HOSTS[1]}",
        "central svc/app:1 sha256:aaaaaaaaaaaa complete drift",
        f"zagreb/{HOSTS[0]}: 1 of 1 complete, 0.0 MB would come over the WAN",
        f"zagreb/{HOSTS[1]}: 0 of 1 complete, 2.5 MB would come over the WAN",
        f"{HOSTS[2]}: FAILED",
        f"zagreb/{HOSTS[0]}: connection refused",
    ]
    assert code != 0 and f"central svc/app:1 is drift in zagreb/{HOSTS[1]}. Bring it there by warm.yml" in " ".join(said.split())
