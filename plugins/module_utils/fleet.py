# Copyright (c) 2026, mirrorfleet contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0
"""What must be true of an inventory before anything is touched. Plain data in, sentences out."""

from __future__ import annotations

import ipaddress
from pathlib import PurePosixPath
from typing import Any, Iterable, Mapping, Sequence, TypedDict, Union

from ansible.module_utils.common.arg_spec import ArgumentSpecValidator

from ansible_collections.mirrorfleet.registry.plugins.module_utils import registries, upstreams

# The variables that belong to no role, in the form of an argument specification. Explained in docs/variables.md.
VARIABLES: dict[str, dict[str, Any]] = {
    "mirror_upstreams": {"type": "raw"},  # read by upstreams.py, which says more
    "mirror_runtime": {"type": "str", "choices": ["package", "container"]},
    "mirror_name": {"type": "str"},
    "mirror_address": {"type": "str"},
    "mirror_parent": {"type": "str"},
    "mirror_virtual_address": {"type": "str"},
    "mirror_images_archive": {"type": "path"},
    "mirror_ca_directory": {"type": "path"},
    "mirror_username": {"type": "str"},
    "mirror_password": {"type": "str"},
    "mirror_allow_unreachable_upstreams": {"type": "bool"},
    "mirror_min_free_bytes": {"type": "int"},
    "mirror_change_alone": {"type": "bool"},
    "mirror_serial": {"type": "raw"},
    "mirror_max_fail_percentage": {"type": "int"},
    "docker_host_serial": {"type": "raw"},
    "docker_host_max_fail_percentage": {"type": "int"},
}
# Mirror hosts and docker hosts must agree on these, or the ones look for what the others do not offer.
SAME_IN_A_DATA_CENTER = ("mirror_upstreams", "mirror_name", "mirror_parent", "mirror_virtual_address", "mirror_edge_tls", "mirror_ca_directory")
# The groups whose hosts are the fleet.
GROUPS = ("mirrors", "docker_hosts", "registries")
# A port on every mirror host that is no upstream's.
STATS_BIND = "haproxy_front_stats_bind"
# Both have a directory for each upstream in them, and a coalescer empties its own.
STORAGES = ("pull_through_cache_storage", "fetch_coalescer_storage")

# Text can be made of anything, and is not looked at: it may be a secret.
_TYPES = {
    "bool": "true or false", "int": "a whole number", "float": "a number", "bytes": "a number of bytes, like 50M", "list": "a list", "dict": "a dictionary",
}

Interface = Union[ipaddress.IPv4Interface, ipaddress.IPv6Interface]
Groups = Mapping[str, Sequence[str]]
Specs = Mapping[str, Mapping[str, Any]]
# host -> variable -> value, or Missing
Values = Mapping[str, Mapping[str, object]]


class DataCenter(TypedDict):
    """Both lists are in the inventory's order. The first mirror host fills from the WAN. `level`: how many hubs are above it."""

    mirrors: list[str]
    docker_hosts: list[str]
    level: int


class Report:
    """Problems, each with the hosts that have it, so that one that stands in group_vars is said once and names the group."""

    def __init__(self, groups: Groups, checked: Iterable[str]) -> None:
        self._checked = set(checked)
        # What an operator looks for first: where the whole fleet is checked, group all; then a data center; then any other group.
        whole = self._checked >= members(groups)
        names = sorted(groups, key=lambda name: (not (whole and name == "all"), not name.startswith("dc_"), name))
        self._groups = [(name, self._checked & set(groups[name])) for name in names]
        self._found: dict[str, list[str]] = {}

    def add(self, problem: str, host: str) -> None:
        """Note a problem of a host."""
        self._found.setdefault(problem, []).append(host)

    def lines(self) -> list[str]:
        """A line for each problem, in the order of finding."""
        return [f"{self._place(hosts)}: {problem}" for problem, hosts in self._found.items()]

    def _place(self, hosts: Sequence[str]) -> str:
        if len(hosts) == 1:
            return f"host {hosts[0]}"
        wanted = set(hosts)
        for name, group in self._groups:
            if group == wanted:
                return f"group {name}"
        return f"hosts {', '.join(hosts)}" if len(hosts) < 5 else f"hosts {', '.join(hosts[:3])} and {len(hosts) - 3} more"


