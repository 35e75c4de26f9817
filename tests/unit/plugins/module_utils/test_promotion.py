# Copyright (c) 2026, mirrorfleet contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0
"""The rules of promotion, without a registry."""

from __future__ import annotations

import json
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.mirrorfleet.registry.plugins.module_utils.errors import RegistryFleetError
from ansible_collections.mirrorfleet.registry.plugins.module_utils.image_reference import is_tag
from ansible_collections.mirrorfleet.registry.plugins.module_utils.promotion import (
    Facts,
    Policy,
    Wanted,
    history_tag,
    merge_attached,
    merge_referrers,
    parse_all,
    parse_key,
    parse_policy,
    parse_time,
    parse_wanted,
    read_facts,
    record_line,
    source_allowed,
    violations,
)

DIGEST = "sha256:" + "ab" * 32
NOW = datetime(2026, 5, 21, 10, 15, 30, tzinfo=timezone.utc)
names = st.from_regex(r"[a-z0-9]{1,8}(/[a-z0-9]{1,8}){0,2}", fullmatch=True)
tag_names = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}", fullmatch=True).filter(lambda tag: ".history-" not in tag and not tag.startswith("sha"))
digests = st.from_regex(r"sha256:[a-f0-9]{64}", fullmatch=True)
times = st.datetimes(datetime(1990, 1, 1), datetime(2200, 1, 1), timezones=st.just(timezone.utc))


@given(names, tag_names, st.one_of(st.just(""), digests), st.one_of(st.none(), st.tuples(names, tag_names)))
def test_what_is_written_is_what_is_wanted(path: str, tag: str, digest: str, other: tuple[str, str] | None) -> None:
    text = f"{path}:{tag}" + (f"@{digest}" if digest else "") + (f" as  {other[0]}:{other[1]}" if other else "")
    to_path, to_tag = other or (path, tag)
    assert parse_wanted(text) == Wanted(text, path, tag, digest, to_path, to_tag)
    with_registries = f"from.test:5000/{path}:{tag}" + (f" as to.test/{to_path}:{to_tag}" if other else "")
    assert parse_wanted(with_registries, "from.test:5000", "to.test").to == f"{to_path}:{to_tag}"


def test_a_path_may_begin_as_a_domain_does() -> None:
    wanted = parse_wanted("archive:5013/docker.io/library/debian:12 as prod.test/quay.io_8443/debian:12", "archive:5013", "prod.test")
    assert (wanted.path, wanted.to_path) == ("docker.io/library/debian", "quay.io_8443/debian")


@given(st.one_of(st.text(), st.from_regex(r"[a-z:@/ .as-]{0,30}( as [a-z:@/ .-]{0,20})?", fullmatch=True)))
def test_anything_else_is_refused_with_a_reason(text: str) -> None:
    try:
        wanted = parse_wanted(text)
    except RegistryFleetError as error:
        assert str(error).startswith("images: ")
    else:
        assert is_tag(wanted.to_tag) and (wanted.tag or wanted.digest)


@pytest.mark.parametrize(("text", "says"), [
    ("svc/app", "has neither a tag nor a digest. Write which one is meant, like svc/app:1.4."),
    (f"svc/app@{DIGEST}", f"does not say which tag it gets. Write svc/app@{DIGEST} as svc/app:TAG."),
    ("svc/app:1 as svc/app", "does not say which tag it gets"),
    (f"svc/app:1 as svc/app:2@{DIGEST}", "does not say which tag it gets"),
    ("quay.io/svc/app:1", "names the registry quay.io, and source is snapshots.test"),
    ("svc/app:1 as quay.io/svc/app:1", "names the registry quay.io, and target is prod.test"),
    (f"svc/app:1 as svc/app:sha256-{'ab' * 32}.sig", "which names signatures or history"),
    (f"svc/app:{history_tag('1', DIGEST, NOW)}", "which names signatures or history"),
    ("svc/app:1 to svc/app:2", "has several words"),
    ("", "it is empty"),
])
def test_what_can_not_be_meant_is_told(text: str, says: str) -> None:
    with pytest.raises(RegistryFleetError, match="images: ") as caught:
        parse_wanted(text, "snapshots.test", "prod.test")
    assert says in str(caught.value)


