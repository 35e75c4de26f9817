# Copyright (c) 2026, mirrorfleet contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0
"""What the programs that systemd runs on a host have in common: they speak to the journal, and leave files for others to read."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import Iterable, Mapping


def say(line: str) -> None:
    """To the journal, by way of systemd, which reads a priority at the beginning of a line: <3> to <5>, see sd-daemon(3)."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def replace(path: str, text: str, mode: int = 0o600, durable: bool = False) -> None:
    """Make ``text`` the file, whose readers see the old one or the new one. durable: a power cut does not lose it. Raises OSError.

    A name with .new at its end is what a run that was killed may leave.
    """
    new = f"{path}.new"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(new)
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        # Whatever the umask.
        os.fchmod(descriptor, mode)
        file.write(text)
        if durable:
            file.flush()
            os.fsync(descriptor)
    os.rename(new, path)


def labels(**values: str) -> str:
    """The labels of a metric's value. No name of this collection has a character that needs quoting."""
    return "{" + ",".join(f'{key}="{value}"' for key, value in values.items()) + "}"


def exposition(prefix: str, metrics: Iterable[tuple[str, str, str, Mapping[str, object]]]) -> str:
    """Prometheus' text format. metrics: name, kind, meaning, and the values by their `labels`; prefix: what all names begin with."""
    text = ""
    for name, kind, meaning, values in metrics:
        text += f"# HELP {prefix}_{name} {meaning}\n# TYPE {prefix}_{name} {kind}\n"
        text += "".join(f"{prefix}_{name}{where} {value}\n" for where, value in values.items())
    return text
