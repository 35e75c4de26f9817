# Copyright (c) 2026, mirrorfleet contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0
"""The guard as the role pull_through_cache puts it down."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.mirrorfleet.registry.tests.unit.conftest import ansible
from ansible_collections.mirrorfleet.registry.tests.unit.roles.conftest import ROLES, Render, unprivileged

UPSTREAMS = [
    {"name": name, "url": f"http://127.0.0.1:{port}", "port": port, "canary": "a:1"} for name, port in (("central", 5000), ("other", 5001))
]


def put_down(render: Render, base: Path, **variables: Any) -> dict[str, Path]:
    """The guard's files below `base`, by name."""
    directories = {
        "__pull_through_cache_guard_lib": str(base / "lib"), "__pull_through_cache_config": str(base / "etc"),
        "pull_through_cache_storage": str(base / "store"), "pull_through_cache_guard_metrics": str(base / "metrics"),
    }
    (files,) = render("pull_through_cache", {"mirror_upstreams": UPSTREAMS, **directories, **variables})
    found = {}
    for each in files:
        path = Path(each["path"])
        if path.name.startswith("mirrorfleet-guard"):
            path = base / "units" / path.name
        if "guard" in path.name or base / "lib" in path.parents:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(each["content"])
            found[path.name] = path
    return found


def test_it_runs_with_nothing_but_what_was_put_down(render: Render, base: Path) -> None:
    found = put_down(render, base)
    for name in ("metrics", "store/central", "store/other"):
        (base / name).mkdir(parents=True)
        if os.geteuid() == 0:
            shutil.chown(base / name, "nobody")
    exec_start = next(line for line in found["mirrorfleet-guard.service"].read_text().splitlines() if line.startswith("ExecStart="))
    done = subprocess.run(
        exec_start.partition("=")[2].split(), capture_output=True, text=True, check=False, cwd="/", env={}, umask=0o027, **unprivileged()
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("central ") and ", other " in done.stdout and len(done.stdout.splitlines()) == 1
    metrics = base / "metrics/mirrorfleet_guard.prom"
    assert 'mirrorfleet_guard_drained{cache="other"} 0\n' in metrics.read_text() and stat.S_IMODE(metrics.stat().st_mode) == 0o644
    assert json.loads((base / "store/central/.mirrorfleet/guard.json").read_text())["samples"]


def test_a_lone_mirror_host_is_never_taken_out_of_service(render: Render, base: Path) -> None:
    assert json.loads(put_down(render, base)["guard.json"].read_text())["drain_percent"] == 0
    assert json.loads(put_down(render, base, __pull_through_cache_has_sibling=True)["guard.json"].read_text())["drain_percent"] == 98


def test_systemd_takes_the_units(render: Render, base: Path) -> None:
    found = put_down(render, base)
    for unit in ("mirrorfleet-guard.service", "mirrorfleet-guard.timer"):
        text = found[unit].read_text().replace("mirrorfleet-cache", "daemon")
        found[unit].write_text(text)
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", str(found["mirrorfleet-guard.timer"]), str(found["mirrorfleet-guard.service"])],
        capture_output=True, text=True, check=False,
    )
    assert done.returncode == 0 and not [line for line in done.stderr.splitlines() if "mirrorfleet-guard" in line], done.stderr


@pytest.mark.parametrize(("variables", "message"), [
    ({"pull_through_cache_guard_low_percent": 95}, "pull_through_cache_guard_low_percent: 95.0, pull_through_cache_guard_high_percent: 90.0"),
    ({"pull_through_cache_guard_drain_percent": 85}, "pull_through_cache_guard_drain_percent: 85.0: write 0 < low < high < drain <= 100"),
    ({"pull_through_cache_guard_high_percent": 100}, "with high below 100"),
    ({"pull_through_cache_guard_grace": "soon"}, "pull_through_cache_guard_grace: soon: write a number and one of s, m, h, d, w, like 1h."),
    ({"pull_through_cache_guard_scrub_bytes_per_second": 0}, "pull_through_cache_guard_scrub_bytes_per_second: 0: write bytes from 1, like 50M."),
    ({"pull_through_cache_guard_interval_seconds": 0}, "pull_through_cache_guard_interval_seconds: 0: write a whole number from 1."),
    ({"pull_through_cache_guard_scrub_percent": -1}, "pull_through_cache_guard_scrub_percent: -1: write the percent"),
    ({"pull_through_cache_guard_scrub_bytes_per_second": 104857600}, ""),
    ({}, ""),
])
def test_values_that_can_not_be_meant_are_refused(tmp_path: Path, variables: dict[str, Any], message: str) -> None:
    (tmp_path / "play.yml").write_text(json.dumps([{
        "hosts": "localhost", "gather_facts": False, "vars_files": [str(ROLES / "pull_through_cache/defaults/main.yml"), "values.json"],
        "tasks": [{"ansible.builtin.import_tasks": str(ROLES / "pull_through_cache/tasks/check.yml")}],
    }]))
    (tmp_path / "values.json").write_text(json.dumps({"mirror_upstreams": UPSTREAMS, **variables}))
    done = ansible("ansible-playbook", "--inventory", "localhost,", "--connection", "local", "play.yml", directory=tmp_path)
    assert (done.returncode != 0) is bool(message), done.stdout
    assert message in " ".join(done.stdout.split()), done.stdout
