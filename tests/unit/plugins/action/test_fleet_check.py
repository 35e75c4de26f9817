# Copyright (c) 2026, mirrorfleet contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0
"""The whole inventory is checked by real runs of ansible-playbook, one for each thing an operator may get wrong."""

from __future__ import annotations

import copy
import json
import re
import resource
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable

import pytest

from ansible_collections.mirrorfleet.registry.tests.unit.conftest import ansible

PASSWORD = "wander3r-in-the-fog"
CENTRAL = {
    "name": "central", "url": "https://artifactory.example.com", "path_prefix": "/artifactory/api/docker/docker-local",
    "username": "dc-reader", "password": "{{ vault_central_password }}", "port": 5000, "canary": "platform/canary:1",
}
HUB = {"name": "dockerhub", "url": "https://registry-1.docker.io", "port": 5001, "docker_hub": True}
ALL = {"mirror_upstreams": [CENTRAL, HUB], "mirror_runtime": "package", "vault_central_password": PASSWORD}
GROUPS = {
    "mirrors": ["m1.zagreb", "m2.zagreb", "m1.lima"],
    "docker_hosts": ["d1.zagreb", "d2.zagreb", "d1.lima"],
    "dc_zagreb": ["m1.zagreb", "m2.zagreb", "d1.zagreb", "d2.zagreb"],
    "dc_lima": ["m1.lima", "d1.lima"],
}
# The second play stands for the roles: it must not begin when the first has found a problem.
PLAYBOOK = [
    {"hosts": "all", "gather_facts": False, "tasks": [
        {"mirrorfleet.registry.fleet_check": {}, "register": "fleet"},
        {"ansible.builtin.copy": {"content": "{{ fleet.data_centers | to_json }}", "dest": "{{ playbook_dir }}/data_centers.json", "mode": "0600"},
         "delegate_to": "localhost", "run_once": True},
    ]},
    {"hosts": "all", "gather_facts": False, "connection": "local", "tasks": [
        {"ansible.builtin.file": {"path": "{{ playbook_dir }}/touched", "state": "touch", "mode": "0600"}, "run_once": True},
    ]},
]


@dataclass
class Fleet:
    """An inventory to spoil, and what came of its check."""

    directory: Path
    groups: dict[str, list[str]]
    all: dict[str, Any]
    vars: dict[str, dict[str, Any]]  # of groups and hosts

    def run(self, *arguments: str) -> tuple[int, str]:
        """Exit status and output of the playbook."""
        inventory = {
            name: {"hosts": dict.fromkeys(hosts), "vars": self.vars.get(name, {})} for name, hosts in self.groups.items()
        }
        inventory["all"] = {"hosts": {host: own for host, own in self.vars.items() if host not in self.groups}, "vars": {}}
        (self.directory / "hosts.json").write_text(json.dumps(inventory))
        (self.directory / "group_vars").mkdir(exist_ok=True)
        (self.directory / "group_vars/all.yml").write_text(json.dumps(self.all))
        (self.directory / "play.yml").write_text(json.dumps(PLAYBOOK))
        done = ansible(
            "ansible-playbook", "--inventory", "hosts.json", "--extra-vars", f"ansible_python_interpreter={sys.executable}", *arguments, "play.yml",
            directory=self.directory, ANSIBLE_CALLBACK_RESULT_FORMAT="json",
        )
        return done.returncode, done.stdout + done.stderr

    @property
    def data_centers(self) -> Any:
        return json.loads((self.directory / "data_centers.json").read_text())

    def accepted(self, *arguments: str) -> str:
        status, output = self.run(*arguments)
        assert status == 0, output
        assert (self.directory / "touched").exists()
        return output

    def refused(self, *problems: str, arguments: tuple[str, ...] = ()) -> None:
        """Exactly these problems were listed, no secret was shown, and nothing was touched."""
        status, output = self.run(*arguments)
        assert status != 0, output
        assert not (self.directory / "touched").exists()
        assert PASSWORD not in output
        failure = re.search(r"FAILED! => (.*)", output)
        assert failure, output
        headline, *listed = json.loads(failure[1])["msg"].splitlines()
        assert headline.endswith(" in the inventory. Nothing was touched.")
        assert sorted(listed) == sorted(f"- {problem}" for problem in problems)