def members(groups: Groups) -> set[str]:
    """The hosts of the fleet."""
    return {host for name in GROUPS for host in groups.get(name, ())}


def read_on(name: str) -> tuple[str, ...]:
    """The groups whose hosts read a variable. On others it may be set for a whole data center, and is looked at by nobody."""
    if name in VARIABLES or name in SAME_IN_A_DATA_CENTER:
        return GROUPS
    if name.startswith("registry_"):
        return ("registries",)
    return ("docker_hosts",) if name.startswith("docker_mirror_") else ("mirrors",)


def data_centers(groups: Groups, levels: Mapping[str, int] | None = None) -> dict[str, DataCenter]:
    """The data centers by name, which is that of the group without dc_. levels: as hubs.levels gives them."""
    mirrors, docker_hosts = set(groups.get("mirrors", ())), set(groups.get("docker_hosts", ()))
    return {
        name[len("dc_"):]: {
            "mirrors": [host for host in hosts if host in mirrors],
            "docker_hosts": [host for host in hosts if host in docker_hosts],
            "level": (levels or {}).get(name[len("dc_"):], 0),
        }
        for name, hosts in sorted(groups.items()) if name.startswith("dc_")
    }


def structure_problems(groups: Groups) -> list[str]:
    """What is wrong with the groups of the whole inventory."""
    problems = []
    for wanted in GROUPS:
        if wanted not in groups:
            meant = upstreams.near_miss(wanted, (name for name in groups if not name.startswith("dc_")))
            if meant:
                problems.append(f"group {meant}: is no group that anything looks for. Write {wanted}.")
    # Registries are of use without mirrors, too.
    if not groups.get("mirrors") and (groups.get("docker_hosts") or not groups.get("registries")):
        problems.append("group mirrors: has no host. Put the mirror hosts of every data center into it.")
    homes: dict[str, list[str]] = {}
    for name, data_center in data_centers(groups).items():
        for host in groups["dc_" + name]:
            homes.setdefault(host, []).append("dc_" + name)
        hosts = data_center["docker_hosts"]
        if hosts and not data_center["mirrors"]:
            shown = ", ".join(hosts[:3]) + ", …" * (len(hosts) > 3)
            problems.append(f"group dc_{name}: has docker hosts ({shown}) and no mirror host. Put one of its hosts into the group mirrors.")
    for host, names in homes.items():
        if len(names) > 1:
            problems.append(f"host {host}: is in {' and '.join(names)}. A host is in one data center: leave it in one of them.")
    for name in ("mirrors", "docker_hosts"):
        problems.extend(
            f"host {host}: is in the group {name} and in no data center. Put it into a group dc_<name>."
            for host in groups.get(name, ()) if host not in homes
        )
    return problems


def value_problems(groups: Groups, values: Values, specs: Specs) -> list[str]:
    """What is wrong with the variables of the hosts in values. specs: the known variables, as known_variables gives them."""
    report = Report(groups, values)
    # Hosts share values, and most of the time all hosts share all.
    seen: list[tuple[object, list[str]]] = []
    for host, variables in values.items():
        for name, value in variables.items():
            if name != "mirror_upstreams":
                problem = _value_problem(name, value, specs[name])
                if problem:
                    report.add(problem, host)
        if host in groups.get("registries", ()):
            for problem in registry_problems(variables, mirrored=host in groups.get("mirrors", ())):
                report.add(problem, host)
        if host not in groups.get("mirrors", ()) and host not in groups.get("docker_hosts", ()):
            continue
        if variables.get("mirror_upstreams", []) == []:
            report.add("mirror_upstreams: is not there, or empty. Write the list of upstreams into group_vars/all.", host)
            continue
        key = (variables["mirror_upstreams"], variables.get(STATS_BIND, specs[STATS_BIND]["default"]))
        problems = next((found for other, found in seen if other == key), None)
        if problems is None:
            problems = upstreams.read(key[0])[1] + _stats_clashes(*key)
            seen.append((key, problems))
        for problem in problems:
            report.add(problem, host)
        cache, coalescer = (PurePosixPath(str(variables.get(name, specs[name]["default"]))) for name in STORAGES)
        if cache == coalescer or cache in coalescer.parents or coalescer in cache.parents:
            report.add(f"fetch_coalescer_storage: '{coalescer}': a coalescer empties its directory, and the caches are in '{cache}'. Write another path.", host)
        own = variables.get("mirror_name") in (None, *groups.get("mirrors", ()))
        if variables.get("mirror_virtual_address") and own:
            report.add("mirror_name: leads to one mirror host, and mirror_virtual_address to whichever is well. Write a name whose address that is.", host)
        if variables.get("mirror_edge_htpasswd") and not (variables.get("mirror_username") and variables.get("mirror_password")):
            report.add("mirror_edge_htpasswd: asks for a login. Write one into mirror_username and mirror_password, so that the playbooks can pull.", host)
    shared = registries.host_clashes({
        host: registries.read(variables.get("registry_here", []))[0] for host, variables in values.items() if host in groups.get("registries", ())
    })
    return report.lines() + shared + _differences(groups, values, specs)


