# Copyright (c) 2026, mirrorfleet contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0
"""What may be promoted, and what a promotion writes: the rules alone, without a registry or a program.

Formats: github.com/opencontainers/image-spec (annotations.md, config.md), github.com/opencontainers/distribution-spec (spec.md, "Referrers Tag
Schema"), github.com/sigstore/cosign/blob/main/specs/SIGNATURE_SPEC.md.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from typing import Any, Iterable, Mapping, Sequence
from urllib.parse import urlsplit

from ansible_collections.mirrorfleet.registry.plugins.module_utils.errors import RegistryFleetError
from ansible_collections.mirrorfleet.registry.plugins.module_utils.image_manifest import MEDIA_TYPES
from ansible_collections.mirrorfleet.registry.plugins.module_utils.image_reference import ImageReferenceError, parse_image_reference
from ansible_collections.mirrorfleet.registry.plugins.module_utils.times import parse_age

CREATED = "org.opencontainers.image.created"
HISTORY = ".history-"
_MAX_TAG = 128
# How far the clocks of two hosts may be apart.
_CLOCK_SKEW = timedelta(minutes=5)
# What attaches something to an image by its name, for cosign and for registries that do not know referrers; and what the history is kept under.
_RESERVED = re.compile(r"sha(256|384|512)-[a-f0-9]{64,}.*|.*" + re.escape(HISTORY) + r"[0-9]{8}T[0-9]{6}Z-[a-f0-9]{12}")
_TIME = re.compile(r"(\d{4})-(\d\d)-(\d\d)[Tt ](\d\d):(\d\d):(\d\d)(?:\.\d+)?(?:([Zz])|([+-])(\d\d):(\d\d))")


@dataclass(frozen=True)
class Wanted:
    """One image to promote: ``path`` with ``tag`` or ``digest`` or both at the source, ``to_path`` and ``to_tag`` at the target."""

    text: str
    path: str
    tag: str
    digest: str
    to_path: str
    to_tag: str

    @property
    def name(self) -> str:
        """What the source is asked for."""
        return f"{self.path}:{self.tag}" if self.tag else f"{self.path}@{self.digest}"

    @property
    def to(self) -> str:
        return f"{self.to_path}:{self.to_tag}"


def parse_wanted(text: str, source: str = "", target: str = "") -> Wanted:
    """Read ``PATH[:TAG][@DIGEST] [as PATH:TAG]``; before either path its registry's ``host[:port]`` may stand. Raises RegistryFleetError."""
    name, as_word, to_name = " ".join(text.split()).partition(" as ")

    def read(part: str, registry: str, option: str) -> tuple[str, str, str]:
        if len(part.split()) > 1:
            raise RegistryFleetError(f"images: {text!r} has several words. Write PATH:TAG, or PATH:TAG as PATH:TAG.")
        try:
            # A path may begin as a domain does; only the registry's own is one.
            bare = part[len(registry) + 1:] if registry and part.startswith(f"{registry}/") else part
            reference = parse_image_reference(bare, default_domain="")
        except ImageReferenceError as error:
            raise RegistryFleetError(f"images: {error}") from None
        if reference.domain:
            raise RegistryFleetError(f"images: {text!r} names the registry {reference.domain}, and {option} is {registry}. Write only the path there.")
        return reference.path, reference.tag, reference.digest

    path, tag, digest = read(name, source, "source")
    to_path, to_tag, to_digest = read(to_name, target, "target") if as_word else (path, tag, "")
    if not tag and not digest:
        raise RegistryFleetError(f"images: {text!r} has neither a tag nor a digest. Write which one is meant, like {path}:1.4.")
    if to_digest or not to_tag:
        raise RegistryFleetError(f"images: {text!r} does not say which tag it gets. Write {name} as {to_path}:TAG.")
    if _RESERVED.fullmatch(to_tag):
        raise RegistryFleetError(f"images: {text!r} would set the tag {to_tag}, which names signatures or history. Write another one.")
    return Wanted(text.strip(), path, tag, digest, to_path, to_tag)


def parse_all(texts: Iterable[str], source: str = "", target: str = "") -> list[Wanted]:
    """All images, each once. Raises RegistryFleetError that names everything that is wrong."""
    problems: list[str] = []
    found: dict[str, Wanted] = {}
    for text in texts:
        try:
            wanted = parse_wanted(text, source, target)
        except RegistryFleetError as error:
            problems.append(str(error))
            continue
        other = found.setdefault(wanted.to, wanted)
        if (other.path, other.tag, other.digest) != (wanted.path, wanted.tag, wanted.digest):
            problems.append(f"images: {other.text!r} and {wanted.text!r} would both become {wanted.to}. Write one of them, or as PATH:TAG.")
    if problems:
        raise RegistryFleetError("\n".join(problems))
    return list(found.values())


