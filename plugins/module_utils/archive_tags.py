# Copyright (c) 2026, mirrorfleet contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0
"""Patterns of tags."""

from __future__ import annotations

import fnmatch
import re
from typing import Iterable

from ansible_collections.mirrorfleet.registry.plugins.module_utils.image_reference import is_tag
from ansible_collections.mirrorfleet.registry.plugins.module_utils.promotion import is_reserved


def is_pattern(tag: str) -> bool:
    """Whether it stands for any number of tags."""
    return not is_tag(tag)


def fitting(tags: Iterable[str], pattern: str, most: int) -> tuple[list[str], int]:
    """The tags that a pattern is about, the highest version first, and how many there are beyond the most that are wanted.

    Neither signatures and their like, nor what is kept as history.
    """
    found = sorted((tag for tag in tags if fnmatch.fnmatchcase(tag, pattern) and not is_reserved(tag)), key=_version, reverse=True)
    return found[:most], max(0, len(found) - most)


def _version(tag: str) -> list[tuple[int, str]]:
    """1.10 is higher than 1.9. Text and numbers take turns, so that two of these can always be compared."""
    return [(int(part), "") if part.isdigit() else (0, part) for part in re.split(r"([0-9]+)", tag)]
