# Copyright (c) 2026, mirrorfleet contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0
"""Tasks of check.yml, as they stand there, on hosts that share a mount. What needs systemd is in molecule/registries."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from ansible_collections.mirrorfleet.registry.tests.unit.conftest import COLLECTIONS

PLAYBOOKS = Path(__file__).resolve().parents[3] / "playbooks"


@pytest.mark.parametrize(("second", "message"), [
    ("images", "registry_here: {0}/images and {0}/images of r1 are on one share (nas:/export/images and nas:/export/images)."),
    ("images/inner", "registry_here: {0}/images/inner and {0}/images of r1 are on one share (nas:/export/images/inner and nas:/export/images)."),
    ("images2", ""),
])
def test_registries_of_two_hosts_on_one_share_are_refused(tmp_path: Path, second: str, message: str) -> None:
    """There is no NFS here, so it is a mount that has the name of one."""
    share = tmp_path / "share"
    share.mkdir()
    play, = (each for each in yaml.safe_load((PLAYBOOKS / "check.yml").read_text()) if each["hosts"] == "registries")
    play["tasks"] = [each for each in play["tasks"] if each["name"] in ("The host is looked at", "No two registries are on one share")]
    assert len(play["tasks"]) == 2
    for name in ("templates", "tasks"):
        (tmp_path / "playbooks").mkdir(exist_ok=True)
        (tmp_path / "playbooks" / name).symlink_to(PLAYBOOKS / name)
    (tmp_path / "roles").symlink_to(PLAYBOOKS.parent / "roles")
    (tmp_path / "playbooks/check.yml").write_text(json.dumps([play]))
    (tmp_path / "inventory.json").write_text(json.dumps({"registries": {
        "vars": {"ansible_connection": "local", "ansible_python_interpreter": sys.executable},
        "hosts": {host: {"registry_here": [{"name": "play", "scope": "sandbox", "port": 5010, "storage": f"{share}/{directory}"}]}
                  for host, directory in (("r1", "images"), ("r2", second))},
    }}))
    program = Path(sys.executable).parent / "ansible-playbook"
    done = subprocess.run(
        ["unshare", "--mount", "--map-root-user", "sh", "-c", f"mount -t tmpfs nas:/export {share} && exec {program} -i inventory.json playbooks/check.yml"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
        env={**os.environ, "ANSIBLE_COLLECTIONS_PATH": str(COLLECTIONS), "ANSIBLE_NOCOLOR": "1"},
    )
    assert (done.returncode != 0) is bool(message), done.stdout + done.stderr
    assert message.format(share) in " ".join(done.stdout.split()), done.stdout