@dataclass(frozen=True)
class Key:
    """A public key: its PEM text, and what it is called in messages and records, ``name (sha256:<12 digits of its DER form>)``."""

    pem: str
    label: str


def parse_key(pem: str, name: str) -> Key:
    """Read a public key as ``cosign public-key`` prints it. Raises RegistryFleetError, which never quotes the text."""
    if "PRIVATE KEY" in pem:
        raise RegistryFleetError(f"{name} is a private key. Give the public one, which cosign writes as .pub beside it.")
    found = re.search(r"-----BEGIN PUBLIC KEY-----([A-Za-z0-9+/=\s]+)-----END PUBLIC KEY-----", pem)
    try:
        der = base64.b64decode("".join(found[1].split()), validate=True) if found else b""
    except binascii.Error:
        der = b""
    if not der:
        raise RegistryFleetError(f"{name} is no public key. Give PEM text from BEGIN PUBLIC KEY to END PUBLIC KEY, or the path of a file of it.")
    return Key(pem, f"{name} (sha256:{hashlib.sha256(der).hexdigest()[:12]})")


@dataclass(frozen=True)
class Policy:
    """What the target demands; empty is no demand. ``labels`` are patterns by name, ``max_age`` is seconds, ``sources`` are patterns of URLs."""

    keys: tuple[Key, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    max_age: int = 0
    sources: tuple[str, ...] = ()


def parse_policy(keys: Sequence[Key], labels: Mapping[str, object], max_age: str, sources: Sequence[str]) -> Policy:
    """Raises RegistryFleetError."""
    for name, pattern in labels.items():
        if not isinstance(pattern, str) or not pattern:
            raise RegistryFleetError(f"policy.labels: {name} has {pattern!r}. Write the text that its value must be; * stands for any.")
    for pattern in sources:
        if "/" not in re.sub("^https?://", "", pattern):
            raise RegistryFleetError(f"policy.sources: {pattern!r} names no repository. Write HOST[:PORT]/PATH, like {pattern}/** for all of them.")
    seconds = parse_age(max_age, "policy.max_age") if max_age else 0
    return Policy(tuple(keys), {str(name): str(pattern) for name, pattern in labels.items()}, seconds, tuple(sources))


def source_allowed(url: str, repository: str, patterns: Sequence[str]) -> bool:
    """Whether one of ``[https://]host[:port]/path`` fits: ``*`` is anything within a part of a path, ``**`` over several."""
    parts = urlsplit(url)
    place = f"{parts.netloc.lower()}/{repository}"
    for pattern in patterns:
        scheme, separator, rest = pattern.rpartition("://")
        host, slash, path = rest.partition("/")
        if (not separator or scheme == parts.scheme) and _matcher(host.lower() + slash + path, path=True).fullmatch(place):
            return True
    return not patterns


def _matcher(pattern: str, path: bool) -> re.Pattern[str]:
    wild = {"**": ".*", "*": "[^/]*"} if path else {"*": ".*"}
    parts = re.split(r"(\*\*|\*)" if path else r"(\*)", pattern)
    return re.compile("(?s)" + "".join(wild.get(part, re.escape(part)) for part in parts))


@dataclass(frozen=True)
class Facts:
    """What an image says of itself for one platform; ``name`` like ``linux/amd64``, ``created`` as it is written there."""

    name: str
    labels: Mapping[str, str]
    created: str


def read_facts(name: str, config: Mapping[str, Any], *manifests: Mapping[str, Any]) -> Facts:
    """Of an image's config, its manifest and its index. A config's labels come before annotations, except for the date:

    builds that can be repeated write 1970 into the config, and the annotation then has the true date.
    """
    annotations: dict[str, str] = {}
    for manifest in reversed(manifests):
        annotations.update(_texts(manifest.get("annotations")))
    settings = config.get("config")
    labels = _texts(settings.get("Labels")) if isinstance(settings, dict) else {}
    created = annotations.get(CREATED) or labels.get(CREATED) or config.get("created")
    return Facts(name, {**annotations, **labels}, created if isinstance(created, str) else "")


def _texts(value: Any) -> dict[str, str]:
    return {key: text for key, text in value.items() if isinstance(text, str)} if isinstance(value, dict) else {}


def parse_time(text: str) -> datetime | None:
    """A time of RFC 3339; None for what is none."""
    match = _TIME.fullmatch(text)
    try:
        if match is None:
            return None
        *numbers, _zulu, sign, hours, minutes = match.groups()
        offset = timedelta(hours=int(hours or 0), minutes=int(minutes or 0)) * (-1 if sign == "-" else 1)
        return datetime(*(int(number) for number in numbers), tzinfo=timezone(offset))  # type: ignore[misc,arg-type]
    except (ValueError, OverflowError):
        return None


def violations(policy: Policy, url: str, repository: str, facts: Sequence[Facts], now: datetime, with_age: bool = True) -> list[str]:
    """What of the policy does not hold, but for signatures: one sentence each, for all platforms."""
    found = []
    if not source_allowed(url, repository, policy.sources):
        found.append(f"it comes from {urlsplit(url).netloc}/{repository}, and policy.sources has only {', '.join(policy.sources)}")
    for each in facts:
        place = f" for {each.name}" if each.name else ""
        for name, pattern in policy.labels.items():
            value = each.labels.get(name, "")
            if not value:
                found.append(f"it has no label {name}{place}, and policy.labels wants {pattern!r}")
            elif not _matcher(pattern, path=False).fullmatch(value):
                found.append(f"its label {name}{place} is {value[:200]!r}, and policy.labels wants {pattern!r}")
        why = _age_violation(policy.max_age, each.created, now) if policy.max_age and with_age else ""
        if why:
            found.append(f"{why}{place}, and policy.max_age is {_days(policy.max_age)}")
    return found


def _age_violation(max_age: int, text: str, now: datetime) -> str:
    created = parse_time(text)
    if created is None:
        return f"when it was created is {text[:60]!r}, which is no time" if text else "it does not say when it was created"
    if created > now + _CLOCK_SKEW:
        return f"it was created at {text}, which is still to come (check the clocks of the builder and of this host)"
    if created.year < 1981:
        return f"it says it was created at {text}, which a build that can be repeated writes (let it set the annotation {CREATED})"
    age = (now - created).total_seconds()
    return f"it was created at {text} ({_days(int(age))} ago)" if age > max_age else ""


def _days(seconds: int) -> str:
    return f"{seconds / 86400:.1f} days" if seconds >= 86400 else f"{seconds / 3600:.1f} hours"


def history_tag(tag: str, digest: str, now: datetime) -> str:
    """The tag that keeps ``digest``, which ``tag`` named until now: ``1.4.history-20260521T101530Z-<12 digits of the digest>``.

    Those of one tag sort by time, and two different digests never share one. A long tag is cut to the 128 characters that a tag may have.
    """
    suffix = f"{HISTORY}{now.astimezone(timezone.utc):%Y%m%dT%H%M%SZ}-{digest.partition(':')[2][:12]}"
    return tag[:_MAX_TAG - len(suffix)] + suffix


def merge_attached(there: Mapping[str, Any] | None, coming: Mapping[str, Any]) -> dict[str, Any] | None:
    """cosign's manifest of signatures, attestations or SBOMs: what is there with what it lacks of what is coming; None when it lacks nothing.

    Each is a layer, and only its annotations tell two signatures of the same payload apart.
    """
    if there is None:
        return dict(coming)
    have = {json.dumps(layer, sort_keys=True) for layer in there.get("layers", [])}
    lacking = [layer for layer in coming.get("layers", []) if json.dumps(layer, sort_keys=True) not in have]
    return {**there, "layers": [*there.get("layers", []), *lacking]} if lacking else None


def merge_referrers(there: Mapping[str, Any] | None, coming: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The index that lists an image's referrers for a registry that has no API for it."""
    listed = list(there.get("manifests", [])) if there else []
    known = {each.get("digest") for each in listed}
    return {"schemaVersion": 2, "mediaType": MEDIA_TYPES[0], "manifests": [*listed, *(each for each in coming if each["digest"] not in known)]}


def referrer_descriptor(body: bytes, digest: str, media_type: str) -> dict[str, Any]:
    """What such an index says of one of them ("Pushing Manifests with Subject" in the specification)."""
    manifest = json.loads(body)
    config = manifest.get("config")
    kind = manifest.get("artifactType") or (config.get("mediaType") if isinstance(config, dict) else None)
    found = {"mediaType": media_type, "digest": digest, "size": len(body), "artifactType": kind, "annotations": manifest.get("annotations")}
    return {key: value for key, value in found.items() if value is not None}


def record_line(**entry: object) -> bytes:
    """One promotion as a line of JSON. A line break in a value is escaped there."""
    return json.dumps(entry, separators=(",", ":")).encode() + b"\n"
