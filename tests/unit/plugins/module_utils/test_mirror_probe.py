# Copyright (c) 2026, mirrorfleet contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0
"""What mirror_probe reads. It asks a real Docker in tests/unit/roles/test_canary.py."""

from __future__ import annotations

import contextlib
import json
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.mirrorfleet.registry.plugins.module_utils.docker_host import DockerError, pulled_digest
from ansible_collections.mirrorfleet.registry.plugins.module_utils.mirror_probe import describe, hosts_of, is_insecure, registry_of

anything = st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda each: st.lists(each) | st.dictionaries(st.text(), each), max_leaves=10)
keys = ("Mirrors", "IndexConfigs", "InsecureRegistryCIDRs")


@given(anything, st.dictionaries(st.sampled_from(keys), anything))
def test_what_docker_says_is_read_or_refused(status: Any, configuration: dict[str, Any]) -> None:
    for info in (status, {"ServerVersion": status}, {"ServerVersion": "28", "DriverStatus": status, "RegistryConfig": configuration}):
        with contextlib.suppress(DockerError):
            docker = describe(info)
            assert docker.image_store in ("classic", "containerd") and all(isinstance(each, str) for each in docker.registry_mirrors)


@pytest.mark.parametrize("status, store", [
    ([["driver-type", "io.containerd.snapshotter.v1"]], "containerd"), ([["Backing Filesystem", "extfs"]], "classic"), (None, "classic"),
])
def test_the_image_store(status: Any, store: str) -> None:
    registries = {"Mirrors": None, "IndexConfigs": {"a:1": {"Secure": False}, "b": {"Secure": True}}, "InsecureRegistryCIDRs": ["127.0.0.0/8"]}
    docker = describe({"ServerVersion": "28.2.2", "DriverStatus": status, "RegistryConfig": registries})
    assert (docker.image_store, docker.registry_mirrors, docker.insecure_registries) == (store, [], ["a:1", "127.0.0.0/8"])


@given(st.lists(st.fixed_dictionaries({}, optional={"status": st.text(), "error": st.text(), "id": st.text()})), st.text(min_size=1))
def test_the_progress_of_a_pull(lines: list[dict[str, str]], digest: str) -> None:
    progress = "".join(json.dumps(line) + "\r\n" for line in [*lines, {"status": "Digest: " + digest}]).encode()
    if any(line.get("error") for line in lines):
        with pytest.raises(DockerError):
            pulled_digest(progress)
    else:
        assert pulled_digest(progress) == digest


@given(st.binary())
def test_any_progress_is_read_or_refused(progress: bytes) -> None:
    with contextlib.suppress(DockerError):
        pulled_digest(progress)


url = st.text(st.characters(blacklist_categories=("Cs", "Cc"), blacklist_characters='"\\\''), max_size=30)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="Python reads no TOML")
@given(st.lists(st.tuples(url, st.sampled_from(['"', "'"]), st.sampled_from(["", " ", "\t"])), unique_by=lambda each: each[0]), st.booleans())
def test_hosts_are_those_that_toml_has(hosts: list[tuple[str, str, str]], server: bool) -> None:
    import tomllib

    text = 'server = "https://registry.example.com"\n\n' if server else "# no server\n"
    for name, quote, space in hosts:
        text += f"{space}[{space}host{space}.{space}{quote}{name}{quote}{space}]  # [host.\"x\"]\n  capabilities = [\"pull\"]\n"
        text += f"  [host.{quote}{name}{quote}.header]\n    x = [\"host\"]\n"
    assert hosts_of(text) == list(tomllib.loads(text).get("host", {}))


@given(st.text())
def test_any_text_has_hosts_or_none(text: str) -> None:
    hosts_of(text)


@pytest.mark.parametrize("directory, registry", [
    ("docker.io", "docker.io"), ("mirror:5000", "mirror:5000"), ("mirror_5000_", "mirror:5000"), ("_default", ""), ("my_registry", "my_registry"),
])
def test_whose_directory_it_is(directory: str, registry: str) -> None:
    assert registry_of(directory) == registry


@pytest.mark.parametrize("registry, insecure", [
    ("127.0.0.1:5000", True), ("localhost:5000", True), ("10.1.2.3", True), ("10.2.0.1:5000", False), ("a.invalid:5000", True), ("b.invalid:5000", False),
    ("[::1]:5000", True), ("[2001:db8::1]:5000", False),
])
def test_what_docker_does_not_ask_a_certificate_of(registry: str, insecure: bool) -> None:
    assert is_insecure(registry, ["127.0.0.0/8", "::1/128", "10.1.0.0/16", "a.invalid:5000"]) is insecure
