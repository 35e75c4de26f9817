# Copyright (c) 2026, mirrorfleet contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0
"""Which host is what for a registry with replicas, and which change of it is refused."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.mirrorfleet.registry.plugins.module_utils.errors import RegistryFleetError
from ansible_collections.mirrorfleet.registry.plugins.module_utils.image_reference import is_tag
from ansible_collections.mirrorfleet.registry.plugins.module_utils.replica_state import wanted
from ansible_collections.mirrorfleet.registry.plugins.module_utils.replicas import DRAINED, PRIMARY, REPLICA, State, refusal, sites
from ansible_collections.mirrorfleet.registry.plugins.module_utils.replicator import aside

PROD = {"name": "prod", "scope": "prod", "port": 5012}
PLAY = {"name": "play", "scope": "sandbox", "port": 5010}
FLEET: dict[str, Any] = {
    "a": {"registry_here": [PROD, PLAY], "registry_address": "a.example.com"}, "b": {"registry_here": [PROD]}, "c": {"registry_here": [PLAY]},
}


def test_each_host_has_its_part() -> None:
    assert sites({"prod": "a"}, "a", FLEET, FLEET) == {
        "prod": {"role": PRIMARY, "here": "a", "primary": "a", "port": 5012, "hosts": ["a", "b"], "addresses": {"a": "a.example.com", "b": "b"}},
    }
    assert sites({"prod": "a"}, "b", FLEET, FLEET)["prod"]["role"] == REPLICA
    assert sites({"prod": "a"}, "a", FLEET, FLEET, ["prod"])["prod"]["role"] == DRAINED
    assert sites({"prod": "a"}, "c", FLEET, FLEET) == {}
    assert sites({}, "a", FLEET, FLEET) == {}


def test_a_registry_of_one_host_has_no_replicas() -> None:
    assert sites({"prod": "a"}, "a", ["a"], FLEET) == {}


@pytest.mark.parametrize(("primaries", "problem"), [
    (["prod"], "Write a dictionary, like {prod: a}."),
    ({"prods": "a"}, "registry_primaries: 'prods': no host has such a registry in its registry_here. Write prod."),
    ({"test": "a"}, "registry_primaries: 'test': no host has such a registry in its registry_here. Take it out."),
    ({"prod": "c"}, "registry_primaries: prod: 'c': has no registry prod in its registry_here. Write one of a, b."),
    ({"prod": None}, "registry_primaries: prod: empty: has no registry prod"),
    ({"play": "a"}, "registry_primaries: play: only a registry of the scope prod has replicas: a replica keeps all it has seen"),
])
def test_what_can_not_be_meant_is_refused(primaries: Any, problem: str) -> None:
    with pytest.raises(RegistryFleetError) as found:
        sites(primaries, "a", FLEET, FLEET)
    assert problem in str(found.value)


@pytest.mark.parametrize(("other", "problem"), [
    ({**PROD, "port": 5013}, "its hosts have it at different ports (5012, 5013). One name for all takes one port."),
    ({**PROD, "scope": "sandbox"}, "its hosts do not agree on the scope (prod, sandbox). A replica has the scope of its primary."),
])
def test_hosts_that_do_not_agree_are_refused(other: dict[str, Any], problem: str) -> None:
    with pytest.raises(RegistryFleetError, match="registry_primaries: prod: ") as found:
        sites({"prod": "a"}, "a", FLEET, {**FLEET, "b": {"registry_here": [other]}})
    assert problem in str(found.value)


def state(role: str, primary: str, epoch: int) -> State:
    return State(role=role, primary=primary, epoch=epoch)


FIRST = {"a": state(PRIMARY, "a", 1), "b": state(REPLICA, "a", 1)}
# b took over while a was gone.
SECOND = {"a": state(PRIMARY, "a", 1), "b": state(PRIMARY, "b", 2)}


@pytest.mark.parametrize(("primary", "states", "unknown", "said"), [
    ("a", {}, [], ""),
    ("a", {"b": state(REPLICA, "a", 0)}, ["a"], ""),
    ("a", FIRST, [], ""),
    ("b", SECOND, [], ""),
    ("b", FIRST, [], "registry_primaries says b, and a is the primary since epoch 1. Write registry_primaries: {prod: a}, or make b the primary"),
    ("a", SECOND, [], "registry_primaries says a, and b is the primary since epoch 2. Write registry_primaries: {prod: b}"),
    ("a", {"a": state(PRIMARY, "a", 1), "c": state(REPLICA, "b", 2)}, ["b"], "registry_primaries says a, and b is the primary since epoch 2."),
    ("b", {"a": state(PRIMARY, "a", 1)}, ["b"], "registry_primaries says b, which can't be asked, and a was the primary in epoch 1, the last that is known."),
    ("a", {"a": state(PRIMARY, "a", 2), "b": state(PRIMARY, "b", 2)}, [], "registry prod: a and b both are its primary in epoch 2."),
    ("a", {"a": state(DRAINED, "a", 1), "b": state(REPLICA, "a", 1)}, [], ""),
])
def test_only_failover_changes_the_primary(primary: str, states: dict[str, State], unknown: list[str], said: str) -> None:
    why = refusal("prod", primary, states, unknown)
    assert said in why and bool(said) is bool(why)


def test_the_epoch_grows_by_a_failover_only() -> None:
    assert wanted("prod", PRIMARY, "a", {}, []) == state(PRIMARY, "a", 1)
    assert wanted("prod", REPLICA, "a", {}, []) == state(REPLICA, "a", 1)
    assert wanted("prod", REPLICA, "a", FIRST, []) == state(REPLICA, "a", 1)
    assert wanted("prod", PRIMARY, "b", FIRST, [], takes_over=True) == state(PRIMARY, "b", 2)
    assert wanted("prod", REPLICA, "b", SECOND, []) == state(REPLICA, "b", 2)
    with pytest.raises(RegistryFleetError):
        wanted("prod", PRIMARY, "b", FIRST, [])


@pytest.mark.parametrize(("known", "unknown", "refused"), [
    ({}, ["a"], True),
    ({}, ["a", "c"], True),
    # It was told so by a run that left out the primary, too.
    ({"c": state(REPLICA, "b", 1)}, ["a"], True),
    ({}, [], False),
    ({"b": state(PRIMARY, "b", 1)}, ["a"], False),
    # It takes again what it did not hand over.
    ({"b": state(DRAINED, "b", 1)}, ["a"], False),
])
def test_nobody_becomes_the_first_primary_while_another_host_may_be_it(known: dict[str, State], unknown: list[str], refused: bool) -> None:
    if refused:
        with pytest.raises(RegistryFleetError, match=f"and {', '.join(unknown)} can't be asked, so one of them may be it. Run site.yml for all hosts"):
            wanted("prod", PRIMARY, "b", known, unknown)
    else:
        assert wanted("prod", PRIMARY, "b", known, unknown) == state(PRIMARY, "b", 1)
    assert wanted("prod", PRIMARY, "b", known, unknown, takes_over=True)["role"] == PRIMARY
    assert wanted("prod", REPLICA, "b", known, unknown)["role"] == REPLICA


@given(st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}", fullmatch=True), st.text(min_size=1), st.sampled_from(["sha256:" + "a" * 64]))
def test_the_name_aside_is_a_tag(tag: str, host: str, digest: str) -> None:
    assert is_tag(aside(tag, host, digest)) and aside(tag, host, digest) != tag