def registry_problems(variables: Mapping[str, object], mirrored: bool) -> list[str]:
    """What is wrong with the registries of a host and with their users. mirrored: whether it is a mirror host, too."""
    days, newest = variables.get("registry_keep_days", registries.DAYS), variables.get("registry_keep_newest", registries.NEWEST)
    good, problems = registries.check(variables.get("registry_here", []), variables.get("registry_users", []), days, newest)
    taken = {
        port: f"the {use} port of upstream {upstream['name']!r}"
        for upstream in upstreams.read(variables.get("mirror_upstreams", []))[0] for use, port in upstream["ports"].items()
    } if mirrored else {}
    runtime = variables.get("registry_runtime", variables.get("mirror_runtime", "package"))
    return problems + registries.driver_problems(good, runtime) + [
        f"registry_here: registry {each['name']!r}: port: {each['port']}: is {taken[each['port']]}. Write another port."
        for each in good if each["port"] in taken
    ]


def virtual_address_problems(groups: Groups, addresses: Mapping[str, object], checked: set[str]) -> list[str]:
    """What is wrong with the virtual addresses of the data centers in checked. addresses: data center -> its mirror_virtual_address, of all of them."""
    written = {name: value for name, value in addresses.items() if value not in (None, "") and not isinstance(value, upstreams.Missing)}
    known = {name: _interface(value) for name, value in written.items()}
    problems = []
    for name in sorted(checked & set(written)):
        said = f"group dc_{name}: mirror_virtual_address: {upstreams.shown(written[name])}: "
        own = known[name]
        if own is None:
            problems.append(said + "is no address with the prefix length of its network. Write one like 10.20.0.10/24 or fd00:20::10/64.")
        elif own.version == 4 and own.ip in (own.network.network_address, own.network.broadcast_address):
            problems.append(said + f"is the network {own.network} itself or its broadcast address. Write an address that a host can have.")
        mirrors = data_centers(groups)[name]["mirrors"]
        if len(mirrors) < 2:
            problems.append(said + f"{', '.join(mirrors)} has nobody to share an address with. Leave it out, or add a mirror host.")
        # Said once, of the later one.
        twins = [other for other in sorted(known) if other != name and _same_ip(own, known[other]) and (other < name or other not in checked)]
        if twins:
            problems.append(said + f"is the address of dc_{twins[0]}, too. Give each data center its own.")
    return problems


def _same_ip(one: Interface | None, other: Interface | None) -> bool:
    return one is not None and other is not None and one.ip == other.ip


def _interface(value: object) -> Interface | None:
    """An address with its prefix length, as the role virtual_address takes it."""
    try:
        found = ipaddress.ip_interface(str(value))
    except ValueError:
        return None
    length = str(value).partition("/")[2]
    least, most = (8, 30) if found.version == 4 else (10, 126)
    return found if length.isdigit() and least <= int(length) <= most and "%" not in str(value) else None