def test_two_images_do_not_become_one_tag() -> None:
    assert [wanted.to for wanted in parse_all(["a:1", "b:1", "a:1", "a:1 as c:1"])] == ["a:1", "b:1", "c:1"]
    with pytest.raises(RegistryFleetError) as caught:
        parse_all(["a:1", "a:2 as a:1", "b"])
    assert "'a:1' and 'a:2 as a:1' would both become a:1" in str(caught.value) and "'b' has neither" in str(caught.value)


@pytest.mark.parametrize(("pattern", "url", "path", "fits"), [
    ("ci.test/**", "https://ci.test", "svc/app", True),
    ("ci.test/*", "https://ci.test", "svc/app", False),
    ("ci.test/svc/*", "https://ci.test", "svc/app", True),
    ("ci.test/svc/*", "https://ci.test", "svc/app/more", False),
    ("ci.test/svc", "https://ci.test", "svc/app", False),
    ("CI.test:5000/svc/app", "http://ci.test:5000", "svc/app", True),
    ("https://ci.test/**", "http://ci.test", "svc/app", False),
    ("https://ci.test/**", "https://ci.test", "svc/app", True),
    ("ci.test/**", "https://ci.test.evil.test", "svc/app", False),
    ("ci.test/**", "https://evil.test", "ci.test/app", False),
    ("*.test/**", "https://ci.test", "svc/app", True),
    ("ci.tes./**", "https://ci.test", "svc/app", False),
])
def test_patterns_of_sources(pattern: str, url: str, path: str, fits: bool) -> None:
    assert source_allowed(url, path, [pattern]) is fits
    assert source_allowed(url, path, ["other.test/**", pattern]) is fits
    assert source_allowed(url, path, [])


@given(names, st.text(max_size=20))
def test_a_pattern_without_a_wildcard_is_only_itself(path: str, other: str) -> None:
    assert source_allowed("https://ci.test", path, [f"ci.test/{path}"])
    if other != path and "*" not in other:
        assert not source_allowed("https://ci.test", path, [f"ci.test/{other}"])


@given(times, st.integers(-14, 14), st.integers(0, 999_999_999))
def test_times_are_read_as_builders_write_them(moment: datetime, hours: int, nanoseconds: int) -> None:
    moment = moment.replace(microsecond=0)
    local = moment.astimezone(timezone(timedelta(hours=hours)))
    assert parse_time(local.isoformat()) == moment
    assert parse_time(f"{moment:%Y-%m-%dT%H:%M:%S}.{nanoseconds:09}Z") == moment