@pytest.fixture
def fleet_(tmp_path: Path) -> Fleet:
    return Fleet(tmp_path, copy.deepcopy(GROUPS), copy.deepcopy(ALL), {})


def test_a_right_inventory_passes_and_the_data_centers_are_known(fleet_: Fleet) -> None:
    fleet_.accepted()
    assert fleet_.data_centers == {
        "zagreb": {"mirrors": ["m1.zagreb", "m2.zagreb"], "docker_hosts": ["d1.zagreb", "d2.zagreb"], "level": 0},
        "lima": {"mirrors": ["m1.lima"], "docker_hosts": ["d1.lima"], "level": 0},
    }


def test_a_data_center_knows_how_many_hubs_are_above_it(fleet_: Fleet) -> None:
    fleet_.groups["mirrors"].append("m1.oslo")
    fleet_.groups["dc_oslo"] = ["m1.oslo"]
    fleet_.vars.update(dc_lima={"mirror_parent": "dc_zagreb"}, dc_oslo={"mirror_parent": "dc_lima"})
    fleet_.accepted("--limit", "dc_oslo")
    assert {name: each["level"] for name, each in fleet_.data_centers.items()} == {"zagreb": 0, "lima": 1, "oslo": 2}


def test_check_mode_finds_the_same(fleet_: Fleet) -> None:
    fleet_.vars["m1.lima"] = {"mirror_runtime": "podman"}
    fleet_.refused("host m1.lima: mirror_runtime: 'podman': write package or container.", arguments=("--check",))


def no_mirrors(fleet_: Fleet) -> str:
    fleet_.groups["mirrors"].remove("m1.lima")
    return "group dc_lima: has docker hosts (d1.lima) and no mirror host. Put one of its hosts into the group mirrors."


def no_mirrors_at_all(fleet_: Fleet) -> tuple[str, ...]:
    fleet_.groups["mirror"] = fleet_.groups.pop("mirrors")
    return (
        "group mirror: is no group that anything looks for. Write mirrors.",
        "group mirrors: has no host. Put the mirror hosts of every data center into it.",
        "group dc_lima: has docker hosts (d1.lima) and no mirror host. Put one of its hosts into the group mirrors.",
        "group dc_zagreb: has docker hosts (d1.zagreb, d2.zagreb) and no mirror host. Put one of its hosts into the group mirrors.",
    )


def in_two_data_centers(fleet_: Fleet) -> str:
    fleet_.groups["dc_lima"].append("d1.zagreb")
    return "host d1.zagreb: is in dc_lima and dc_zagreb. A host is in one data center: leave it in one of them."


def in_no_data_center(fleet_: Fleet) -> tuple[str, ...]:
    fleet_.groups["mirrors"].append("stray")
    fleet_.groups["docker_hosts"].append("lost")
    return (
        "host stray: is in the group mirrors and in no data center. Put it into a group dc_<name>.",
        "host lost: is in the group docker_hosts and in no data center. Put it into a group dc_<name>.",
    )


def one_port(fleet_: Fleet) -> str:
    fleet_.all["mirror_upstreams"][1]["port"] = 5000
    return "group all: mirror_upstreams: upstreams 'central' and 'dockerhub' both have port 5000. Give each its own."


def one_name(fleet_: Fleet) -> str:
    fleet_.all["mirror_upstreams"][1]["name"] = "central"
    return "group all: mirror_upstreams: 2 upstreams have the name 'central'. Give each its own."


def derived_port(fleet_: Fleet) -> str:
    fleet_.all["mirror_upstreams"][1]["port"] = 15000
    return (
        "group all: mirror_upstreams: upstream 'dockerhub': port: 15000: its edge port 15000 is the cache port of upstream 'central'. "
        "Write another port."
    )


def port_of_the_statistics(fleet_: Fleet) -> str:
    fleet_.all["mirror_upstreams"][1]["port"] = 8404
    return (
        "group all: mirror_upstreams: upstream 'dockerhub': port: 8404: its edge port 8404 is taken by haproxy_front_stats_bind "
        "(127.0.0.1:8404). Write another port."
    )


def a_login_that_the_playbooks_lack(fleet_: Fleet) -> str:
    fleet_.all["mirror_edge_htpasswd"] = "joe:{PLAIN}joe"
    fleet_.all["mirror_username"] = "joe"
    return (
        "group mirrors: mirror_edge_htpasswd: asks for a login. Write one into mirror_username and mirror_password, "
        "so that the playbooks can pull."
    )


