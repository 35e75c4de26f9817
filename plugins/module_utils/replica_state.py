# Copyright (c) 2026, mirrorfleet contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0
"""What a host was told that it is for a registry with replicas, in a file that outlives everything but the host."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Mapping

from ansible_collections.mirrorfleet.registry.plugins.module_utils import files
from ansible_collections.mirrorfleet.registry.plugins.module_utils.errors import RegistryFleetError
from ansible_collections.mirrorfleet.registry.plugins.module_utils.replicas import PRIMARY, REPLICA, State, latest, refusal


@dataclass(frozen=True)
class Layout:
    """states: one file a registry; replicator: what its replicator knows; run: gone after a boot."""

    states: str = "/var/lib/mirrorfleet/registry-replicas"
    replicator: str = "/var/lib/mirrorfleet-replicator"
    run: str = "/run/mirrorfleet-registry"

    def state(self, registry: str) -> str:
        return f"{self.states}/{registry}.json"

    def confirmed(self, registry: str) -> str:
        return f"{self.run}/{registry}-confirmed"


def read(layout: Layout, registry: str) -> State | None:
    """What the host was told last. Raises RegistryFleetError when that can't be read."""
    path = layout.state(registry)
    try:
        with open(path, encoding="utf-8") as file:
            said = json.load(file)
        return State(role=str(said["role"]), primary=str(said["primary"]), epoch=int(said["epoch"]))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RegistryFleetError(
            f"{path} can't be read ({error}), so it is not known what this host is. Look at the other hosts of the registry, and write it anew or remove it."
        ) from None


def status(layout: Layout, registry: str) -> dict[str, Any]:
    """What the replicator wrote down last; nothing where there is none."""
    try:
        with open(f"{layout.replicator}/{registry}/status.json", encoding="utf-8") as file:
            said = json.load(file)
    except (OSError, ValueError):
        return {}
    return said if isinstance(said, dict) else {}


def wanted(
    registry: str, role: str, primary: str, known: Mapping[str, State], unknown: list[str], takes_over: bool = False
) -> State:
    """What a host is to be told. known: what each host was told last, this one too. Raises RegistryFleetError if that contradicts it."""
    newest = latest(known)
    if not takes_over:
        why = refusal(registry, primary, known, unknown)
        if why:
            raise RegistryFleetError(why)
        # A host that can't be asked may be the primary, of this very epoch.
        if role == PRIMARY and unknown and all(state["role"] == REPLICA for state in known.values()):
            raise RegistryFleetError(
                f"registry {registry}: no host that can be asked has been its primary, and {', '.join(unknown)} can't be asked, so one of them may be it. "
                f"Run site.yml for all hosts of the registry at once; a host that is lost must go from the group registries first."
            )
    epoch = newest["epoch"] if newest else 0
    if takes_over:
        epoch += 1
    # The first primary's is the first one, and the inventory has chosen it for all of its hosts.
    return State(role=role, primary=primary, epoch=max(epoch, 1))


def write(layout: Layout, registry: str, state: State) -> None:
    """Tell the host, at once and for good. Raises OSError."""
    os.makedirs(layout.states, mode=0o755, exist_ok=True)
    files.write(layout.state(registry), json.dumps(state).encode(), os.geteuid(), os.getegid())


def confirm(layout: Layout, registry: str) -> None:
    """Let the primary begin without an answer of another host until the next boot: what all of them were told is known by now."""
    # The units make it theirs.
    os.makedirs(layout.run, mode=0o755, exist_ok=True)
    with suppress(FileExistsError):
        # The replicator takes it away when it hears of another primary, so the directory is its own, and so must the file be.
        owner = os.stat(layout.run)
        descriptor = os.open(layout.confirmed(registry), os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        os.fchown(descriptor, owner.st_uid, owner.st_gid)
        os.close(descriptor)
