# Copyright (c) 2026, mirrorfleet contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0
"""What the role registry puts down for backups, and that it runs with nothing else."""

from __future__ import annotations

import json
import os
import pwd
import subprocess
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.mirrorfleet.registry.tests.unit.conftest import Registry, ansible, image_of, layer_of
from ansible_collections.mirrorfleet.registry.tests.unit.roles.conftest import ROLES, Render
from ansible_collections.mirrorfleet.registry.tests.unit.roles.test_registry import put_down, variables

SECRETS = ("wander3r'$\"\\", "AKIAexample", "stardu5t")


def wanted(base: Path, storage: Path, target: str, **more: Any) -> dict[str, Any]:
    """The variables of a host with one registry of the scope prod and a sandbox."""
    found = variables(base, {"sandbox": 5010, "prod": 5012}, **more)
    found["registry_here"][1].update(storage=str(storage), backup_target=target)
    return {
        **found, "registry_backup_password": SECRETS[0], "registry_backup_metrics": str(base / "metrics"), "__registry_backup_config": str(base / "backup"),
        "__registry_backup_state": str(base / "state"), "__registry_backup_cache": str(base / "cache"), "__registry_backup_lib": str(base / "lib"), **more,
    }


def test_it_runs_with_nothing_but_what_was_put_down(render: Render, registry: Registry, tmp_path: Path) -> None:
    registry.push("svc/app", "1", image_of(layer_of({"a": b"a" * 5000})))
    given = wanted(tmp_path, registry.root, str(tmp_path / "target"), __registry_backup_user=pwd.getpwuid(os.geteuid()).pw_name)
    (files,) = render("registry", given, template="backup_files.yml.j2")
    put_down(tmp_path, files)
    for name in ("state/prod", "cache/prod", "metrics"):
        (tmp_path / name).mkdir(parents=True)
    unit = (tmp_path / "units/mirrorfleet-registry-backup@.service").read_text()
    command = next(line for line in unit.splitlines() if line.startswith("ExecStart=")).partition("=")[2]
    secrets = next(line for line in unit.splitlines() if line.startswith("StandardInput=")).partition("file:")[2].replace("%i", "prod")
    # As systemd does it.
    with open(secrets, "rb") as file:
        done = subprocess.run(
            command.replace("%i", "prod").split(), stdin=file, capture_output=True, text=True, check=False, cwd="/", env={"PATH": "/usr/bin:/bin"},
        )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "prod: the backup " in done.stdout and " has 1 tags of 1 repositories" in done.stdout
    assert 'mirrorfleet_backup_tags{registry="prod"} 1\n' in (tmp_path / "metrics/mirrorfleet_backup_prod.prom").read_text()
    assert json.loads((tmp_path / "state/prod/record.json").read_text())["host"] == "localhost"


def test_secrets_are_in_one_file(render: Render, tmp_path: Path) -> None:
    variables_of_it = wanted(
        tmp_path, Path("/srv/prod"), "s3:https://s3.example.com/b/prod", registry_backup_s3_access_key=SECRETS[1], registry_backup_s3_secret_key=SECRETS[2],
        registry_backup_ca_certificate="PEM",
    )
    (files,) = render("registry", variables_of_it, template="backup_files.yml.j2")
    found = {Path(each["path"]).name: each for each in files}
    assert json.loads(found["prod.secret"]["content"]) == {"password": SECRETS[0], "access_key": SECRETS[1], "secret_key": SECRETS[2]}
    assert (found["prod.secret"]["mode"], found["prod.secret"]["secret"], found["prod.secret"].get("owner", "root")) == ("0400", True, "root")
    others = [each["content"] for name, each in found.items() if name != "prod.secret"]
    assert not [content for content in others for secret in SECRETS if secret in content or json.dumps(secret)[1:-1] in content]
    assert json.loads(found["prod.json"]["content"])["ca"] == str(tmp_path / "backup/ca.pem") and found["ca.pem"]["content"] == "PEM"
    assert "sandbox.json" not in found and "ReadWritePaths" not in found["storage.conf"]["content"]