def a_coalescer_where_the_caches_are(fleet_: Fleet) -> str:
    fleet_.all["pull_through_cache_storage"] = "/srv/mirror/central"
    fleet_.all["fetch_coalescer_storage"] = "/srv/mirror/"
    return (
        "group mirrors: fetch_coalescer_storage: '/srv/mirror': a coalescer empties its directory, and the caches are in '/srv/mirror/central'. "
        "Write another path."
    )


def url_with_a_path(fleet_: Fleet) -> str:
    fleet_.all["mirror_upstreams"][0]["url"] = "https://artifactory.example.com/artifactory/api/docker/docker-local/v2/"
    return (
        "group all: mirror_upstreams: upstream 'central': url: 'https://artifactory.example.com/artifactory/api/docker/docker-local/v2/': "
        "has a path. Write url: https://artifactory.example.com and path_prefix: /artifactory/api/docker/docker-local."
    )


def url_with_a_password(fleet_: Fleet) -> str:
    fleet_.all["mirror_upstreams"][0]["url"] = f"https://dc-reader:{PASSWORD}@artifactory.example.com"
    return (
        "group all: mirror_upstreams: upstream 'central': url: 'https://…@artifactory.example.com': holds credentials. "
        "Write them as username and password, and keep the password in the vault."
    )


def key_missing(fleet_: Fleet) -> str:
    del fleet_.all["mirror_upstreams"][1]["port"]
    return "group all: mirror_upstreams: upstream 'dockerhub': port: is missing. Write port: 5000, where docker hosts find it."


def password_undefined(fleet_: Fleet) -> str:
    del fleet_.all["vault_central_password"]
    return (
        "group all: mirror_upstreams: upstream 'central': password: has no value ('vault_central_password' is undefined). "
        "Define it in the vault, and give the vault's password."
    )


def password_undefined_in_one_data_center(fleet_: Fleet) -> str:
    fleet_.vars["dc_zagreb"] = {"vault_central_password": fleet_.all.pop("vault_central_password")}
    return (
        "group dc_lima: mirror_upstreams: upstream 'central': password: has no value ('vault_central_password' is undefined). "
        "Define it in the vault, and give the vault's password."
    )


def password_empty(fleet_: Fleet) -> str:
    fleet_.all["vault_central_password"] = ""
    return (
        "group all: mirror_upstreams: upstream 'central': password: is empty. "
        "Write it, or leave username and password out where the upstream asks for none."
    )


def password_left_out(fleet_: Fleet) -> str:
    del fleet_.all["mirror_upstreams"][0]["password"]
    return (
        "group all: mirror_upstreams: upstream 'central': username: is there without password. "
        "Write both, or neither where the upstream asks for none."
    )


def password_in_a_broken_template(fleet_: Fleet) -> str:
    fleet_.all["mirror_upstreams"][0]["password"] = f"{{{{ '{PASSWORD}' + 1 }}}}"
    return (
        "group all: mirror_upstreams: upstream 'central': password: has no value (its template fails). "
        "Define it in the vault, and give the vault's password."
    )


def list_undefined(fleet_: Fleet) -> str:
    fleet_.all["mirror_upstreams"] = "{{ site_upstreams }}"
    return "group all: mirror_upstreams: has no value ('site_upstreams' is undefined)."


def list_empty(fleet_: Fleet) -> str:
    fleet_.all["mirror_upstreams"] = []
    return "group all: mirror_upstreams: is not there, or empty. Write the list of upstreams into group_vars/all."


def runtime(fleet_: Fleet) -> str:
    fleet_.vars["m2.zagreb"] = {"mirror_runtime": "podman"}
    return "host m2.zagreb: mirror_runtime: 'podman': write package or container."


def upstreams_differ(fleet_: Fleet) -> str:
    fleet_.vars["d2.zagreb"] = {"mirror_upstreams": [{**CENTRAL, "port": 5005, "password": PASSWORD + "!"}, HUB]}
    return (
        "group dc_zagreb: mirror_upstreams: differs between hosts m1.zagreb and d2.zagreb (upstream 'central': password, port). "
        "Set it in group_vars of dc_zagreb or of all, and not closer to a host."
    )


