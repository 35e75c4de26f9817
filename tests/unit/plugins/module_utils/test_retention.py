# Copyright (c) 2026, mirrorfleet contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0
"""Which tags go: what must be true whatever a repository holds."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.mirrorfleet.registry.plugins.module_utils.retention import Rule, Tag, expired, subject

DAY = 86400.0
NOW = 1000 * DAY
DIGESTS = ["sha256:" + letter * 64 for letter in "abcdef"]
A, B, C, D, E, F = DIGESTS


def gone(tags: list[Tag], rule: Rule, parts: dict[str, list[str]] | None = None, grace: float = DAY) -> set[str]:
    return expired(tags, rule, NOW, lambda digest: (parts or {}).get(digest, []), grace)


def tag(name: str, digest: str, days: float) -> Tag:
    """Pushed so many days ago."""
    return Tag(name, digest, NOW - days * DAY)


def signature(digest: str, kind: str = ".sig") -> str:
    return digest.replace(":", "-") + kind


def test_the_newest_images_stay() -> None:
    tags = [tag("1", A, 40), tag("2", B, 30), tag("3", C, 20), tag("4", D, 10)]
    assert gone(tags, Rule(2, 0)) == {"1", "2"}
    assert gone(tags, Rule(9, 0)) == set()


def test_an_image_counts_once_and_goes_with_all_of_its_tags() -> None:
    tags = [tag("1", A, 40), tag("2", B, 30), tag("3", C, 20), tag("latest", C, 20), tag("stable", A, 5), tag("old", B, 50)]
    assert gone(tags, Rule(2, 0)) == {"2", "old"}


def test_days_are_counted_from_the_last_push() -> None:
    tags = [tag("1", A, 40), tag("2", B, 30), tag("again", A, 1)]
    assert gone(tags, Rule(0, 14)) == {"2"}
    assert gone([tag("1", A, 40), tag("2", B, 30)], Rule(1, 14)) == {"1"}
    assert gone([tag("1", A, 40), tag("2", B, 30)], Rule(0, 14)) == {"1", "2"}


def test_a_signature_goes_with_its_image_and_is_none_itself() -> None:
    tags = [tag("1", A, 40), tag("2", B, 30), tag(signature(A), C, 39), tag(signature(B), D, 1.5), tag(signature(B, ""), E, 2)]
    assert gone(tags, Rule(1, 0)) == {"1", signature(A)}
    # Of an image of one platform.
    assert gone([*tags, tag(signature(F, ".att"), E, 9)], Rule(1, 0), {B: [F]}) == {"1", signature(A)}
    assert gone([*tags, tag(signature(F, ".att"), E, 9)], Rule(1, 0)) == {"1", signature(A), signature(F, ".att")}
    # What it is about may be on its way.
    assert gone([*tags, tag(signature(F), E, 0.5)], Rule(1, 0)) == {"1", signature(A)}


def test_what_is_about_a_companion_stays_with_it() -> None:
    """The signature of an image's list of contents; and that of an image that is pulled by its digest."""
    sbom, others = "sha256:" + "5b" * 32, "sha256:" + "07" * 32
    tags = [
        Tag("1", A, NOW - 5 * DAY), Tag(A.replace(":", "-") + ".sbom", sbom, NOW - 5 * DAY), Tag(signature(sbom), others, NOW - 5 * DAY),
        Tag(signature(others), sbom, NOW - 5 * DAY), Tag(signature("sha256:" + "99" * 32), sbom, NOW - 5 * DAY),
    ]
    assert gone(tags, Rule(20, 0)) == {signature("sha256:" + "99" * 32)}
    assert expired(tags, Rule(0, 1), NOW, lambda _digest: (), 0) == {each.name for each in tags}
    assert expired(tags, Rule(0, 1), NOW, lambda _digest: (), 0, used={A}) == {"1", signature("sha256:" + "99" * 32)}


@pytest.mark.parametrize("name", ["sha256-abc.sig", "sha256", "1", A.replace(":", "-") + ".SIG", "x" + signature(A)])
def test_only_a_whole_digest_makes_a_companion(name: str) -> None:
    assert subject(name) == ""


TAGS = st.lists(
    st.builds(
        Tag, st.sampled_from([*map(str, range(12)), *map(signature, DIGESTS)]), st.sampled_from(DIGESTS), st.integers(0, 40).map(lambda age: NOW - age * DAY),
    ),
    unique_by=lambda each: each.name, max_size=12,
)
RULES = st.builds(Rule, st.integers(0, 5), st.integers(0, 30)).filter(lambda rule: rule.newest or rule.days)


@given(TAGS, RULES)
def test_what_must_be_true(tags: list[Tag], rule: Rule) -> None:
    names = gone(tags, rule)
    images = [each for each in tags if not subject(each.name)]
    kept = [each for each in images if each.name not in names]
    kept_digests = {each.digest for each in kept}
    # Never more than was there, never all of a repository if so many newest stay.
    assert names <= {each.name for each in tags}
    assert len(kept_digests) >= min(rule.newest, len({each.digest for each in images}))
    # An image has all of its tags, or none.
    assert not kept_digests & {each.digest for each in images if each.name in names}
    # Young images stay, and no older image stays instead of a newer one.
    assert not [each for each in images if each.name in names and NOW - each.pushed < rule.days * DAY]
    pushed = {each.digest: max(other.pushed for other in images if other.digest == each.digest) for each in images}
    assert not [1 for digest in pushed if digest not in kept_digests for other in kept_digests if pushed[other] < pushed[digest]]
    # A signature stays with what stays.
    assert not [each for each in tags if each.name in names and subject(each.name) in kept_digests]
    # A second run has nothing to do.
    assert gone([each for each in tags if each.name not in names], rule) == set()
