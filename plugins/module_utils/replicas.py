# Copyright (c) 2026, mirrorfleet contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0
"""Which host is what for a registry that several hosts have: worked out of the inventory, and held against what the hosts were last.

Plain data in, plain data and sentences out. docs/replicas.md tells the whole of it.
"""

from __future__ import annotations

from typing import Any, Iterable, Mapping, Sequence, TypedDict

from ansible_collections.mirrorfleet.registry.plugins.module_utils.errors import RegistryFleetError
from ansible_collections.mirrorfleet.registry.plugins.module_utils.registries import SCOPES
from ansible_collections.mirrorfleet.registry.plugins.module_utils.upstreams import near_miss, shown

# DRAINED: a primary that takes no more, while failover.yml makes another host the primary.
PRIMARY, REPLICA, DRAINED = "primary", "replica", "drained"


class Site(TypedDict):
    """What a host is for a registry. addresses: the name or address of each host that has the registry, in the inventory's order."""

    role: str
    here: str
    primary: str
    port: int
    hosts: list[str]
    addresses: dict[str, str]


class State(TypedDict):
    """What a host was told last. The epoch grows by one with each failover, and is 0 where none is known yet."""

    role: str
    primary: str
    epoch: int


def sites(primaries: object, here: str, hosts: Iterable[str], variables: Mapping[str, Any], drained: Sequence[str] = ()) -> dict[str, Site]:
    """The registries of the host `here` that have replicas, by name.

    primaries: registry_primaries; hosts: those of the group registries; variables: host -> its variables. Raises RegistryFleetError with all that is wrong.
    """
    if not isinstance(primaries, Mapping):
        raise RegistryFleetError(f"registry_primaries: is {shown(primaries)}. Write a dictionary, like {{prod: {here}}}.")
    everywhere = {host: _registries(variables[host]) for host in hosts if host in variables}
    problems: list[str] = []
    found: dict[str, Site] = {}
    names = {name for each in everywhere.values() for name in each}
    for name, primary in primaries.items():
        havers = {host: each[name] for host, each in everywhere.items() if name in each}
        wrong = _problem(str(name), primary, havers, names)
        if wrong:
            problems.append(f"registry_primaries: {wrong}")
        elif here in havers and len(havers) > 1:
            role = REPLICA if here != primary else DRAINED if name in drained else PRIMARY
            addresses = {host: str(variables[host].get("registry_address") or host) for host in havers}
            found[name] = Site(role=role, here=here, primary=primary, port=int(havers[here]["port"]), hosts=list(addresses), addresses=addresses)
    if problems:
        raise RegistryFleetError("\n".join(problems))
    return found


def _registries(variables: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    listed = variables.get("registry_here") or []
    return {str(each["name"]): each for each in listed if isinstance(each, Mapping) and each.get("name")}


def _problem(name: str, primary: object, havers: Mapping[str, Mapping[str, Any]], names: Iterable[str]) -> str:
    if not havers:
        meant = near_miss(name, sorted(names))
        return f"{shown(name)}: no host has such a registry in its registry_here." + (f" Write {meant}." if meant else " Take it out.")
    if primary not in havers:
        return f"{name}: {shown(primary)}: has no registry {name} in its registry_here. Write one of {', '.join(havers)}."
    scopes = {str(each.get("scope")) for each in havers.values()}
    if len(scopes) > 1:
        return f"{name}: its hosts do not agree on the scope ({', '.join(sorted(scopes))}). A replica has the scope of its primary."
    rules = SCOPES.get(scopes.pop())
    if rules is not None and len(havers) > 1 and not rules.guarded:
        return f"{name}: only a registry of the scope prod has replicas: a replica keeps all it has seen, and takes what somebody has logged in to write."
    ports = {str(each.get("port")) for each in havers.values()}
    if len(ports) > 1:
        return f"{name}: its hosts have it at different ports ({', '.join(sorted(ports))}). One name for all takes one port."
    return ""


def fresh(role: str, primary: str) -> State:
    """The state of a host that had none."""
    return State(role=role, primary=primary, epoch=1 if role == PRIMARY else 0)


def latest(states: Mapping[str, State]) -> State | None:
    """What is true of a registry: what the host says that saw the last failover. A primary knows best of itself."""
    return max(states.values(), key=lambda state: (state["epoch"], state["role"] == PRIMARY), default=None)


def refusal(name: str, primary: str, states: Mapping[str, State], unknown: Sequence[str] = ()) -> str:
    """Why the inventory's primary can't be it, and what to do; empty when it can. states: of each host that has one; unknown: who can't be asked."""
    known = latest(states)
    first = [host for host, state in states.items() if state["role"] == PRIMARY and known is not None and state["epoch"] == known["epoch"]]
    if len(first) > 1:
        return (
            f"registry {name}: {' and '.join(first)} both are its primary in epoch {known['epoch'] if known else 0}. "
            f"Decide for one, and run failover.yml -e registry={name} -e to=<host> -e unannounced=true: what the other has alone is brought to it."
        )
    if known is None or not known["epoch"] or known["primary"] == primary:
        return ""
    if primary in unknown:
        return (
            f"registry {name}: registry_primaries says {primary}, which can't be asked, and {known['primary']} was the primary in epoch {known['epoch']}, "
            f"the last that is known. Nothing is changed until {primary} can be asked."
        )
    return (
        f"registry {name}: registry_primaries says {primary}, and {known['primary']} is the primary since epoch {known['epoch']}. "
        f"Write registry_primaries: {{{name}: {known['primary']}}}, or make {primary} the primary by failover.yml -e registry={name} -e to={primary}."
    )