def tls_differs(fleet_: Fleet) -> str:
    fleet_.vars["docker_hosts"] = {"mirror_edge_tls": "none"}
    fleet_.vars["d1.lima"] = {"mirror_edge_tls": "ca"}
    return (
        "group dc_zagreb: mirror_edge_tls: differs between hosts m1.zagreb and d1.zagreb ('ca' and 'none'). "
        "Set it in group_vars of dc_zagreb or of all, and not closer to a host."
    )


def slip(fleet_: Fleet) -> str:
    fleet_.vars["dc_lima"] = {"mirror_upstream": []}
    return "group dc_lima: mirror_upstream: is no variable of this collection. Write mirror_upstreams."


def more_slips(fleet_: Fleet) -> tuple[str, ...]:
    fleet_.all.update(haproxy_front_stat_bind="127.0.0.1:1", mirror_allowed_networks=[], miror_runtime="container")
    fleet_.vars["d1.lima"] = {"docker_mirror_restrat": True}
    return (
        "group all: haproxy_front_stat_bind: is no variable of this collection. Write haproxy_front_stats_bind.",
        "group all: mirror_allowed_networks: is no variable of this collection. Write mirror_edge_allowed_networks.",
        "group all: miror_runtime: is no variable of this collection. Write mirror_runtime.",
        "host d1.lima: docker_mirror_restrat: is no variable of this collection. Write docker_mirror_restart.",
    )


def value_of_a_role(fleet_: Fleet) -> tuple[str, ...]:
    fleet_.vars["d1.lima"] = {"docker_mirror_restart": "maybe"}
    fleet_.all.update(mirror_edge_tls="letsencrypt", mirror_edge_private_key="{{ vault_edge_key }}", pull_through_cache_guard_scrub_bytes_per_second="fast")
    return (
        "group mirrors: pull_through_cache_guard_scrub_bytes_per_second: 'fast': write a number of bytes, like 50M.",
        "host d1.lima: docker_mirror_restart: 'maybe': write true or false.",
        "group all: mirror_edge_tls: 'letsencrypt': write ca, given or none.",
        "group mirrors: mirror_edge_private_key: has no value ('vault_edge_key' is undefined). Define it.",
    )


def hub_that_is_none(fleet_: Fleet) -> str:
    fleet_.vars["dc_lima"] = {"mirror_parent": "zagreb"}
    return "group dc_lima: mirror_parent: 'zagreb': is no data center with a mirror host. Write dc_zagreb."


def hub_of_itself(fleet_: Fleet) -> str:
    fleet_.vars["dc_lima"] = {"mirror_parent": "dc_lima"}
    return "group dc_lima: mirror_parent: 'dc_lima': is this data center itself. Write another one, or leave it out where the upstreams are asked."


def hubs_in_a_circle(fleet_: Fleet) -> tuple[str, ...]:
    fleet_.vars.update(dc_lima={"mirror_parent": "dc_zagreb"}, dc_zagreb={"mirror_parent": "dc_lima"})
    end = "Leave mirror_parent out where the upstreams are to be asked."
    return (
        f"group dc_lima: mirror_parent: 'dc_zagreb': there is a circle: dc_lima asks dc_zagreb asks dc_lima. {end}",
        f"group dc_zagreb: mirror_parent: 'dc_lima': there is a circle: dc_zagreb asks dc_lima asks dc_zagreb. {end}",
    )


def hub_in_one_host_only(fleet_: Fleet) -> str:
    fleet_.vars["m2.zagreb"] = {"mirror_parent": "dc_lima"}
    return (
        "group dc_zagreb: mirror_parent: differs between hosts m1.zagreb and m2.zagreb (empty and 'dc_lima'). "
        "Set it in group_vars of dc_zagreb or of all, and not closer to a host."
    )


def hub_at_other_ports(fleet_: Fleet) -> str:
    fleet_.vars.update(dc_zagreb={"mirror_upstreams": fleet_.all.pop("mirror_upstreams")},
                       dc_lima={"mirror_parent": "dc_zagreb", "mirror_upstreams": [CENTRAL, {**HUB, "port": 5002}]})
    return "group dc_lima: mirror_upstreams: upstream 'dockerhub': port: 5002: is 5001 in its hub dc_zagreb. Write the same port."


