# Copyright (c) 2026, mirrorfleet contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0
"""Data centers whose mirror hosts ask those of a hub data center before they ask the upstream."""

from __future__ import annotations

from typing import Mapping

from ansible_collections.mirrorfleet.registry.plugins.module_utils import upstreams

# data center -> the variables of its first mirror host, where the inventory sets them
Variables = Mapping[str, Mapping[str, object]]
# What must be known of every data center, also of those that a run leaves alone.
NAMES = ("mirror_parent", "mirror_upstreams", "mirror_edge_htpasswd", "mirror_username", "mirror_password")


def levels(data_centers: Variables) -> dict[str, int]:
    """How many hubs are above each data center. A hub that is not there, or a circle, ends the count."""
    return {name: len(_above(name, data_centers)) for name in data_centers}


def problems(data_centers: Variables, checked: set[str]) -> list[str]:
    """What is wrong with the hubs of the data centers in checked."""
    found = []
    for name in sorted(checked):
        value = data_centers[name].get("mirror_parent")
        if value is None:
            continue
        said = f"group dc_{name}: mirror_parent: {upstreams.shown(value)}: "
        if isinstance(value, upstreams.Missing):
            found.append(f"group dc_{name}: mirror_parent: has no value ({value.reason}). Define it.")
            continue
        parent = _parent(name, data_centers)
        if parent is None:
            others = ["dc_" + each for each in sorted(data_centers) if each != name]
            meant = upstreams.near_miss(str(value).removeprefix("dc_"), (each.removeprefix("dc_") for each in others))
            if value == "dc_" + name:
                found.append(said + "is this data center itself. Write another one, or leave it out where the upstreams are asked.")
            elif meant:
                found.append(said + f"is no data center with a mirror host. Write dc_{meant}.")
            else:
                found.append(said + f"is no data center with a mirror host. Write one of {', '.join(others)}, or leave it out.")
            continue
        chain = [name, *_above(name, data_centers)]
        last = _parent(chain[-1], data_centers)
        if last is not None:
            circle = " asks ".join("dc_" + each for each in [*chain, last])
            found.append(said + f"there is a circle: {circle}. Leave mirror_parent out where the upstreams are to be asked.")
            continue
        found.extend(f"group dc_{name}: {problem}" for problem in _disagreements(parent, data_centers[name], data_centers[parent]))
    return found


def _parent(name: str, data_centers: Variables) -> str | None:
    """The hub of a data center, if there is such a one."""
    value = data_centers[name].get("mirror_parent")
    parent = value[len("dc_"):] if isinstance(value, str) and value.startswith("dc_") else None
    return parent if parent in data_centers and parent != name else None


def _above(name: str, data_centers: Variables) -> list[str]:
    """The hub of a data center, the hub's own hub, and so on, none of them twice."""
    chain: list[str] = []
    parent = _parent(name, data_centers)
    while parent is not None and parent != name and parent not in chain:
        chain.append(parent)
        parent = _parent(parent, data_centers)
    return chain


def _disagreements(parent: str, ours: Mapping[str, object], theirs: Mapping[str, object]) -> list[str]:
    """Where the mirror hosts of a data center would ask for what its hub does not offer."""
    found = []
    here, there = _ports(ours.get("mirror_upstreams")), _ports(theirs.get("mirror_upstreams"))
    if here and there and not here.keys() & there.keys():
        found.append(f"mirror_parent: 'dc_{parent}': has none of the upstreams {', '.join(sorted(here))}. Write them there too, or leave it out.")
    for name in sorted(here.keys() & there.keys()):
        if here[name] != there[name]:
            found.append(f"mirror_upstreams: upstream {name!r}: port: {here[name]}: is {there[name]} in its hub dc_{parent}. Write the same port.")
    if theirs.get("mirror_edge_htpasswd"):
        for name in ("mirror_username", "mirror_password"):
            one, two = ours.get(name), theirs.get(name)
            if not isinstance(two, upstreams.Missing) and one != two:
                found.append(f"{name}: {'is not that of' if one else 'is missing, and needed at'} the hub dc_{parent}, which asks for a login. Write the same.")
    return found


def _ports(value: object) -> dict[str, object]:
    """The upstreams' ports by name, as far as they can be read."""
    items = value if isinstance(value, (list, tuple)) else ()
    return {str(item["name"]): item["port"] for item in items if isinstance(item, dict) and "name" in item and "port" in item}
