# Copyright (c) 2026, mirrorfleet contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0
"""The one exception family of the collection."""

from __future__ import annotations


class RegistryFleetError(Exception):
    """Something the operator can mend. The text names the thing, the value and the remedy."""


def at_least(least: int, **options: float | None) -> None:
    """Refuse a number that is less. Raises RegistryFleetError that names the option."""
    for name, value in options.items():
        if value is not None and value < least:
            raise RegistryFleetError(f"{name}: {value:g}: write a number from {least}.")
