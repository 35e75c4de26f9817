# Copyright (c) 2026, mirrorfleet contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import json
import os
import shutil
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from ansible_collections.mirrorfleet.registry.plugins.modules import registry_restore
from ansible_collections.mirrorfleet.registry.tests.unit.conftest import Registry, RunModule
from ansible_collections.mirrorfleet.registry.tests.unit.plugins.module_utils.test_registry_backup import (
    SECRETS,
    check_whole,
    done,
    files,
    image,
    settings_for,
)


@pytest.fixture
def backed_up(registry: Registry, tmp_path: Path) -> dict[str, Any]:
    """The options of the module for a registry that has a backup, and an empty store to restore it into."""
    registry.push("svc/app", "1", image())
    registry.push("svc/web", "1", image())
    done(settings_for(tmp_path, registry.root))
    other = settings_for(tmp_path, tmp_path / "other", "other")
    (tmp_path / "prod.json").write_text(json.dumps(asdict(other)))
    (tmp_path / "prod.secret").write_text(json.dumps(asdict(SECRETS)))
    return {"name": "prod", "directory": str(tmp_path)}


def test_check_then_restore_then_again(backed_up: dict[str, Any], registry: Registry, tmp_path: Path, run_module: RunModule) -> None:
    planned = run_module(registry_restore.main, **backed_up, _ansible_check_mode=True, _ansible_diff=True)
    assert files(tmp_path / "other") == {}
    answered = run_module(registry_restore.main, **backed_up, _ansible_diff=True)
    for each in (planned, answered):
        assert each["changed"] is True and each["diff"] == {"before": "", "after": "svc/app:1\nsvc/web:1\n"}
        assert (each["repositories"], each["images"], each["blobs"], each["owner"]) == (2, 2, 6, "registry1/prod")
    assert (planned["verified"], answered["verified"]) == (0, 6)
    assert files(tmp_path / "other") == files(registry.root)
    again = run_module(registry_restore.main, **backed_up)
    assert (again["changed"], again["blobs"], again["links"], again["verified"]) == (False, 0, 0, 6)


def test_what_is_returned_is_what_is_documented(backed_up: dict[str, Any], run_module: RunModule) -> None:
    answered = run_module(registry_restore.main, **backed_up, tag="svc/app:1", snapshot="latest")
    documented = yaml.safe_load(registry_restore.RETURN)
    assert set(documented) == set(answered) - {"changed", "diff", "invocation"}
    kinds = {"str": str, "int": int, "list": list}
    for name, value in answered.items():
        if name in documented:
            assert isinstance(value, kinds[documented[name]["type"]]), name


@pytest.mark.parametrize(("options", "said"), [
    ({"name": "pord"}, "pord.json, the settings of the backup, can't be read: No such file or directory. Run site.yml."),
    ({"tag": "svc/app"}, "restore_tag: 'svc/app' is no tag of a repository."),
    ({"repository": "svc/none"}, "has no repository svc/none."),
])
def test_bad_input_changes_nothing(backed_up: dict[str, Any], tmp_path: Path, run_module: RunModule, options: dict[str, Any], said: str) -> None:
    answered = run_module(registry_restore.main, **{**backed_up, **options})
    assert answered["failed"] and said in answered["msg"]
    assert "of the test" not in json.dumps(answered)
    assert os.listdir(tmp_path / "other") == []


def test_root_acts_as_the_owner(registry: Registry, run_module: RunModule) -> None:
    """In the store as its owner, at the target as the backup's user; neither can read what is the other's."""
    if os.geteuid() != 0:
        pytest.skip("only root can be somebody else")
    registry.push("svc/app", "1", image())
    with tempfile.TemporaryDirectory(prefix="mirrorfleet-") as directory:
        base = Path(directory)
        base.chmod(0o755)
        settings = settings_for(base, base / "store", user="daemon")
        settings_for(base, base / "store")
        shutil.copytree(registry.root, base / "pushed")
        Path(settings.target).mkdir()
        done(replace(settings, storage=str(base / "pushed"), user=""))
        for path in (Path(settings.target), Path(settings.state), Path(settings.cache)):
            for each in (path, *path.rglob("*")):
                shutil.chown(each, "daemon", "daemon")
            path.chmod(0o700)
        for path in (base / "own", base / "own/registry1"):
            path.chmod(0o755)
        os.chown(base / "store", 65534, 65534)
        (base / "prod.json").write_text(json.dumps(asdict(settings)))
        (base / "prod.secret").write_text(json.dumps(asdict(SECRETS)))
        answered = run_module(registry_restore.main, name="prod", directory=directory)
        assert answered.get("blobs") == 3, answered
        assert check_whole(base / "store") == 1 and os.geteuid() == 0
        assert {path.stat().st_uid for path in (base / "store").rglob("*")} == {65534}
        # The group may read: the backup is in it.
        assert {oct(path.stat().st_mode & 0o777) for path in (base / "store/docker").rglob("*")} == {"0o770", "0o660"}
        assert Path(settings.state, "state.json").stat().st_uid == Path(settings.target, "config").stat().st_uid
