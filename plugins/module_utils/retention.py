# Copyright (c) 2026, mirrorfleet contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0
"""Which tags of a repository go. Plain data in and out; nothing is touched here."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Callable, Collection, Iterable

_DAY = 86400.0
# A signature, an attestation or a list of referrers is a tag that names the image it is about:
# github.com/sigstore/cosign/blob/main/specs/SIGNATURE_SPEC.md, opencontainers/distribution-spec "Referrers Tag Schema".
_COMPANION = re.compile(r"(sha256-[0-9a-f]{64}|sha512-[0-9a-f]{128})(\.[a-z0-9]+)?")


@dataclass(frozen=True)
class Tag:
    """A tag, what it names, and when it was pushed last (seconds since 1970)."""

    name: str
    digest: str
    pushed: float


@dataclass(frozen=True)
class Rule:
    """An image stays if it is one of the `newest`, or if one of its tags was pushed within so many `days`; 0 days: its age does not save it."""

    newest: int
    days: int


def subject(tag: str) -> str:
    """The digest that a companion's tag is about, or nothing for any other tag."""
    found = _COMPANION.fullmatch(tag)
    return found[1].replace("-", ":", 1) if found else ""


def expired(
    tags: Iterable[Tag], rule: Rule, now: float, parts: Callable[[str], Collection[str]], grace: float, used: Collection[str] = (),
) -> set[str]:
    """The names of the tags that go.

    An image goes with all of its tags, and is counted once however many it has. A companion is no image: it goes with what it is about,
    which may be a companion as well, but not within `grace` seconds of being pushed. parts: the manifests that an index leads to; used: manifests
    that stay for now, whatever becomes of their tags.
    """
    images: dict[str, float] = {}
    companions = []
    all_tags = list(tags)
    for tag in all_tags:
        if subject(tag.name):
            companions.append(tag)
        else:
            images[tag.digest] = max(tag.pushed, images.get(tag.digest, tag.pushed))
    newest_first = sorted(images, key=lambda digest: (-images[digest], digest))
    kept = set(newest_first[:rule.newest])
    kept.update(digest for digest, pushed in images.items() if now - pushed < rule.days * _DAY)
    about: set[str] = set()
    new = kept.union(used)
    while new:
        about |= new.union(*(parts(digest) for digest in new))
        new = {tag.digest for tag in companions if subject(tag.name) in about} - about
    gone = {tag.name for tag in all_tags if not subject(tag.name) and tag.digest not in kept}
    return gone | {tag.name for tag in companions if subject(tag.name) not in about and now - tag.pushed >= grace}
