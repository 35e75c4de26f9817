# Copyright (c) 2026, mirrorfleet contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0
"""The whole module: what fails it, what only warns, and what it keeps to itself."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest
from ansible.module_utils.testing import patch_module_args

from ansible_collections.mirrorfleet.registry.plugins.module_utils.upstreams import normalise
from ansible_collections.mirrorfleet.registry.plugins.modules import host_check
from ansible_collections.mirrorfleet.registry.tests.unit.conftest import free_port

FULL_DISK = {"path": "/nowhere", "free_bytes": 2**60, "purpose": "the caches"}
NO_ADDRESS = {"address": "192.0.2.1", "port": 80, "purpose": "the edge"}


def run(capsys: pytest.CaptureFixture[str], **arguments: Any) -> tuple[dict[str, Any], str]:
    """The module's answer, and its text: all that Ansible can show of a module, at its most talkative, comes from there."""
    with patch_module_args({"_ansible_check_mode": True, **arguments}), pytest.raises(SystemExit):
        host_check.main()
    captured = capsys.readouterr()
    # Where a test before this one has loaded Ansible's controller side, a warning goes to stderr and not into the answer.
    return json.loads(captured.out), captured.out + captured.err


def test_a_good_host_is_said_to_be_one(capsys: pytest.CaptureFixture[str]) -> None:
    answer, _text = run(capsys, disk=[{"path": "/nowhere", "free_bytes": 1}], ports=[{"address": "127.0.0.1", "port": free_port()}])
    assert (answer["changed"], answer["problems"], answer["tolerated"]) == (False, [], [])
    assert answer["facts"]["architecture"] == os.uname().machine


def test_it_fails_with_everything_one_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    answer, _text = run(capsys, disk=[FULL_DISK], ports=[NO_ADDRESS])
    assert answer["failed"]
    assert answer["msg"].splitlines() == [problem["message"] for problem in answer["problems"]]
    assert [problem["kind"] for problem in answer["problems"]] == ["port", "disk"]
    told, _text = run(capsys, disk=[FULL_DISK], ports=[NO_ADDRESS], fail=False)
    assert not told.get("failed") and told["problems"] == answer["problems"]


def test_an_unreachable_upstream_fails_unless_it_is_allowed_to(capsys: pytest.CaptureFixture[str]) -> None:
    upstreams = normalise([
        {"name": "central", "url": f"http://127.0.0.1:{free_port()}", "port": 5000, "canary": "small:1", "username": "reader", "password": "Hunter-2"}
    ])
    answer, text = run(capsys, upstreams=upstreams)
    assert answer["failed"] and "Upstream central can't be reached" in answer["msg"] and "mirror_allow_unreachable_upstreams: true" in answer["msg"]
    assert [(each["kind"], each["subject"]) for each in answer["problems"]] == [("unreachable", "central")]
    assert "Hunter" not in text and upstreams[0]["basic_authorization"] not in text
    allowed, text = run(capsys, upstreams=upstreams, allow_unreachable=True)
    assert "Upstream central can't be reached" in text.replace("\n", " ")
    assert not allowed.get("failed") and allowed["tolerated"] == answer["problems"] and not allowed["problems"]