def _value_problem(name: str, value: object, spec: Mapping[str, Any]) -> str | None:
    if isinstance(value, upstreams.Missing):
        return f"{name}: has no value ({value.reason}). Define it."
    kind, choices = spec.get("type", "str"), spec.get("choices", [])
    if choices and kind == "str" and value not in choices:
        return f"{name}: {upstreams.shown(value)}: write {', '.join(choices[:-1])} or {choices[-1]}."
    if kind in _TYPES and ArgumentSpecValidator({name: {"type": kind}}).validate({name: value}).error_messages:
        return f"{name}: {upstreams.shown(value)}: write {_TYPES[kind]}."
    return None


def _stats_clashes(value: object, bind: object) -> list[str]:
    port = str(bind).rpartition(":")[2]
    if not port.isdigit():
        return []
    return [
        f"mirror_upstreams: upstream {upstream['name']!r}: port: {upstream['ports']['edge']}: its {use} port {port} "
        f"is taken by {STATS_BIND} ({bind}). Write another port."
        for upstream in upstreams.read(value)[0] for use, number in upstream["ports"].items() if number == int(port)
    ]


def _differences(groups: Groups, values: Values, specs: Specs) -> list[str]:
    """Where the hosts of a data center do not agree."""
    problems = []
    mirrored = {*groups.get("mirrors", ()), *groups.get("docker_hosts", ())}
    for group in sorted(groups):
        hosts = [host for host in groups[group] if host in values and host in mirrored] if group.startswith("dc_") else []
        for name in SAME_IN_A_DATA_CENTER:
            found = {host: values[host].get(name, specs.get(name, {}).get("default")) for host in hosts}
            for other in hosts[1:]:
                one, two = found[hosts[0]], found[other]
                if one == two:
                    continue
                what = _upstreams_difference(one, two) if name == "mirror_upstreams" else f"{upstreams.shown(one)} and {upstreams.shown(two)}"
                problems.append(
                    f"group {group}: {name}: differs between hosts {hosts[0]} and {other} ({what}). "
                    f"Set it in group_vars of {group} or of all, and not closer to a host."
                )
                break
    return problems


def _upstreams_difference(first: object, other: object) -> str:
    """Where two lists of upstreams differ, without a value: it may be a password."""
    if not (isinstance(first, list) and isinstance(other, list)):
        return "one of them has none"
    for one, two in zip(first, other):
        if one != two and isinstance(one, dict) and isinstance(two, dict):
            keys = sorted(str(key) for key in set(one) | set(two) if one.get(key) != two.get(key))
            return f"upstream {upstreams.shown(one.get('name'))}: {', '.join(keys)}"
    return f"{len(first)} and {len(other)} upstreams"


def known_variables(role_specs: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Every variable that means something here. role_specs: role -> content of its meta/argument_specs.yml."""
    known = dict(VARIABLES)
    for content in role_specs.values():
        for entry_point in content["argument_specs"].values():
            known.update(entry_point.get("options", {}))
    return known


def name_problems(groups: Groups, names: Mapping[str, Sequence[str]], known: Iterable[str], roles: Iterable[str]) -> tuple[list[str], list[str]]:
    """Problems and warnings about variables that nothing reads.

    names: variable -> the hosts that have it. A name like one that is known is a slip, and an error. Another with a role's
    prefix gets a warning, because a role elsewhere may have the same name. Operators' helpers that begin with mirror_
    (mirror_vault_password) are nobody's business.
    """
    checked = {host for hosts in names.values() for host in hosts}
    report, warnings = Report(groups, checked), Report(groups, checked)
    known, role_prefixes = set(known), tuple(role + "_" for role in roles)
    for name in sorted(set(names) - known):
        meant = None if name.startswith("_") else _meant(name, known, role_prefixes + ("mirror_",))
        for host in names[name]:
            if meant:
                report.add(f"{name}: is no variable of this collection. Write {meant}.", host)
            elif name.startswith(role_prefixes):
                warnings.add(f"{name}: no role of this collection reads it.", host)
    return report.lines(), warnings.lines()


def _meant(name: str, known: Iterable[str], prefixes: Sequence[str]) -> str | None:
    """The known variable that was probably meant. What follows the prefix counts: a long prefix makes all names alike."""
    for prefix in prefixes:
        if name.startswith(prefix):
            rest = upstreams.near_miss(name[len(prefix):], (each[len(prefix):] for each in known if each.startswith(prefix)), 0.75)
            if rest:
                return prefix + rest
    return upstreams.near_miss(name, known, 0.92)
