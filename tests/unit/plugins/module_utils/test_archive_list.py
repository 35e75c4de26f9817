# Copyright (c) 2026, mirrorfleet contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0
"""What is refused of an archive's images and upstreams, and where what is right comes from."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.mirrorfleet.registry.plugins.module_utils.archive_list import parse, read, resolve
from ansible_collections.mirrorfleet.registry.plugins.module_utils.archive_tags import fitting, is_pattern
from ansible_collections.mirrorfleet.registry.plugins.module_utils.errors import RegistryFleetError
from ansible_collections.mirrorfleet.registry.plugins.module_utils.image_reference import is_repository, is_tag
from ansible_collections.mirrorfleet.registry.plugins.module_utils.registries import check
from ansible_collections.mirrorfleet.registry.plugins.module_utils.upstreams import Missing, normalise

DIGEST = f"sha256:{'ab' * 32}"
UPSTREAMS = normalise([
    {"name": "central", "url": "https://artifactory.example.com", "path_prefix": "/artifactory/api/docker/local", "port": 5000, "canary": "a/b:1"},
    {"name": "dockerhub", "url": "https://registry-1.docker.io", "port": 5001, "docker_hub": True, "username": "reader", "password": "wander3r"},
])
MIRROR = {"name": "mirror1.zagreb", "scheme": "https", "username": "dc", "password": "f0g", "ca_certificate": "PEM"}


@pytest.mark.parametrize(("text", "to", "tag", "digest"), [
    ("debian:12", "docker.io/library/debian", "12", ""),
    ("docker.io/library/debian:12", "docker.io/library/debian", "12", ""),
    (f" quay.io/org/app:v1@{DIGEST}", "quay.io/org/app", "v1", DIGEST),
    ("Quay.IO/org/app:v1*", "quay.io/org/app", "v1*", ""),
    ("quay.io/org/app:v1.[0-9]", "quay.io/org/app", "v1.[0-9]", ""),
    ("registry.example.com:8443/svc/app:1", "registry.example.com_8443/svc/app", "1", ""),
    ("localhost/app:1", "localhost/app", "1", ""),
])
def test_an_image_has_a_place_in_the_archive(text: str, to: str, tag: str, digest: str) -> None:
    found = parse(text)
    assert (found["to"], found["tag"], found["digest"]) == (to, tag, digest)


@pytest.mark.parametrize(("text", "says"), [
    ("debian", "does not say which tags. Write debian:TAG, or debian:1.* for all that begin so."),
    (f"debian@{DIGEST}", f"does not say which tags. Write debian:TAG@{DIGEST}"),
    (f"debian:1*@{DIGEST}", "would hold many tags at one digest. Write the tag that is held."),
    ("debian:12@sha256:ab", "'sha256:ab' is no digest"),
    ("debian:v[", "'v[' is no tag, and no pattern of tags"),
    ("debian:-1", "'-1' is no tag, and no pattern of tags"),
    ("debian:", "'' is no tag, and no pattern of tags"),
    ("quay.io/Org/app:1", "must be in lower case"),
    ("[::1]:5000/app:1", "which no repository can be called"),
    (f"app:sha256-{'ab' * 32}.sig", "names signatures or history"),
    ("app:1.history-20260521T101530Z-2d1b2f0e9a5f", "names signatures or history"),
    (f"{'a' * 250}/app:1", "which no repository can be called"),
    (12, "12 is no image."),
])
def test_an_image_that_can_not_be_meant_is_refused(text: Any, says: str) -> None:
    with pytest.raises(RegistryFleetError, match=".") as error:
        parse(text)
    assert says in str(error.value)


@given(st.text() | st.from_regex(r"[a-z.:@/*?\[\]_-]{1,40}", fullmatch=True))
def test_anything_is_an_image_or_gets_a_sentence(text: str) -> None:
    try:
        found = parse(text)
    except RegistryFleetError as error:
        assert str(error)
    else:
        assert is_repository(found["to"]) and (is_tag(found["tag"]) or (is_pattern(found["tag"]) and not found["digest"]))


@pytest.mark.parametrize(("item", "problem"), [
    ({}, "images: is missing. Write a list of images, like docker.io/library/debian:12 or quay.io/org/app:v1*."),
    ({"images": []}, "images: is empty."),
    ({"images": "debian:12"}, "images: is 'debian:12'. Write a list"),
    ({"images": Missing("'wanted' is undefined")}, "images: has no value ('wanted' is undefined)."),
    ({"images": ["debian:12", f"docker.io/library/debian:12@{DIGEST}"]}, "images: docker.io/library/debian:12 is there 2 times. Leave it there once."),
    ({"most_tags": 0}, "most_tags: 0: write a whole number from 1 to 9999."),
    ({"most_tags": True}, "most_tags: True: write"),
    ({"platforms": "linux/amd64"}, "platforms: is no list of text. Write one like [linux/amd64, linux/arm64]"),
    ({"platforms": ["amd64"]}, "platforms: 'amd64' is no platform. Write os/architecture[/variant]"),
    ({"upstreams": {"quay.io": {}}}, "upstreams: is a dictionary. Write a list"),
    ({"upstreams": [{"url": "https://quay.io"}]}, "upstreams: item 1: has no domain."),
    ({"upstreams": [{"domain": "quay.io", "user": "a"}]}, "upstreams: 'quay.io': user: is no key of it. Write username."),
    ({"upstreams": [{"domain": "quay.io", "path_prefix": "/a"}]}, "path_prefix: skopeo finds no registry below a path: pull by a mirror"),
    ({"upstreams": [{"domain": "quay.io", "username": "a"}]}, "upstreams: 'quay.io': username: is there without password."),
    ({"upstreams": [{"domain": "quay.io", "username": "a", "password": "CHANGE-ME"}]}, "upstreams: 'quay.io': password: is still the example's CHANGE-ME."),
    ({"upstreams": [{"domain": "quay.io", "url": "https://a:wander3r@quay.io"}]}, "url: 'https://…@quay.io': holds credentials."),
    ({"upstreams": [{"domain": "quay.io"}, {"domain": "Quay.io"}]}, "upstreams: quay.io is there 2 times."),
])
def test_what_can_not_be_meant_is_refused(item: dict[str, Any], problem: str) -> None:
    found = read({"images": ["debian:12"], **item} if item else {})[1]
    assert len(found) == 1 and problem in found[0], found
    assert "wander3r" not in found[0]


def test_only_an_archive_takes_its_keys_and_it_needs_no_writer() -> None:
    good = {"name": "archive", "scope": "archive", "port": 5013, "images": ["debian:12"]}
    found, problems = check([good], [], 14, 20)
    assert not problems and found[0]["archive"] and (found[0]["keep"], found[0]["deletes"]) == (None, False)
    assert check([{**good, "keep_days": 3}], [], 14, 20)[1] == [
        "registry_here: registry 'archive': keep_days: the scope archive does not take it (sandbox and ci_tests does). Take it out, or write another scope."
    ]
    assert check([{"name": "play", "scope": "sandbox", "port": 5010, "images": ["debian:12"]}], [], 14, 20)[1] == [
        "registry_here: registry 'play': images: the scope sandbox does not take it (archive does). Take it out, or write another scope."
    ]


def sources(images: list[str], mirror: str = "", known: Any = None, **more: Any) -> dict[str, tuple[str, str, str]]:
    found, problems = resolve(read({"images": images, **more})[0], UPSTREAMS if known is None else known, {**MIRROR, "name": mirror})
    assert not problems
    return {each["domain"]: (each["url"], each["password"], each["ca_certificate"]) for each in found}


def test_images_come_from_where_they_should() -> None:
    own = [{"domain": "docker.io", "url": "http://proxy.example.com:3128", "username": "me", "password": "mine"}]
    assert sources(["debian:12", "quay.io/a:1", "ghcr.io:8443/a:1"]) == {
        "docker.io": ("https://registry-1.docker.io", "wander3r", ""), "quay.io": ("https://quay.io", "", ""), "ghcr.io:8443": ("https://ghcr.io:8443", "", ""),
    }
    assert sources(["debian:12"], known=[]) == {"docker.io": ("https://registry-1.docker.io", "", "")}
    assert sources(["debian:12"], upstreams=own) == {"docker.io": ("http://proxy.example.com:3128", "mine", "")}
    assert sources(["debian:12", "artifactory.example.com/svc/app:1", "quay.io/a:1"], "mirror1.zagreb") == {
        "docker.io": ("https://mirror1.zagreb:5001", "f0g", "PEM"), "artifactory.example.com": ("https://mirror1.zagreb:5000", "f0g", "PEM"),
        "quay.io": ("https://quay.io", "", ""),
    }
    assert sources(["debian:12"], "mirror1.zagreb", upstreams=own) == {"docker.io": ("http://proxy.example.com:3128", "mine", "")}


def test_an_upstream_that_skopeo_can_not_reach_is_told() -> None:
    archive = read({"images": ["artifactory.example.com/svc/app:1"]})[0]
    (problem,) = resolve(archive, UPSTREAMS, {"name": ""})[1]
    assert problem.startswith("images: artifactory.example.com is the upstream 'central', which has a path_prefix")
    (problem,) = resolve(archive, UPSTREAMS, {"name": "https://mirror1"})[1]
    assert problem == "registry_archive_mirror: 'https://mirror1': write the name of a mirror host, without a port, or leave it out."


def test_the_highest_versions_come_first() -> None:
    tags = ["v1.9", "v1.10", "v1.10-rc1", "v2", "latest", f"sha256-{'ab' * 32}.sig", "v1.9.history-20260521T101530Z-2d1b2f0e9a5f"]
    assert fitting(tags, "v1.*", 9) == (["v1.10-rc1", "v1.10", "v1.9"], 0)
    assert fitting(tags, "*", 2) == (["v2", "v1.10-rc1"], 3)


@given(st.lists(st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,12}", fullmatch=True)), st.integers(1, 5))
def test_any_tags_can_be_put_in_order(tags: list[str], most: int) -> None:
    found, beyond = fitting(tags, "*", most)
    assert len(found) <= most and len(found) + beyond == len(tags)
