# Copyright (c) 2026, mirrorfleet contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.mirrorfleet.registry.plugins.module_utils.errors import RegistryFleetError
from ansible_collections.mirrorfleet.registry.plugins.module_utils.image_list import by_upstream, read_list
from ansible_collections.mirrorfleet.registry.plugins.module_utils.upstreams import normalise

UPSTREAMS = normalise([
    {"name": "central", "url": "https://artifactory.example.com", "path_prefix": "/artifactory/api/docker/local", "port": 5000, "canary": "a/b:1"},
    {"name": "dockerhub", "url": "https://registry-1.docker.io", "port": 5001, "docker_hub": True},
    {"name": "plain", "url": "https://registry.example.com:8443", "port": 5002, "canary": "a/b:1"},
])
DIGEST = f"sha256:{'0' * 64}"


@pytest.mark.parametrize(("image", "upstream", "reference"), [
    ("busybox:1", "dockerhub", "library/busybox:1"),
    ("docker.io/team/tool", "dockerhub", "team/tool"),
    ("artifactory.example.com/svc/app:1", "central", "svc/app:1"),
    (f"Artifactory.Example.com/svc/app@{DIGEST}", "central", f"svc/app@{DIGEST}"),
    ("registry.example.com:8443/svc/app:1", "plain", "svc/app:1"),
    ("mirror.zagreb:5000/svc/app:1", "central", "svc/app:1"),
    ("mirror.zagreb:5001/library/busybox:1", "dockerhub", "library/busybox:1"),
    ("central svc/app:1", "central", "svc/app:1"),
    ("central  busybox:1 ", "central", "busybox:1"),
    ("dockerhub busybox:1", "dockerhub", "library/busybox:1"),
    ("dockerhub docker.io/busybox:1", "dockerhub", "library/busybox:1"),
    ("plain registry.example.com:8443/svc/app:1", "plain", "svc/app:1"),
    ("plain docker.io/library/busybox:1", "plain", "docker.io/library/busybox:1"),
])
def test_an_image_finds_its_upstream(image: str, upstream: str, reference: str) -> None:
    assert by_upstream([image], UPSTREAMS, ["mirror.zagreb"]) == {upstream: [reference]}


def test_each_image_once_in_order() -> None:
    """By whichever of its names."""
    images = ["central z:1", "busybox:2", "central a:1", "docker.io/library/busybox:2", "artifactory.example.com/z:1", "central z:1"]
    assert by_upstream(images, UPSTREAMS, []) == {"central": ["z:1", "a:1"], "dockerhub": ["library/busybox:2"]}


def test_every_image_that_has_no_upstream_is_named() -> None:
    images = ["quay.io/team/tool:1", "busybox:1", "central SVC:1", "wrong a:1", "mirror.zagreb:5009/a:1", "mirror.elsewhere:5000/a:1", {"a": 1}]
    with pytest.raises(RegistryFleetError) as error:
        by_upstream(images, UPSTREAMS, ["mirror.zagreb"])
    assert str(error.value).splitlines() == [
        "quay.io/team/tool:1: no upstream serves quay.io.",
        "'SVC:1' is no image reference: the path 'SVC' must be in lower case. Write [domain/]path[:tag][@digest], such as svc/app:1",
        "wrong a:1: there is no upstream 'wrong'.",
        "mirror.zagreb:5009/a:1: no upstream serves mirror.zagreb:5009.",
        "mirror.elsewhere:5000/a:1: no upstream serves mirror.elsewhere:5000.",
        "{'a': 1}: {'a': 1} is no text.",
        "The upstreams are: central (artifactory.example.com), dockerhub (docker.io), plain (registry.example.com:8443).",
    ]


def test_two_upstreams_at_one_host_are_told_apart_by_name() -> None:
    both = [*UPSTREAMS, *normalise([{"name": "other", "url": "https://artifactory.example.com", "path_prefix": "/other", "port": 5003, "canary": "a/b:1"}])]
    with pytest.raises(RegistryFleetError, match=r"2 upstreams are at artifactory.example.com; write 'central svc/app…' or 'other svc/app…'"):
        by_upstream(["artifactory.example.com/svc/app:1"], both, [])
    assert by_upstream(["other artifactory.example.com/svc/app:1"], both, []) == {"other": ["svc/app:1"]}


def test_docker_hubs_images_have_no_upstream_without_docker_hub() -> None:
    with pytest.raises(RegistryFleetError, match="busybox:1: no upstream serves docker.io."):
        by_upstream(["busybox:1"], UPSTREAMS[:1], [])


def test_a_file() -> None:
    text = "# Friday's release\n\nbusybox:1   # the canary\r\n  central svc/app:1\n#central svc/old:1\n"
    assert read_list(text) == ["busybox:1", "central svc/app:1"]
    assert read_list("---\n# a YAML list\n- 'busybox:1'\n  - central svc/app:1  # the service\n- \"\"\n") == ["busybox:1", "central svc/app:1"]


@given(st.text())
def test_any_text_is_a_list(text: str) -> None:
    for line in read_list(text):
        assert line and line == line.strip() and "#" not in line


@given(st.lists(st.one_of(st.text(), st.integers(), st.text("central: /.@0aA", max_size=20))))
def test_any_list_is_taken_or_refused(images: list[object]) -> None:
    try:
        found = by_upstream(images, UPSTREAMS, ["mirror.zagreb"])
    except RegistryFleetError as error:
        assert "The upstreams are" in str(error)
    else:
        assert sum(map(len, found.values())) <= len(images)
