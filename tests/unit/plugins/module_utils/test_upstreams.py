# Copyright (c) 2026, mirrorfleet contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0
"""mirror_upstreams: what is completed, what is refused, and that no password is ever told."""

from __future__ import annotations

import base64
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.mirrorfleet.registry.plugins.module_utils.errors import RegistryFleetError
from ansible_collections.mirrorfleet.registry.plugins.module_utils.upstreams import KEYS, Missing, normalise, read

CENTRAL: dict[str, Any] = {
    "name": "central", "url": "https://artifactory.example.com:8443", "path_prefix": "/artifactory/api/docker/docker-local",
    "username": "dc-reader", "password": "wander3r", "port": 5000, "canary": "platform/canary",
}
HUB: dict[str, Any] = {"name": "dockerhub", "url": "https://registry-1.docker.io", "port": 5001, "docker_hub": True}
PEM = "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n"


def problems(*items: object) -> list[str]:
    return read(list(items))[1]


def problem_of(**changes: Any) -> str:
    """The one thing that is wrong with central when it is changed so. None leaves a key out."""
    found = problems({key: value for key, value in {**CENTRAL, **changes}.items() if value is not None})
    assert len(found) == 1, found
    prefix = "mirror_upstreams: upstream 'central': "
    assert found[0].startswith(prefix)
    return found[0][len(prefix):]


def test_a_basic_upstream_is_completed() -> None:
    assert normalise([CENTRAL]) == [{
        "name": "central",
        "url": "https://artifactory.example.com:8443",
        "host": "artifactory.example.com:8443",
        "server": {"address": "artifactory.example.com", "port": 8443, "tls": True},
        "path_prefix": "/artifactory/api/docker/docker-local",
        "username": "dc-reader",
        "password": "wander3r",
        "auth": "basic",
        "basic_authorization": "Basic " + base64.b64encode(b"dc-reader:wander3r").decode(),
        "token": None,
        "redirects": [],
        "validate_certs": True,
        "ca_cert": "",
        "docker_hub": False,
        "canary": "platform/canary:latest",
        "wan_bytes_per_second": 0,
        "ports": {"edge": 5000, "cache": 15000, "debug": 16000, "coalescer": 17000, "front": 18000},
    }]


def test_the_docker_hub_is_known() -> None:
    hub, = normalise([HUB])
    assert hub["auth"] == "bearer"
    assert hub["token"] == {
        "realm": "https://auth.docker.io/token", "service": "registry.docker.io", "host": "auth.docker.io",
        "server": {"address": "auth.docker.io", "port": 443, "tls": True}, "path": "/token",
    }
    assert hub["canary"] == "library/hello-world:latest"
    # Its credential is for the token endpoint.
    assert normalise([{**HUB, "username": "u", "password": "p"}])[0]["basic_authorization"] == ""


def test_where_an_upstream_redirects_to_is_known_or_written() -> None:
    assert [each["host"] for each in normalise([HUB])[0]["redirects"]][0] == "production.cloudflare.docker.com"
    assert normalise([{**HUB, "redirect_hosts": []}])[0]["redirects"] == []
    written = ["Storage.example.com", "https://[2001:DB8::1]:8443", "http://minio.lan:9000/", "https://a.example:443"]
    assert normalise([{**CENTRAL, "redirect_hosts": written}])[0]["redirects"] == [
        {"scheme": "https", "host": "storage.example.com", "server": {"address": "storage.example.com", "port": 443, "tls": True}},
        {"scheme": "https", "host": "[2001:db8::1]:8443", "server": {"address": "2001:db8::1", "port": 8443, "tls": True}},
        {"scheme": "http", "host": "minio.lan:9000", "server": {"address": "minio.lan", "port": 9000, "tls": False}},
        {"scheme": "https", "host": "a.example", "server": {"address": "a.example", "port": 443, "tls": True}},
    ]


def test_the_auth_follows_from_what_is_written() -> None:
    plain = {"name": "plain", "url": "http://[2001:DB8::1]:80/", "port": 1024, "canary": "a/b@sha256:" + "0" * 64}
    upstream, = normalise([plain])
    assert (upstream["auth"], upstream["url"], upstream["host"]) == ("none", "http://[2001:db8::1]", "[2001:db8::1]")
    assert upstream["server"] == {"address": "2001:db8::1", "port": 80, "tls": False}
    harbor = {**CENTRAL, "token_realm": "https://harbor.example.com:8443/service/token", "token_service": "harbor-registry"}
    token = normalise([harbor])[0]["token"]
    assert token is not None and (token["host"], token["path"]) == ("harbor.example.com:8443", "/service/token")
    # A mirror of the Docker Hub need not be the Docker Hub.
    assert normalise([{**HUB, "url": "https://hub.example.com"}])[0]["auth"] == "none"


