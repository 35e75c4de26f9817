# Copyright (c) 2026, mirrorfleet contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0
"""Checks the whole inventory on the controller. Here it is read and templated; fleet.py knows what is wrong with it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Hashable, Mapping

from ansible.errors import AnsibleError, AnsibleUndefinedVariable
from ansible.module_utils.common.yaml import yaml_load
from ansible.plugins.action import ActionBase
from ansible.template import Templar

from ansible_collections.mirrorfleet.registry.plugins.module_utils import fleet, hubs, registries
from ansible_collections.mirrorfleet.registry.plugins.module_utils.upstreams import SECRETS, Missing

ROLES = Path(__file__).resolve().parents[2] / "roles"

_IDENTIFIER = re.compile(r"[A-Za-z_]\w*")
# These reach every variable of any host.
_EVERYTHING = {"vars", "hostvars", "lookup", "query", "q"}


class ActionModule(ActionBase):
    """One task for the whole play, whatever its hosts are."""

    BYPASS_HOST_LOOP = True
    TRANSFERS_FILES = False
    _requires_connection = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Fails with every problem at once, or returns the data centers."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        self.validate_argument_spec(argument_spec={})
        variables = task_vars or {}
        groups = variables["groups"]
        wanted = fleet.members(groups).intersection(variables["ansible_play_hosts_all"])
        hosts = [host for host in groups["all"] if host in wanted]
        raw = {host: dict(variables["hostvars"].raw_get(host), hostvars=variables["hostvars"]) for host in hosts}
        specs = {path.parents[1].name: yaml_load(path.read_text()) for path in sorted(ROLES.glob("*/meta/argument_specs.yml"))}
        known = fleet.known_variables(specs)

        names: dict[str, list[str]] = {}
        for host in hosts:
            for name in raw[host]:
                names.setdefault(name, []).append(host)
        problems = fleet.structure_problems(groups)
        slips, warnings = fleet.name_problems(groups, names, known, specs)
        reader = _Reader(self._loader, known)
        values: dict[str, dict[str, object]] = {}
        for host in hosts:
            mine = {group for group in fleet.GROUPS if host in groups.get(group, ())}
            values[host] = reader.read(raw[host], {name for name in known if mine.intersection(fleet.read_on(name))})
        problems += slips + fleet.value_problems(groups, values, known)
        first = {name: each["mirrors"][0] for name, each in fleet.data_centers(groups).items() if each["mirrors"]}
        # What data centers must not have in common, or must: also of those that a limit leaves out.
        names_of_all = {*hubs.NAMES, "mirror_virtual_address"}
        hub_values = {
            name: reader.read(dict(variables["hostvars"].raw_get(host), hostvars=variables["hostvars"]), names_of_all) for name, host in first.items()
        }
        checked = {name for name, host in first.items() if host in wanted or wanted.intersection(groups["dc_" + name])}
        problems += hubs.problems(hub_values, checked)
        problems += fleet.virtual_address_problems(groups, {name: each.get("mirror_virtual_address") for name, each in hub_values.items()}, checked)

        if warnings:
            result["warnings"] = warnings
        if problems:
            many = "is 1 problem" if len(problems) == 1 else f"are {len(problems)} problems"
            lines = "\n".join("- " + line for line in problems)
            return dict(result, failed=True, msg=f"There {many} in the inventory. Nothing was touched.\n{lines}")
        return dict(result, changed=False, data_centers=fleet.data_centers(groups, hubs.levels(hub_values)))


class _Reader:
    """Templates the known variables of hosts. Templating is slow and hosts are alike, so what is the same is templated once."""

    def __init__(self, loader: Any, known: Mapping[str, Any]) -> None:
        self._loader = loader
        self._known = known
        self._values: dict[Hashable, object] = {}

    def read(self, variables: Mapping[str, Any], names: set[str]) -> dict[str, object]:
        """The values of those of the names that a host has as variables."""
        values = {}
        for name in sorted(names.intersection(variables)):
            used = _used(variables[name], variables)
            # A role's own defaults are not known here, so a value that is made of one is left to the role.
            if name not in fleet.VARIABLES and used & set(self._known) - set(variables):
                continue
            if used & _EVERYTHING:
                used.add("inventory_hostname")
            key = (name, _frozen(variables[name]), tuple((each, _frozen(variables.get(each))) for each in sorted(used - _EVERYTHING)))
            if key not in self._values:
                apart = name in ("mirror_upstreams", "registry_here", "registry_users")
                self._values[key] = self._template(variables[name], variables, secret=name not in fleet.VARIABLES, apart=apart)
            values[name] = self._values[key]
        return values

    def _template(self, value: Any, variables: Mapping[str, Any], secret: bool, apart: bool) -> object:
        """The value, or Missing. One that is taken apart has Missing only for those of its parts that have no value."""
        try:
            return Templar(loader=self._loader, variables=variables).template(value)
        except AnsibleError as error:
            if apart and isinstance(value, dict):
                return {key: self._template(each, variables, key in (*SECRETS, *registries.SECRETS), apart) for key, each in value.items()}
            if apart and isinstance(value, list):
                return [self._template(each, variables, secret, apart) for each in value]
            return Missing(_reason(error, secret))


def _used(value: object, variables: Mapping[str, Any]) -> set[str]:
    """Every name that a value may be made of, and those that these are made of. Names that are only mentioned do no harm."""
    found: set[str] = set()
    rest = [value]
    while rest:
        each = rest.pop()
        if isinstance(each, dict):
            rest.extend(each.values())
        elif isinstance(each, (list, tuple)):
            rest.extend(each)
        elif isinstance(each, str) and ("{{" in each or "{%" in each):
            new = set(_IDENTIFIER.findall(each)) - found
            found |= new
            rest.extend(variables[name] for name in new - _EVERYTHING if name in variables)
    return found


def _frozen(value: object) -> Hashable:
    """Something that is equal for equal values. A vault's value is not opened for that: it stands for itself."""
    if isinstance(value, dict):
        return tuple((str(key), _frozen(each)) for key, each in value.items())
    if isinstance(value, (list, tuple)):
        return tuple(_frozen(each) for each in value)
    if value is None or isinstance(value, (str, int, float)):
        return (type(value), value)
    return id(value)


def _reason(error: BaseException, secret: bool) -> str:
    """What the innermost error says. The text of other errors may quote what they stumbled over, so a secret's is left out."""
    chain: list[BaseException] = [error]
    while chain[-1].__cause__ is not None:
        chain.append(chain[-1].__cause__)
    # What is raised for a vault that cannot be opened is no public class.
    told = next((each for each in reversed(chain) if isinstance(each, AnsibleUndefinedVariable) or "Vault" in type(each).__name__), None)
    if told is None and secret:
        return "its template fails"
    text = str(getattr(told or error, "message", None) or told or error)
    return text.strip().splitlines()[0].rstrip(".")
