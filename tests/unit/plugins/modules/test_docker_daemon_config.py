# Copyright (c) 2026, mirrorfleet contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0
"""The module as Ansible runs it, on files of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from ansible_collections.mirrorfleet.registry.plugins.modules import docker_daemon_config


def ansible(tmp_path: Path, *more: str, **arguments: Any) -> Any:
    arguments = {"path": str(tmp_path / "daemon.json"), "certs_dir": str(tmp_path / "certs.d"), "record": str(tmp_path / "record.json"), **arguments}
    answer = subprocess.run(
        [
            str(Path(sys.executable).with_name("ansible")), "localhost", "--connection", "local",
            "--extra-vars", f"ansible_python_interpreter={sys.executable}",
            "--module-name", "mirrorfleet.registry.docker_daemon_config", "--args", json.dumps(arguments), *more,
        ],
        env={**os.environ, "ANSIBLE_LOAD_CALLBACK_PLUGINS": "1", "ANSIBLE_STDOUT_CALLBACK": "ansible.builtin.oneline", "ANSIBLE_NOCOLOR": "1"},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False, text=True,
    )
    return answer.stdout


def result(answer: str) -> Any:
    return json.loads(answer[answer.index("{"):answer.rindex("}") + 1])


def test_documented_results_are_the_results(tmp_path: Path) -> None:
    documented = set(yaml.safe_load(docker_daemon_config.RETURN))
    given = set(result(ansible(tmp_path, options={"shutdown-timeout": 20})))
    assert documented == given - {"changed", "diff", "invocation", "ansible_facts"}


def test_a_mistake_is_a_message_and_no_traceback(tmp_path: Path) -> None:
    (tmp_path / "daemon.json").write_text('{"debug": true,}')
    answer = ansible(tmp_path, options={"shutdown-timeout": 20})
    assert "FAILED" in answer
    said = "daemon.json is not valid JSON at line 1, column 16: a comma before the closing bracket. Mend it there; the file is untouched."
    assert result(answer)["msg"].endswith(said)


def test_no_secret_is_shown(tmp_path: Path) -> None:
    options = {"log-opts": {"splunk-token": "hunter2-token"}, "proxies": {"http-proxy": "http://me:hunter3@proxy.example.com:3128"}}
    answer = ansible(tmp_path, "--diff", "-vvv", options=options)
    assert json.loads((tmp_path / "daemon.json").read_text()) == options
    assert "splunk-token" in answer
    assert "hunter2" not in answer
    assert "hunter3" not in answer