def test_values_that_templates_make_are_taken() -> None:
    upstream, = normalise([{**CENTRAL, "port": "5000", "ca_cert": PEM.strip()}])
    assert (upstream["ports"]["front"], upstream["ca_cert"]) == (18000, PEM)


@pytest.mark.parametrize(("written", "bytes_per_second"), [(100, 12_500_000), ("2.5", 312_500), (0.1, 12_500), (10000, 1_250_000_000)])
def test_a_limit_is_mbit_and_becomes_bytes(written: object, bytes_per_second: int) -> None:
    assert normalise([{**CENTRAL, "wan_limit_mbit": written}])[0]["wan_bytes_per_second"] == bytes_per_second


@pytest.mark.parametrize(("changes", "problem"), [
    ({"url": "artifactory.example.com"}, "url: 'artifactory.example.com': has no scheme. Write https://artifactory.example.com."),
    ({"url": "ftp://a.b"}, "url: 'ftp://a.b': write http:// or https:// instead of ftp://."),
    ({"url": "https://a.b/v2/"}, "url: 'https://a.b/v2/': leave /v2/ out: it is added. Write url: https://a.b."),
    ({"url": "https://a.b:5000/x/y/"}, "url: 'https://a.b:5000/x/y/': has a path. Write url: https://a.b:5000 and path_prefix: /x/y."),
    ({"url": "https://docker.io"}, "url: 'https://docker.io': is not the Docker Hub's registry. Write https://registry-1.docker.io."),
    ({"url": "https://a.b?x=1"}, "url: 'https://a.b?x=1': leave out what follows ? or #."),
    ({"url": "https://"}, "url: 'https://': has no valid host and port. Write https://host or https://host:port."),
    ({"url": "https://a_b.c"}, "url: 'https://a_b.c': has no valid host and port. Write https://host or https://host:port."),
    ({"url": "https://a.b:0"}, "url: 'https://a.b:0': has no valid host and port. Write https://host or https://host:port."),
    ({"url": ["https://a.b"]}, "url: a list: must be text."),
    ({"port": 52536}, "port: 52536: write a port between 1024 and 52535 (ports up to 13000 above it belong to the upstream too)."),
    ({"port": True}, "port: True: write a port between 1024 and 52535 (ports up to 13000 above it belong to the upstream too)."),
    ({"path_prefix": "x/"}, "path_prefix: 'x/': write a path that begins with / and does not end with one, like "
                            "/artifactory/api/docker/docker-local."),
    ({"path_prefix": "/x/../y"}, "path_prefix: '/x/../y': write a path that begins with / and does not end with one, like "
                                 "/artifactory/api/docker/docker-local."),
    ({"path_prefix": "/x/v2"}, "path_prefix: '/x/v2': leave /v2 out: it is added. Write /x."),
    ({"username": "a:b"}, "username: 'a:b': has a colon in it, which Basic and Bearer authentication cannot carry."),
    ({"password": 12345678}, "password: must be text. Put it in quotes."),
    ({"password": "wander3r\n"}, "password: has a line break or a control character in it."),
    ({"password": "CHANGE-ME"}, "password: is still the example's CHANGE-ME. Write the real one."),
    ({"password": "$ANSIBLE_VAULT;1.1;AES256\n61"}, "password: is still encrypted. Write it with !vault, and run with --vault-password-file or "
                                                    "--ask-vault-pass."),
    ({"password": Missing("no vault secrets")}, "password: has no value (no vault secrets). Define it in the vault, and give the vault's password."),
    ({"username": None}, "password: is there without username. Write both, or neither where the upstream asks for none."),
    ({"auth": "digest"}, "auth: 'digest': write none, basic or bearer."),
    ({"auth": "none"}, "auth: 'none': would never use username and password. Write basic or bearer, or leave them out."),
    ({"auth": "basic", "username": None, "password": None}, "auth: 'basic': needs username and password."),
    ({"token_service": "x"}, "token_service: is used with auth: bearer only. Write auth: bearer, or leave it out."),
    ({"token_realm": "https://a.b/token"}, "token_service: is missing, and auth is bearer. Write what the upstream's /v2/ answers in "
                                           "WWW-Authenticate, like registry.example.com."),
    ({"docker_hub": "yes"}, "docker_hub: 'yes': write true or false."),
    ({"canary": None}, "canary: is missing. Write a small image that is there, as the upstream names it (library/hello-world:latest): "
                       "it is pulled to prove that the mirror works."),
    ({"canary": "artifactory.example.com/a/b:1"}, "canary: 'artifactory.example.com/a/b:1': leave the registry's name out. Write a/b:1."),
    ({"canary": "Team/app"}, "canary: 'Team/app': write an image as the upstream names it, like library/hello-world:latest."),
    ({"ca_cert": "/etc/ssl/ca.pem"}, "ca_cert: '/etc/ssl/ca.pem': write the PEM text itself, as \"{{ lookup('ansible.builtin.file', 'ca.pem') }}\" "
                                     "gives it."),
    ({"ca_cert": PEM, "url": "http://a.b"}, "ca_cert: is for https, and the url is http. Write https in the url, or leave ca_cert out."),
    ({"validate_cert": False}, "validate_cert: is no key of an upstream. Write validate_certs."),
    ({"wan_limit_mbit": 0}, "wan_limit_mbit: 0: write Mbit/s, from 0.1 to 10000, or leave it out for no limit."),
    ({"wan_limit_mbit": "50M"}, "wan_limit_mbit: '50M': write Mbit/s, from 0.1 to 10000, or leave it out for no limit."),
    ({"wan_limit_mbit": True}, "wan_limit_mbit: True: write Mbit/s, from 0.1 to 10000, or leave it out for no limit."),
    ({"redirect_hosts": "storage.example.com"}, "redirect_hosts: 'storage.example.com': write a list of hosts, like [storage.example.com]."),
    ({"redirect_hosts": ["s3.example.com/bucket"]}, "redirect_hosts: a list: 's3.example.com/bucket': leave the path out. Write s3.example.com."),
    ({"redirect_hosts": ["*.example.com"]}, "redirect_hosts: a list: has no valid host and port. Write https://host or https://host:port."),
    ({"zone": "x"}, f"zone: is no key of an upstream. The keys are {', '.join(KEYS)}."),
])
def test_a_problem_names_the_key_the_value_and_the_remedy(changes: dict[str, Any], problem: str) -> None:
    assert problem_of(**changes) == problem