def hub_of_other_upstreams(fleet_: Fleet) -> str:
    fleet_.vars.update(dc_zagreb={"mirror_upstreams": fleet_.all.pop("mirror_upstreams")},
                       dc_lima={"mirror_parent": "dc_zagreb", "mirror_upstreams": [{**CENTRAL, "name": "other"}]})
    return "group dc_lima: mirror_parent: 'dc_zagreb': has none of the upstreams other. Write them there too, or leave it out."


def hub_with_another_login(fleet_: Fleet) -> tuple[str, ...]:
    fleet_.vars.update(
        dc_lima={"mirror_parent": "dc_zagreb", "mirror_password": "other"},
        dc_zagreb={"mirror_edge_htpasswd": "a:b", "mirror_username": "a", "mirror_password": PASSWORD},
    )
    return (
        "group dc_lima: mirror_username: is missing, and needed at the hub dc_zagreb, which asks for a login. Write the same.",
        "group dc_lima: mirror_password: is not that of the hub dc_zagreb, which asks for a login. Write the same.",
    )


def virtual_address_without_a_name(fleet_: Fleet) -> str:
    fleet_.vars["dc_zagreb"] = {"mirror_virtual_address": "10.1.0.10/24"}
    return "group dc_zagreb: mirror_name: leads to one mirror host, and mirror_virtual_address to whichever is well. Write a name whose address that is."


def with_virtual_addresses(fleet_: Fleet, zagreb: str, lima: str) -> None:
    fleet_.groups["mirrors"].append("m2.lima")
    fleet_.groups["dc_lima"].append("m2.lima")
    fleet_.vars.update(dc_zagreb={"mirror_virtual_address": zagreb, "mirror_name": "a"}, dc_lima={"mirror_virtual_address": lima, "mirror_name": "b"})


def virtual_addresses_that_are_none(fleet_: Fleet) -> tuple[str, ...]:
    with_virtual_addresses(fleet_, "10.20.0.10", "10.20.1.256/24")
    end = "is no address with the prefix length of its network. Write one like 10.20.0.10/24 or fd00:20::10/64."
    return (
        f"group dc_zagreb: mirror_virtual_address: '10.20.0.10': {end}",
        f"group dc_lima: mirror_virtual_address: '10.20.1.256/24': {end}",
    )


def virtual_addresses_of_no_host(fleet_: Fleet) -> tuple[str, ...]:
    with_virtual_addresses(fleet_, "10.20.0.255/24", "fd00::1/127")
    return (
        "group dc_zagreb: mirror_virtual_address: '10.20.0.255/24': is the network 10.20.0.0/24 itself or its broadcast address. "
        "Write an address that a host can have.",
        "group dc_lima: mirror_virtual_address: 'fd00::1/127': is no address with the prefix length of its network. "
        "Write one like 10.20.0.10/24 or fd00:20::10/64.",
    )


def one_virtual_address(fleet_: Fleet) -> str:
    with_virtual_addresses(fleet_, "fd00:20::10/64", "fd00:0020:0::10/80")
    return "group dc_zagreb: mirror_virtual_address: 'fd00:20::10/64': is the address of dc_lima, too. Give each data center its own."


def virtual_address_of_one_mirror_host(fleet_: Fleet) -> str:
    fleet_.vars["dc_lima"] = {"mirror_virtual_address": "10.20.0.10/24", "mirror_name": "b"}
    return (
        "group dc_lima: mirror_virtual_address: '10.20.0.10/24': m1.lima has nobody to share an address with. "
        "Leave it out, or add a mirror host."
    )


def test_an_address_of_another_data_center_is_found_with_a_limit(fleet_: Fleet) -> None:
    with_virtual_addresses(fleet_, "10.20.0.10/24", "10.20.0.10/24")
    fleet_.refused(
        "group dc_lima: mirror_virtual_address: '10.20.0.10/24': is the address of dc_zagreb, too. Give each data center its own.",
        arguments=("--limit", "dc_lima"),
    )


def test_virtual_addresses_that_are_right(fleet_: Fleet) -> None:
    with_virtual_addresses(fleet_, "10.20.0.10/24", "10.20.0.11/24")
    fleet_.vars["dc_lima"]["mirror_virtual_address"] = ""
    fleet_.accepted()


