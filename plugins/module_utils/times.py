# Copyright (c) 2026, mirrorfleet contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0
"""Times as operators write and read them: lengths like ``90s``, ``15m``, ``12h``, ``30d``, ``4w``, and moments in UTC."""

from __future__ import annotations

import re
import time

from ansible_collections.mirrorfleet.registry.plugins.module_utils.errors import RegistryFleetError

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_AGE = re.compile(r"([0-9]{1,9})([smhdw])")


def parse_age(text: str, option: str) -> int:
    """Seconds. Raises RegistryFleetError that names the option."""
    found = _AGE.fullmatch(text)
    if not found:
        raise RegistryFleetError(f"{option}: {text!r} is no length of time. Write a number and one of s, m, h, d, w, like 30d.")
    return int(found[1]) * _UNITS[found[2]]


def utc(seconds: float) -> str:
    """Seconds since 1970 as a moment."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))
