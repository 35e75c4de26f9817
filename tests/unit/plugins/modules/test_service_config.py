# Copyright (c) 2026, mirrorfleet contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0
"""The whole module: its arguments, its answer, and what it keeps to itself."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Iterator

import pytest
from ansible.module_utils.testing import patch_module_args

from ansible_collections.mirrorfleet.registry.plugins.modules import service_config

# The record's name is this process's, so that the record of a real service is not met.
NAME = f"test-{os.getpid()}"


def run(capsys: pytest.CaptureFixture[str], check: bool = False, **arguments: Any) -> tuple[dict[str, Any], str]:
    """The module's answer, and its text: all that Ansible can show of a module, at its most talkative, comes from there."""
    with patch_module_args({"_ansible_check_mode": check, "_ansible_diff": True, "name": NAME, **arguments}), pytest.raises(SystemExit):
        service_config.main()
    text = capsys.readouterr().out
    return json.loads(text), text


@pytest.fixture
def etc(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[Path]:
    yield tmp_path / "etc"
    run(capsys, state="absent")


def test_a_service_comes_and_goes(etc: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wanted = {
        "requires": {"packages": ["base-files"], "users": ["root"]},
        "directories": [{"path": str(etc), "mode": "0711"}],
        "files": [
            {"path": str(etc / "open"), "content": "open\nto all\n"},
            {"path": str(etc / "secret"), "content": "Hunter-2\n", "mode": "0600", "secret": True},
        ],
        "validate": [{"directory": str(etc), "command": ["grep", "-q", "Hunter-2", "{directory}/secret"]}],
        "secrets": ["Hunter-2"],
    }
    expected, _text = run(capsys, **wanted, check=True)
    assert expected["changed"] and not etc.exists()
    done, _text = run(capsys, **wanted)
    assert done["files"] == expected["files"] == [str(etc / "open"), str(etc / "secret")]
    assert (etc / "secret").stat().st_mode & 0o777 == 0o600 and etc.stat().st_mode & 0o777 == 0o711
    assert {"missing", "installed", "directories", "removed", "kept", "actions", "daemon_reload"} <= set(done)

    again, _text = run(capsys, **wanted)
    assert not again["changed"] and not again["diff"]
    wanted["files"][1]["content"] = "Hunter-2 and Hunter-3\n"
    changed, text = run(capsys, **wanted, check=True)
    assert changed["files"] == [str(etc / "secret")]
    assert "Hunter" not in text and "differs" in text

    gone, text = run(capsys, state="absent")
    assert gone["changed"] and not etc.exists()
    assert "Hunter" not in text
    assert not run(capsys, state="absent")[0]["changed"]


def test_a_refused_configuration_fails_without_its_secret(etc: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answer, text = run(
        capsys,
        files=[{"path": str(etc / "secret"), "content": "Hunter-2\n", "secret": True}],
        validate=[{"directory": str(etc), "command": ["sh", "-c", "cat {directory}/secret; echo line 1 is bad; false"]}],
    )
    assert answer["failed"] and "line 1 is bad" in answer["msg"] and not etc.exists()
    assert "Hunter" not in text


def test_a_wrong_argument_does_not_show_the_secret_beside_it(etc: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answer, text = run(capsys, files=[{"path": str(etc / "secret"), "content": "Hunter-2\n", "secret": True, "needs": "luck"}])
    assert answer["failed"] and "needs" in answer["msg"]
    assert "Hunter" not in text


def test_an_error_of_the_file_system_names_the_file(capsys: pytest.CaptureFixture[str]) -> None:
    answer, _text = run(capsys, files=[{"path": "/proc/mirrorfleet/x", "content": "x"}])
    assert answer["failed"] and "/proc/mirrorfleet" in answer["msg"]
    run(capsys, state="absent")
