# Copyright (c) 2026, mirrorfleet contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0
"""The fleet to copy: it parses, it is refused as long as its secrets are the example's, and HAProxy accepts what comes of it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from ansible_collections.mirrorfleet.registry.plugins.module_utils import fleet
from ansible_collections.mirrorfleet.registry.tests.unit.conftest import ansible

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "inventories/example"
SECRETS = yaml.safe_load((EXAMPLE / "group_vars/all/vault.yml").read_text())


def play(directory: Path, plays: list[dict[str, Any]], *arguments: str) -> subprocess.CompletedProcess[str]:
    (directory / "play.yml").write_text(json.dumps(plays))
    return ansible("ansible-playbook", "--inventory", "inventory", *arguments, "play.yml", directory=directory)


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """A directory with the example as `inventory`."""
    shutil.copytree(EXAMPLE, tmp_path / "inventory")
    return tmp_path


def fill_in(directory: Path) -> tuple[str, str]:
    """Do what the vault's comment says; the arguments that open it."""
    vault = directory / "inventory/group_vars/all/vault.yml"
    vault.write_text(vault.read_text().replace("CHANGE-ME", "wander3r-in-the-fog"))
    (directory / "password").write_text("of the vault")
    done = ansible("ansible-vault", "encrypt", "--vault-password-file", "password", str(vault), directory=directory)
    assert done.returncode == 0, done.stderr
    return "--vault-password-file", "password"


CHECK = [{"hosts": "all", "gather_facts": False, "tasks": [{"mirrorfleet.registry.fleet_check": {}}]}]


def test_six_data_centers_stand_in_it(copied: Path) -> None:
    done = ansible("ansible-inventory", "--inventory", "inventory", "--list", directory=copied)
    assert done.returncode == 0, done.stderr
    inventory = json.loads(done.stdout)
    centers = fleet.data_centers({name: group.get("hosts", []) for name, group in inventory.items()})
    assert sorted(centers) == ["dublin", "frankfurt", "saopaulo", "singapore", "virginia", "zagreb"]
    assert [len(center["mirrors"]) for _name, center in sorted(centers.items())] == [1, 2, 1, 1, 1, 2]
    # A file in group_vars or host_vars that no group or host bears the name of would never be read.
    assert {path.stem if path.is_file() else path.name for path in (EXAMPLE / "group_vars").iterdir()} <= {*inventory, "all"}
    assert {path.stem for path in (EXAMPLE / "host_vars").iterdir()} <= set(inventory["_meta"]["hostvars"])


def test_it_is_refused_as_it_is(copied: Path) -> None:
    done = play(copied, CHECK)
    assert done.returncode != 0
    for upstream in ("central", "dockerhub"):
        problem = f"group all: mirror_upstreams: upstream '{upstream}': password: is still the example's CHANGE-ME. Write the real one."
        assert problem in done.stdout + done.stderr


def test_it_passes_when_its_secrets_are_filled_in(copied: Path) -> None:
    done = play(copied, CHECK, *fill_in(copied))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "WARNING" not in done.stdout + done.stderr


def test_its_vault_needs_the_password(copied: Path) -> None:
    fill_in(copied)
    done = play(copied, CHECK)
    assert done.returncode != 0
    assert "no vault secrets found" in done.stdout + done.stderr


def test_every_secret_is_used(copied: Path) -> None:
    text = (EXAMPLE / "group_vars/all/main.yml").read_text()
    assert sorted(SECRETS) == sorted(set(re.findall(r"vault_\w+", text)))


def test_the_archive_holds_the_images_of_the_roles() -> None:
    wanted = set()
    for path in ROOT.glob("roles/*/defaults/main.yml"):
        wanted.update(value for name, value in yaml.safe_load(path.read_text()).items() if name.endswith("_image") and value)
    text = (EXAMPLE / "group_vars/dc_singapore.yml").read_text()
    assert set(re.findall(r"docker pull (\S+)", text)) == wanted
    saved = re.search(r"docker save --output \S+ (.*)", text)
    assert saved and {f"docker.io/library/{image}" for image in saved[1].split()} == wanted


def test_haproxy_accepts_the_configuration_of_every_mirror_host(copied: Path) -> None:
    (copied / "templates").symlink_to(ROOT / "roles/haproxy_front/templates")
    done = play(copied, [{
        "hosts": "mirrors",
        "gather_facts": False,
        "connection": "local",
        # For its defaults, which must stay weaker than the inventory.
        "roles": [{"role": "mirrorfleet.registry.haproxy_front", "when": False}],
        "tasks": [{
            "ansible.builtin.copy": {
                "content": "{{ lookup('ansible.builtin.template', 'files.yml.j2') }}", "dest": "{{ playbook_dir }}/{{ inventory_hostname }}.yml",
                "mode": "0600",
            },
        }],
    }], *fill_in(copied), "--extra-vars", json.dumps({"ansible_become": False, "ansible_python_interpreter": sys.executable}))
    assert done.returncode == 0, done.stdout + done.stderr
    rendered = sorted(copied.glob("mirror*.yml"))
    assert len(rendered) == 8
    for path in rendered:
        directory = copied / path.stem
        directory.mkdir()
        for each in yaml.safe_load(path.read_text()):
            if each["path"].startswith("/etc/mirrorfleet/front/"):
                (directory / Path(each["path"]).name).write_text(each["content"])
        configuration = (directory / "haproxy.cfg").read_text()
        site = "artifactory-us" if path.stem.endswith(("virginia.example.com", "saopaulo.example.com")) else "artifactory"
        assert f"{site}.example.com:443" in configuration
        haproxy = shutil.which("haproxy", path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
        if haproxy is None:
            pytest.fail("haproxy is missing; this test runs a real one: apt-get install haproxy")
        checked = subprocess.run([haproxy, "-c", "-f", str(directory / "haproxy.cfg")], capture_output=True, text=True, check=False)
        assert checked.returncode == 0, checked.stdout + checked.stderr
