# Copyright (c) 2026, mirrorfleet contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.mirrorfleet.registry.plugins.module_utils.errors import RegistryFleetError
from ansible_collections.mirrorfleet.registry.plugins.module_utils.image_reference import (
    ImageReference,
    ImageReferenceError,
    is_repository,
    parse_image_reference,
)

SHA256 = "sha256:" + "f" * 64
SHA512 = "sha512:" + "0" * 128

components = st.from_regex(r"[a-z0-9]+((\.|_|__|-+)[a-z0-9]+){0,3}", fullmatch=True)
domains = st.one_of(
    st.from_regex(r"[a-z0-9]{1,9}(\.[A-Za-z0-9]{1,5}){1,3}(:[0-9]{1,5})?", fullmatch=True),
    st.from_regex(r"[a-z0-9]{1,9}:[0-9]{1,5}", fullmatch=True),
    st.sampled_from(["localhost", "localhost:5000", "[2001:db8::1]", "[::1]:5000", "docker.io", "Registry"]),
)
tags = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}", fullmatch=True)
digests = st.one_of(st.from_regex(r"sha256:[a-f0-9]{64}", fullmatch=True), st.from_regex(r"sha512:[a-f0-9]{128}", fullmatch=True))
references = st.builds(
    ImageReference,
    domains,
    st.lists(components, min_size=2, max_size=5).map("/".join).filter(lambda path: len(path) <= 255),
    st.one_of(st.just(""), tags),
    st.one_of(st.just(""), digests),
)


# The cases of reference_test.go and normalize_test.go in github.com/distribution/reference.
@pytest.mark.parametrize(("text", "domain", "path", "tag", "digest"), [
    ("test_com", "docker.io", "library/test_com", "", ""),
    ("test.com:tag", "docker.io", "library/test.com", "tag", ""),
    ("test.com:5000", "docker.io", "library/test.com", "5000", ""),
    ("test.com/repo:tag", "test.com", "repo", "tag", ""),
    ("test:5000/repo", "test:5000", "repo", "", ""),
    ("test:5000/repo:tag", "test:5000", "repo", "tag", ""),
    (f"test:5000/repo@{SHA256}", "test:5000", "repo", "", SHA256),
    (f"test:5000/repo:tag@{SHA256}", "test:5000", "repo", "tag", SHA256),
    ("lowercase:Uppercase", "docker.io", "library/lowercase", "Uppercase", ""),
    ("Uppercase/lowercase:tag", "Uppercase", "lowercase", "tag", ""),
    ("sub-dom1.foo.com/bar/baz/quux:some-long-tag", "sub-dom1.foo.com", "bar/baz/quux", "some-long-tag", ""),
    ("b.gcr.io/test.example.com/my-app:test.example.com", "b.gcr.io", "test.example.com/my-app", "test.example.com", ""),
    (f"xn--7o8h.com/myimage:xn--7o8h.com@{SHA512}", "xn--7o8h.com", "myimage", "xn--7o8h.com", SHA512),
    ("192.168.1.1:5000/repo:5050", "192.168.1.1:5000", "repo", "5050", ""),
    ("[2001:db8:1:2:3:4:5:6]/repo:tag", "[2001:db8:1:2:3:4:5:6]", "repo", "tag", ""),
    (f"[2001:db8::1]:5000/repo:tag@{SHA256}", "[2001:db8::1]:5000", "repo", "tag", SHA256),
    ("localhost/repo", "localhost", "repo", "", ""),
    ("docker.io/ubuntu", "docker.io", "library/ubuntu", "", ""),
    ("index.docker.io/library/ubuntu:24.04", "docker.io", "library/ubuntu", "24.04", ""),
    ("docker/docker", "docker.io", "docker/docker", "", ""),
    ("a--b/c__d", "docker.io", "a--b/c__d", "", ""),
    ("x.io/" + "a/" * 127 + "a", "x.io", "a/" * 127 + "a", "", ""),
])
def test_a_reference_is_parsed_as_docker_does(text: str, domain: str, path: str, tag: str, digest: str) -> None:
    assert parse_image_reference(text) == ImageReference(domain, path, tag, digest)


@pytest.mark.parametrize(("text", "why"), [
    ("", "empty"),
    (":justtag", "no path"),
    (f"@{SHA256}", "no path"),
    ("repo@sha256:" + "f" * 34, "no digest"),
    ("repo@sha256:" + "F" * 64, "no digest"),
    ("validname@invaliddigest:" + "f" * 64, "no digest"),
    (f"repo@{SHA256}@{SHA256}", "no digest"),
    ("Uppercase:tag", "lower case"),
    ("test:5000/Uppercase/lowercase:tag", "lower case"),
    ("x.io/" + "a/" * 127 + "aa", "256 characters"),
    ("aa/asdf$$^/aa", "no path"),
    ("[2001:db8::1]", "no"),
    ("[fe80::1%eth0]:5000/repo", "no domain"),
    ("-x.io/repo", "no domain"),
    ("docker///docker", "no path"),
    ("docker/", "no path"),
    ("/docker", "no path"),
    ("a_-b", "no path"),
    ("a...b", "no path"),
    ("svc/../app", "no path"),
    ("svc/app:", "no tag"),
    ("svc/app:.x", "no tag"),
    ("svc/app:" + "x" * 129, "no tag"),
    ("svc/app:1\n", "no tag"),
    ("svc/ä", "no path"),
    ("svc/٣", "no path"),
    ("svc/app:٣", "no tag"),
    ("svc/app 1", "no path"),
    ("https://x.io/app", "no domain"),
    ("1a3f5e7d9c" * 6 + "1a3f", "ID"),
])
def test_what_docker_refuses_is_refused_and_named(text: str, why: str) -> None:
    with pytest.raises(ImageReferenceError, match=why) as caught:
        parse_image_reference(text)
    assert repr(text) in str(caught.value)


@pytest.mark.parametrize(("text", "path"), [("app:1", "app"), ("svc/app", "svc/app"), ("docker.io/app", "library/app"), ("ghcr.io/org/app", "org/app")])
def test_a_registry_known_by_its_url_is_asked_for_the_path_as_written(text: str, path: str) -> None:
    assert parse_image_reference(text, default_domain="").path == path


@pytest.mark.parametrize(("text", "target"), [("a", "latest"), ("a:1", "1"), (f"a:1@{SHA256}", SHA256)])
def test_the_digest_counts_before_the_tag(text: str, target: str) -> None:
    assert parse_image_reference(text).target == target


@given(references)
def test_a_reference_survives_being_written_and_parsed(reference: ImageReference) -> None:
    assert parse_image_reference(str(reference)) == reference


@given(st.text(), st.sampled_from(["docker.io", ""]))
def test_any_text_is_parsed_to_a_safe_path_or_refused(text: str, default_domain: str) -> None:
    try:
        reference = parse_image_reference(text, default_domain)
    except RegistryFleetError:
        return
    assert is_repository(reference.path)
    assert parse_image_reference(str(reference), default_domain) == reference