def test_without_prod_there_is_none(render: Render, tmp_path: Path) -> None:
    """Nor for images that are in object storage, which keeps them by itself."""
    in_s3 = wanted(tmp_path, tmp_path, "/srv/backup")
    in_s3["registry_here"][1] |= {"storage": {"s3": {"bucket": "b", "region": "r"}}, "backup_target": None}
    found = render("registry", variables(tmp_path, {"sandbox": 5010}), in_s3, template="backup_files.yml.j2")
    assert found == [[], []]


def test_systemd_takes_the_units(render: Render, tmp_path: Path) -> None:
    (files,) = render("registry", wanted(tmp_path, Path("/srv/prod"), "/srv/backup"), template="backup_files.yml.j2")
    put_down(tmp_path, files)
    for path in (tmp_path / "units").rglob("*.*"):
        if path.is_file():
            path.write_text(path.read_text().replace("=mirrorfleet-registry\n", "=daemon\n").replace("=mirrorfleet-registry-backup\n", "=daemon\n"))
    names = [f"mirrorfleet-registry-backup{name}" for name in ("@prod.service", "@prod.timer", "-noted@prod.service")]
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", *(f"{tmp_path}/units/{name}" for name in names)],
        capture_output=True, text=True, check=False, env={**os.environ, "SYSTEMD_UNIT_PATH": f"{tmp_path}/units:"},
    )
    assert done.returncode == 0 and "mirrorfleet" not in done.stderr, done.stderr
    conf = (tmp_path / "units/mirrorfleet-registry-backup@prod.service.d/storage.conf").read_text()
    assert "RequiresMountsFor=/srv/prod /srv/backup\n" in conf and "ReadWritePaths=/srv/backup\n" in conf


@pytest.mark.parametrize(("more", "message"), [
    ({"registry_backup_password": ""}, "registry_backup_password: is missing, and the registry prod has a backup_target."),
    ({"registry_backup_password": "CHANGE-ME"}, "registry_backup_password: is still CHANGE-ME"),
    ({"registry_backup_keep": {}}, "registry_backup_keep: {}: write how many backups are kept"),
    ({"registry_backup_keep": {"daily": 0}}, 'registry_backup_keep: {"daily": 0}: write how many'),
    ({"registry_backup_keep": {"dayly": 7}}, 'registry_backup_keep: {"dayly": 7}: write how many'),
    ({"registry_backup_keep": 7}, "registry_backup_keep: 7: write how many"),
    ({"registry_backup_check_parts": 0}, "registry_backup_check_parts: 0: write a whole number from 1."),
    ({"target": "s3:https://s3/b"}, "registry_backup_s3_access_key: is missing, and backups go to s3:https://s3/b."),
    ({"target": "s3:https://s3/b", "registry_backup_s3_access_key": "AKIA"}, "registry_backup_s3_secret_key: is missing"),
    ({"target": "/srv/prod/backup"}, "backup_target: /srv/prod/backup: is, or is within, or holds the storage of 'prod'"),
    ({"target": "/home/backup"}, "registry_here: /home/backup: is below /home, /root, /run or a directory for temporary files, which services don't see."),
    ({"registry_metrics": "/srv/metrics"}, "registry_backup_metrics: /srv/metrics: is the directory of other figures, too"),
    ({}, ""),
])
def test_values_that_can_not_be_meant_are_refused(tmp_path: Path, more: dict[str, Any], message: str) -> None:
    (tmp_path / "play.yml").write_text(json.dumps([{
        "hosts": "localhost", "gather_facts": False,
        "vars_files": [*(str(ROLES / "registry" / name / "main.yml") for name in ("defaults", "vars")), "values.json"],
        "tasks": [{"ansible.builtin.import_tasks": str(ROLES / "registry/tasks/check.yml")}],
    }]))
    (tmp_path / "values.json").write_text(json.dumps({**wanted(Path("/srv"), Path("/srv/prod"), more.get("target", "/srv/backup")), **more}))
    done = ansible("ansible-playbook", "--inventory", "localhost,", "--connection", "local", "play.yml", directory=tmp_path)
    assert (done.returncode != 0) is bool(message), done.stdout
    assert message in " ".join(done.stdout.split()).replace('\\"', '"'), done.stdout
    assert SECRETS[0] not in done.stdout