@pytest.mark.parametrize("spoil", [
    virtual_address_without_a_name, virtual_addresses_that_are_none, virtual_addresses_of_no_host, one_virtual_address, virtual_address_of_one_mirror_host,
    hub_that_is_none, hub_of_itself, hubs_in_a_circle, hub_in_one_host_only, hub_at_other_ports, hub_of_other_upstreams, hub_with_another_login,
    no_mirrors, no_mirrors_at_all, in_two_data_centers, in_no_data_center, one_port, one_name, derived_port, port_of_the_statistics,
    a_login_that_the_playbooks_lack,
    a_coalescer_where_the_caches_are,
    url_with_a_path, url_with_a_password, key_missing, password_undefined, password_undefined_in_one_data_center, password_empty,
    password_left_out, password_in_a_broken_template, list_undefined, list_empty, runtime, upstreams_differ, tls_differs, slip, more_slips,
    value_of_a_role,
], ids=lambda spoil: spoil.__name__)
def test_bad_input_is_refused(fleet_: Fleet, spoil: Callable[[Fleet], str | tuple[str, ...]]) -> None:
    problems = spoil(fleet_)
    fleet_.refused(*([problems] if isinstance(problems, str) else problems))


def test_all_problems_are_listed_at_once(fleet_: Fleet) -> None:
    fleet_.refused(*in_no_data_center(fleet_), *(spoil(fleet_) for spoil in (one_port, password_left_out, runtime, slip)))


def test_a_slip_on_the_command_line_is_found(fleet_: Fleet) -> None:
    fleet_.refused("group all: mirror_runtimes: is no variable of this collection. Write mirror_runtime.", arguments=("-e", "mirror_runtimes=package"))


def test_helpers_of_the_operator_are_let_alone(fleet_: Fleet) -> None:
    fleet_.all.update(mirror_vault_password="x", _mirror_upstream=[], docker_mirror_of_the_bay="x")
    # A role's variable that only other hosts read, or that is made of a role's default, is not looked at.
    fleet_.all["haproxy_front_stats_bind"] = "{{ management_address }}:8404"
    fleet_.vars["mirrors"] = {"management_address": "10.0.0.1", "mirror_edge_names": "{{ [mirror_edge_bind] }}"}
    output = " ".join(fleet_.accepted().split())
    assert "group all: docker_mirror_of_the_bay: no role of this collection reads it." in output
    assert "mirror_vault_password" not in output


def test_values_are_those_of_each_host(fleet_: Fleet) -> None:
    """One text, templated for each host where it is made of something that differs."""
    fleet_.all["mirror_upstreams"][0]["url"] = "https://{{ site }}.example.com{{ hostvars[inventory_hostname].tail }}"
    fleet_.vars.update(dc_lima={"site": "lima", "tail": ""}, dc_zagreb={"site": "zagreb", "tail": "/path"})
    fleet_.refused(
        "group dc_zagreb: mirror_upstreams: upstream 'central': url: 'https://zagreb.example.com/path': has a path. "
        "Write url: https://zagreb.example.com and path_prefix: /path.",
    )


def test_a_data_center_may_have_upstreams_of_its_own(fleet_: Fleet) -> None:
    fleet_.vars["dc_lima"] = {"mirror_upstreams": [HUB]}
    fleet_.accepted()


def test_limit_checks_all_groups_but_only_the_limit_s_variables(fleet_: Fleet) -> None:
    fleet_.vars["m1.zagreb"] = {"mirror_runtime": "podman"}
    fleet_.accepted("--limit", "dc_lima")
    (fleet_.directory / "touched").unlink()
    fleet_.groups["dc_zagreb"].append("d1.lima")
    fleet_.refused(
        "host d1.lima: is in dc_lima and dc_zagreb. A host is in one data center: leave it in one of them.", arguments=("--limit", "m1.lima"),
    )


