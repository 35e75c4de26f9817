# Copyright (c) 2026, mirrorfleet contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0
"""What a role says of its variables is what it does with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

ROLES = Path(__file__).resolve().parents[2] / "roles"
roles = pytest.mark.parametrize("role", sorted(path.name for path in ROLES.iterdir()))


def options_of(role: str) -> dict[str, dict[str, Any]]:
    specs = yaml.safe_load((ROLES / role / "meta/argument_specs.yml").read_text())["argument_specs"]
    return {name: option for entry_point in specs.values() for name, option in entry_point["options"].items()}


@roles
def test_defaults_and_specification_agree(role: str) -> None:
    options = options_of(role)
    defaults = yaml.safe_load((ROLES / role / "defaults/main.yml").read_text())
    assert {name: option["default"] for name, option in options.items() if not option.get("required")} == defaults


@roles
def test_every_variable_is_the_role_s_and_described(role: str) -> None:
    for name, option in options_of(role).items():
        assert name.startswith(f"{role}_"), name
        assert option["description"], name
        assert option["type"], name
        assert not (option.get("required") and "default" in option), name
        # antsibull-docs takes a default that is a template for a list of one word, which is no dictionary.
        assert option["type"] != "list" or "elements" in option or "{{" in option["default"], name


@roles
def test_internal_variables_begin_with_underscores(role: str) -> None:
    path = ROLES / role / "vars/main.yml"
    names = yaml.safe_load(path.read_text()) if path.exists() else {}
    assert [name for name in names if not name.startswith(f"__{role}_")] == []