@given(st.one_of(st.text(), st.from_regex(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(Z|[+-][0-9]{2}:[0-9]{2})", fullmatch=True)))
def test_what_is_no_time_is_none(text: str) -> None:
    found = parse_time(text)
    assert found is None or found.tzinfo is not None


@pytest.mark.parametrize(("created", "says"), [
    ("2026-04-22T10:15:30Z", ""),
    ("2026-04-21T10:15:29Z", "it was created at 2026-04-21T10:15:29Z (30.0 days ago), and policy.max_age is 29.0 days"),
    ("2026-05-21T10:20:00Z", ""),
    ("2026-05-21T10:21:00Z", "which is still to come (check the clocks"),
    ("1970-01-01T00:00:00Z", "which a build that can be repeated writes (let it set the annotation org.opencontainers.image.created)"),
    ("0001-01-01T00:00:00Z", "which a build that can be repeated writes"),
    ("yesterday", "when it was created is 'yesterday', which is no time"),
    ("", "it does not say when it was created"),
])
def test_age(created: str, says: str) -> None:
    found = violations(Policy(max_age=29 * 86400), "https://ci.test", "svc/app", [Facts("", {}, created)], NOW)
    assert [says in each for each in found] == ([True] if says else []), found
    assert not violations(Policy(max_age=29 * 86400), "https://ci.test", "svc/app", [Facts("", {}, created)], NOW, with_age=False)


def test_labels_come_from_the_config_and_else_from_annotations_and_the_date_the_other_way() -> None:
    config = {"created": "1970-01-01T00:00:00Z", "config": {"Labels": {"team": "config", "n": 1}}}
    manifest = {"annotations": {"team": "manifest", "stage": "manifest", "org.opencontainers.image.created": "2026-05-01T00:00:00Z"}}
    index = {"annotations": {"stage": "index", "release": "index", "org.opencontainers.image.created": "2026-04-01T00:00:00Z"}}
    facts = read_facts("linux/amd64", config, manifest, index)
    assert [facts.labels.get(name) for name in ("team", "stage", "release", "n")] == ["config", "manifest", "index", None]
    assert facts.created == "2026-05-01T00:00:00Z"


plain = st.none() | st.booleans() | st.integers() | st.text()
json_values = st.recursive(plain, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=10)
objects = st.dictionaries(st.sampled_from(["config", "annotations", "created", "Labels", "x"]), json_values)


@given(objects, objects)
def test_whatever_an_image_says_it_is_judged(config: dict[str, Any], manifest: dict[str, Any]) -> None:
    facts = read_facts("linux/amd64", config, manifest)
    assert violations(Policy(labels={"required": "*"}, max_age=60), "https://ci.test", "a", [facts], NOW)


@given(tag_names, digests, times, st.integers(1, 100_000))
def test_history_tags_are_tags_that_sort_by_time_and_tell_digests_apart(tag: str, digest: str, now: datetime, seconds: int) -> None:
    first, later = history_tag(tag, digest, now), history_tag(tag, digest, now + timedelta(seconds=seconds))
    assert is_tag(first) and first < later and digest[7:19] in first
    assert history_tag(tag, "sha256:" + "0" * 12 + digest[19:], now) != first or digest[7:19] == "0" * 12
    assert first.startswith(tag[:90])


def test_a_history_tag_in_full() -> None:
    assert history_tag("1.4", DIGEST, NOW.astimezone(timezone(timedelta(hours=2)))) == "1.4.history-20260521T101530Z-abababababab"


layer = st.builds(lambda digest, note: {"digest": digest, "annotations": {"signature": note}}, st.sampled_from("abc"), st.sampled_from("xyz"))
layers = st.lists(layer, max_size=5)


@given(layers, layers)
def test_a_merge_has_everything_once_and_then_nothing_is_lacking(there: list[Any], coming: list[Any]) -> None:
    before = json.dumps(there)
    merged = merge_attached({"config": 1, "layers": there}, {"config": 2, "layers": coming})
    assert json.dumps(there) == before
    if merged is None:
        assert all(layer in there for layer in coming)
    else:
        assert merged["config"] == 1 and merged["layers"][:len(there)] == there and all(layer in merged["layers"] for layer in coming)
        assert merge_attached(merged, {"layers": coming}) is None
    assert merge_attached(None, {"layers": coming}) == {"layers": coming}


def test_referrers_are_listed_once() -> None:
    one, two = {"digest": "a", "annotations": {"kept": "1"}}, {"digest": "b"}
    assert merge_referrers({"manifests": [one]}, [{"digest": "a"}, two])["manifests"] == [one, two]
    assert merge_referrers(None, [two])["manifests"] == [two]


@given(st.text())
def test_what_is_no_key_is_refused_and_never_quoted(text: str) -> None:
    for secret in (f"-----BEGIN ENCRYPTED SIGSTORE PRIVATE KEY-----{text}", f"{text} PRIVATE KEY"):
        with pytest.raises(RegistryFleetError) as caught:
            parse_key(secret, "key")
        assert str(caught.value) == "key is a private key. Give the public one, which cosign writes as .pub beside it."
    with pytest.raises(RegistryFleetError, match="key is no public key"):
        parse_key(f"-----BEGIN PUBLIC KEY-----{text}!-----END PUBLIC KEY-----".replace("PRIVATE", ""), "key")


@pytest.mark.parametrize(("given_policy", "says"), [
    ({"max_age": "30"}, "policy.max_age: '30' is no length of time"),
    ({"labels": {"team": ""}}, "policy.labels: team has ''"),
    ({"labels": {"team": None}}, "policy.labels: team has None"),
    ({"sources": ["ci.test"]}, "policy.sources: 'ci.test' names no repository. Write HOST[:PORT]/PATH, like ci.test/** for all of them."),
    ({"sources": ["https://ci.test"]}, "names no repository"),
])
def test_a_policy_that_can_not_be_meant_is_refused(given_policy: dict[str, Any], says: str) -> None:
    with pytest.raises(RegistryFleetError) as caught:
        parse_policy(**{"keys": [], "labels": {}, "max_age": "", "sources": [], **given_policy})
    assert says in str(caught.value)


@given(st.dictionaries(st.sampled_from(["by", "image", "digest"]), st.text()))
def test_a_record_is_one_line(entry: dict[str, str]) -> None:
    line = record_line(**entry)
    assert line.endswith(b"\n") and line.count(b"\n") == 1 and json.loads(line) == entry