@pytest.mark.parametrize("password", [None, "wrong", "right"])
def test_a_vault_s_value_needs_its_password(fleet_: Fleet, password: str | None) -> None:
    for name in ("right", "wrong"):
        (fleet_.directory / name).write_text(name)
    command = shutil.which("ansible-vault", path=str(Path(sys.executable).parent)) or "ansible-vault"
    encrypted = subprocess.run(
        [command, "encrypt_string", "--vault-password-file", "right", "--name", "vault_central_password", PASSWORD],
        cwd=fleet_.directory, stdout=subprocess.PIPE, text=True, check=True,
    ).stdout
    del fleet_.all["vault_central_password"]
    (fleet_.directory / "host_vars").mkdir()
    for host in {host for hosts in GROUPS.values() for host in hosts}:
        (fleet_.directory / "host_vars" / f"{host}.yml").write_text(encrypted)
    if password == "right":
        fleet_.accepted("--vault-password-file", "right")
        return
    status, output = fleet_.run(*(("--vault-password-file", password) if password else ()))
    assert status != 0
    assert "group all: mirror_upstreams: upstream 'central': password: has no value (" in output
    assert "no vault secrets" in output
    assert "Define it in the vault, and give the vault's password." in output
    assert not (fleet_.directory / "touched").exists()


def test_three_hundred_hosts_take_less_than_thrice_as_long_as_a_few(fleet_: Fleet) -> None:
    """About a second on an idle machine. In CPU seconds, both of the same minute: other tests may run beside this one."""
    def cpu_seconds() -> float:
        # In the last host, so that all have been looked at.
        last = fleet_.groups["docker_hosts"][-1]
        fleet_.vars = {**{name: own for name, own in fleet_.vars.items() if name.startswith("dc_")}, last: {"docker_mirror_restart": "maybe"}}
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        fleet_.refused(f"host {last}: docker_mirror_restart: 'maybe': write true or false.")
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    few = cpu_seconds()
    names = ["zagreb", "frankfurt", "dublin", "virginia", "saopaulo", "singapore"]
    fleet_.groups = {"mirrors": [f"m{number}.{name}" for name in names for number in (1, 2)]}
    fleet_.groups["docker_hosts"] = [f"d{number}.{name}" for name in names for number in range(48)]
    for name in names:
        fleet_.groups[f"dc_{name}"] = [host for hosts in list(fleet_.groups.values())[:2] for host in hosts if host.endswith("." + name)]
        fleet_.vars[f"dc_{name}"] = {"site": name}
    fleet_.all["mirror_upstreams"][0]["url"] = "https://{{ site }}.example.com"
    fleet_.all["docker_mirror_daemon_options"] = {"labels": ["host={{ inventory_hostname }}"]}
    many = cpu_seconds()
    print(f"{many:.2f} CPU seconds, {few:.2f} for the few")
    assert many < 3 * few


HASH = "$2y$05$" + "a" * 53
PROD = {"name": "prod", "scope": "prod", "port": 5012, "storage": "/srv/prod", "backup_target": "/mnt/backup", "signing_key": "{{ key }}"}
KEY = "-----BEGIN PUBLIC KEY-----\nMFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAE\n-----END PUBLIC KEY-----\n"


@pytest.fixture
def with_registry(fleet_: Fleet) -> Fleet:
    """A host of registries, in no data center."""
    fleet_.groups["registries"] = ["r1"]
    fleet_.vars["registries"] = {
        "registry_here": [{"name": "play", "scope": "sandbox", "port": 5010}, PROD], "key": KEY,
        "registry_users": [{"name": "promoter", "role": "promotion", "hash": HASH}],
    }
    return fleet_


def test_registries_are_accepted_beside_mirrors_and_alone(with_registry: Fleet) -> None:
    with_registry.accepted()
    with_registry.groups = {"registries": ["r1"]}
    with_registry.all = {}
    with_registry.accepted()