def test_a_name_that_is_none_is_refused() -> None:
    assert problems({**CENTRAL, "name": "Central_1"}) == [
        "mirror_upstreams: upstream 'Central_1': name: 'Central_1': must begin with a-z and hold a-z, 0-9 and - only. "
        "It names ports, files and metrics.",
    ]


def test_what_is_no_list_of_dictionaries_is_refused() -> None:
    assert read("central")[1] == ["mirror_upstreams: is 'central'. Write a list of upstreams, each with name, url, port."]
    assert read(None)[1] == ["mirror_upstreams: is empty. Write a list of upstreams, each with name, url, port."]
    assert problems("central") == ["mirror_upstreams: item 1: is 'central'. Write a dictionary with name, url, port."]
    assert problems(Missing("'x' is undefined")) == ["mirror_upstreams: item 1: has no value ('x' is undefined)."]


def test_a_faulty_upstream_takes_its_port_all_the_same() -> None:
    assert problems({**CENTRAL, "canary": "A"}, {**HUB, "port": 5000})[-1:] == [
        "mirror_upstreams: upstreams 'central' and 'dockerhub' both have port 5000. Give each its own.",
    ]


@pytest.mark.parametrize(("port", "use"), [(15000, "cache"), (16000, "debug"), (17000, "coalescer"), (18000, "front")])
def test_derived_ports_must_be_free(port: int, use: str) -> None:
    assert problems(CENTRAL, {**HUB, "port": port})[0] == (
        f"mirror_upstreams: upstream 'dockerhub': port: {port}: its edge port {port} is the {use} port of upstream 'central'. Write another port."
    )


def test_an_error_lists_everything() -> None:
    with pytest.raises(RegistryFleetError) as error:
        normalise([{**CENTRAL, "port": 0, "canary": "A"}, {**HUB, "auth": "x"}])
    assert len(str(error.value).splitlines()) == 3


VALUES = st.none() | st.booleans() | st.integers() | st.text() | st.lists(st.text(), max_size=2) | st.sampled_from([
    "https://a.b", "https://a.b/c", "/x", "/x/v2", "central", "basic", "bearer", "https://auth.example.com/token", "library/busybox:1", PEM,
])


@given(st.lists(st.dictionaries(st.sampled_from((*KEYS, "passwrd")), VALUES), max_size=3))
def test_whatever_is_written_there_is_an_answer(items: list[dict[str, Any]]) -> None:
    good, found = read(items)
    assert found or len(good) == len(items)
    assert all("\n" not in line for line in found)
    for upstream in good:
        # No program that these are written for needs quotes around them.
        for text in (upstream["name"], upstream["host"], upstream["path_prefix"], upstream["canary"]):
            assert re.fullmatch(r"[A-Za-z0-9._~:/@\[\]-]*", text)


@given(st.dictionaries(st.sampled_from(KEYS), VALUES), st.sampled_from(["password", "url", "token_realm"]), st.sampled_from(["", "@", "/", ":", "%"]))
def test_a_password_is_never_told(changes: dict[str, Any], key: str, character: str) -> None:
    secret = f"s3cr3t{character}w0rd"
    value = secret if key == "password" else f"https://dc-reader:{secret}@a.b"
    assert not any("s3cr3t" in line or "w0rd" in line for line in problems({**CENTRAL, **changes, key: value}))
