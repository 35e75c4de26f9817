# Copyright (c) 2026, mirrorfleet contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0
"""Options that several modules have, as plugins/doc_fragments documents them."""

from __future__ import annotations

from typing import Any

# Whom to be and whom to trust. `address` is where to connect instead of the URL's host.
REGISTRY: dict[str, dict[str, Any]] = {
    "username": {"type": "str"},
    "password": {"type": "str", "no_log": True},
    "ca_certificate": {"type": "str"},
    "validate_certs": {"type": "bool", "default": True},
}
ADDRESS: dict[str, dict[str, Any]] = {"address": {"type": "str"}}
LOGIN = ("username", "password")
# How long to wait, in seconds, and how often to ask again.
PATIENCE: dict[str, dict[str, Any]] = {
    "timeout": {"type": "float", "default": 60},
    "connect_timeout": {"type": "float", "default": 5},
    "retries": {"type": "int", "default": 3},
}


def caches(**more: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The caches of a mirror host; ``more`` is what else is said of each."""
    return {
        "caches": {
            "type": "list", "elements": "dict", "options": {"name": {"type": "str", "required": True}, "path": {"type": "path", "required": True}, **more},
        },
    }


def given(options: dict[str, Any]) -> dict[str, Any]:
    """The options without those that have no value, so that the defaults of the library stand."""
    return {name: value for name, value in options.items() if value is not None}
