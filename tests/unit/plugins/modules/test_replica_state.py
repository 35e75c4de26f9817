# Copyright (c) 2026, mirrorfleet contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0
"""What a host is told, and what it refuses to be told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.mirrorfleet.registry.plugins.module_utils.replica_state import Layout
from ansible_collections.mirrorfleet.registry.plugins.modules import replica_state
from ansible_collections.mirrorfleet.registry.tests.unit.conftest import RunModule

FIRST = {"role": "primary", "primary": "a", "epoch": 1}


@pytest.fixture
def layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Layout:
    found = Layout(str(tmp_path / "states"), str(tmp_path / "replicator"), str(tmp_path / "run"))
    monkeypatch.setattr(replica_state, "Layout", lambda: found)
    return found


def tell(run_module: RunModule, **options: Any) -> dict[str, Any]:
    return run_module(replica_state.main, registry="prod", **options)


def test_a_host_that_was_told_nothing(run_module: RunModule, layout: Layout) -> None:
    said = tell(run_module)
    assert (said["changed"], said["state"], said["status"]) == (False, None, {})
    assert not Path(layout.states).exists()


def test_a_host_is_told_once(run_module: RunModule, layout: Layout) -> None:
    said = tell(run_module, role="primary", primary="a", _ansible_check_mode=True)
    assert said["changed"] and not Path(layout.states).exists() and not Path(layout.run).exists()
    said = tell(run_module, role="primary", primary="a")
    assert said["changed"] and said["state"] == FIRST == json.loads(Path(layout.state("prod")).read_text())
    assert Path(layout.confirmed("prod")).exists()
    Path(layout.confirmed("prod")).unlink()
    said = tell(run_module, role="primary", primary="a", known={"a": FIRST}, unknown=["b"])
    assert not said["changed"] and not Path(layout.confirmed("prod")).exists()
    said = tell(run_module, role="primary", primary="a", known={"a": FIRST})
    assert not said["changed"] and said["state"] == FIRST
    assert tell(run_module)["state"] == FIRST


def test_a_swap_by_hand_is_refused_and_a_failover_is_not(run_module: RunModule, layout: Layout) -> None:
    tell(run_module, role="primary", primary="a")
    said = tell(run_module, role="replica", primary="b", known={"a": FIRST})
    assert said["failed"] and "Write registry_primaries: {prod: a}" in said["msg"]
    assert tell(run_module)["state"] == FIRST
    said = tell(run_module, role="primary", primary="a", known={"a": FIRST}, takes_over=True)
    assert said["changed"] and said["state"] == {**FIRST, "epoch": 2}


def test_a_new_host_is_no_primary_while_the_old_one_can_not_be_asked(run_module: RunModule, layout: Layout) -> None:
    for check in (True, False):
        said = tell(run_module, role="primary", primary="b", unknown=["a"], _ansible_check_mode=check)
        assert said["failed"] and "a can't be asked, so one of them may be it" in said["msg"]
    assert not Path(layout.states).exists()


def test_a_state_that_can_not_be_read_is_no_state(run_module: RunModule, layout: Layout) -> None:
    Path(layout.states).mkdir()
    Path(layout.state("prod")).write_text("{")
    said = tell(run_module, role="primary", primary="a")
    assert said["failed"] and "so it is not known what this host is" in said["msg"]