def test_registries_that_can_not_be_meant_are_refused(with_registry: Fleet) -> None:
    with_registry.vars["registries"].update(
        registry_here=[
            {"name": "play", "scope": "playground", "port": 5010},
            {"name": "snapshots", "scope": "ci_snapshots", "port": 5010, "keep_newest": 0},
            {"name": "tests", "scope": "ci_tests", "port": 5012, "storage": "/srv/prod/tests"},
            {**PROD, "backup_target": None, "signing_key": "{{ nowhere }}"}, PROD,
        ],
        registry_users=[{"name": "builder", "role": "ci", "hash": PASSWORD}], registry_keep_day=3, registry_tls="maybe",
    )
    with_registry.refused(
        "host r1: registry_keep_day: is no variable of this collection. Write registry_keep_days.",
        "host r1: registry_tls: 'maybe': write ca, given or none.",
        "host r1: registry_here: registry 'play': scope: 'playground': is no scope. There are sandbox, ci_tests, ci_snapshots, prod and archive.",
        "host r1: registry_here: registry 'snapshots': keep_newest: 0: write a whole number from 1: retention must not empty a repository.",
        "host r1: registry_here: registry 'prod': backup_target: is missing. Nothing is in prod without a backup: write where it goes, "
        "a directory or s3:https://host/bucket.",
        "host r1: registry_here: registry 'prod': signing_key: has no value ('nowhere' is undefined).",
        "host r1: registry_here: registries 'tests' and 'prod' both have port 5012. Give each its own.",
        "host r1: registry_here: registries 'tests' and 'prod' share storage (/srv/prod/tests and /srv/prod). Give each its own.",
        "host r1: registry_users: user 'builder': hash: is no bcrypt hash. Write what `htpasswd -nB <name>` prints after the colon; "
        "distribution reads no other kind.",
    )


def test_a_host_of_registries_needs_some(with_registry: Fleet) -> None:
    del with_registry.vars["registries"]["registry_here"]
    with_registry.refused("host r1: registry_here: is empty. Write a list of registries, each with name, scope and port.")


def test_ports_of_registries_and_mirrors_on_one_host_differ(with_registry: Fleet) -> None:
    with_registry.groups["registries"] = ["m1.lima"]
    with_registry.vars["registries"]["registry_here"][0]["port"] = 15000
    with_registry.refused(
        "host m1.lima: registry_here: registry 'play': port: 15000: is the cache port of upstream 'central'. Write another port."
    )


def test_archives_that_can_not_be_meant_are_refused(with_registry: Fleet) -> None:
    archive = {"name": "archive", "scope": "archive", "port": 5013}
    with_registry.vars["registries"].update(
        registry_here=[
            {**archive, "images": ["artifactory.example.com/svc/app:1", "docker.io/library/debian"]},
            {**archive, "name": "other", "port": 5014, "images": ["artifactory.example.com/svc/app:1"]},
            {**archive, "name": "third", "port": 5015, "images": ["quay.io/a:1"], "upstreams": [
                {"domain": "quay.io", "username": "reader", "password": "{{ nowhere }}"},
                {"domain": "ghcr.io", "username": "reader", "password": PASSWORD, "a": 1},
            ]},
        ],
    )
    with_registry.refused(
        "host r1: registry_here: registry 'archive': images: 'docker.io/library/debian' does not say which tags. "
        "Write docker.io/library/debian:TAG, or docker.io/library/debian:1.* for all that begin so.",
        "host r1: registry_here: registry 'third': upstreams: 'quay.io': password: has no value ('nowhere' is undefined). "
        "Define it in the vault, and give the vault's password.",
        "host r1: registry_here: registry 'third': upstreams: 'ghcr.io': a: is no key of it. "
        "There are domain, url, username, password, ca_cert, validate_certs.",
        "host r1: registry_here: registry 'other': images: artifactory.example.com is the upstream 'central', which has a path_prefix, and skopeo finds no "
        "registry below a path. Write registry_archive_mirror, the mirror host that it is pulled by.",
    )
    with_registry.vars["registries"].update(
        registry_here=[{**archive, "images": ["artifactory.example.com/svc/app:1"]}], registry_archive_mirror="m1.zagreb",
    )
    with_registry.accepted()


def test_object_storage_is_for_one_registry_of_one_host(with_registry: Fleet) -> None:
    with_registry.groups["registries"] = ["r1", "r2"]
    with_registry.vars["registries"]["registry_here"][1] = {
        **PROD, "storage": {"azure": {"accountname": "a", "accountkey": "{{ key }}", "container": "images"}}, "signing_key": KEY,
        "backup_target": None,
    }
    with_registry.refused(
        "group registries: registry_here: registry 'prod': storage: azure: Debian's distribution is built without it. Write registry_runtime: container.",
        "registry_here: the registries 'prod' of r1 and 'prod' of r2 share storage (azure a/images/ and /). Give each its own.",
    )
    with_registry.groups["registries"] = ["r1"]
    with_registry.vars["registries"]["registry_runtime"] = "container"
    with_registry.accepted()
