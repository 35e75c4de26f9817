# Copyright (c) 2026, mirrorfleet contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0
"""What an operator wants to have in an archive, and where each of it comes from. Plain data in, plain data and sentences out."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any, Mapping, Sequence, TypedDict

from ansible_collections.mirrorfleet.registry.plugins.module_utils import upstreams
from ansible_collections.mirrorfleet.registry.plugins.module_utils.archive_tags import is_pattern
from ansible_collections.mirrorfleet.registry.plugins.module_utils.errors import RegistryFleetError
from ansible_collections.mirrorfleet.registry.plugins.module_utils.image_list import domain_of
from ansible_collections.mirrorfleet.registry.plugins.module_utils.image_manifest import ALL_PLATFORMS, check_platforms
from ansible_collections.mirrorfleet.registry.plugins.module_utils.image_reference import (
    DOCKER_HUB,
    ImageReferenceError,
    is_repository,
    is_tag,
    parse_image_reference,
)
from ansible_collections.mirrorfleet.registry.plugins.module_utils.promotion import is_reserved
from ansible_collections.mirrorfleet.registry.plugins.module_utils.upstreams import Missing, Upstream, near_miss, shown


class Image(TypedDict):
    """One line of the list: `path` at the upstream, `to` in the archive, `tag` or a pattern of tags, and the digest that it is held at, or nothing."""

    text: str
    domain: str
    path: str
    to: str
    tag: str
    digest: str


class Source(TypedDict):
    """Where the images of a domain come from: the arguments of RegistryClient, without which there is no login and no private authority."""

    domain: str
    url: str
    username: str
    password: str
    ca_certificate: str
    validate_certs: bool


class Archive(TypedDict):
    """What the keys of a registry say of it. `most_tags`: of one pattern. `platforms`: none means all."""

    images: list[Image]
    sources: list[Source]
    most_tags: int
    platforms: list[str]


MOST_TAGS = 100
KEYS = ("images", "upstreams", "most_tags", "platforms")
# Of an upstream in mirror_upstreams, what says how to come to it.
_SOURCE_KEYS = ("url", "username", "password", "ca_cert", "validate_certs")
_MIRROR = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?|\[[0-9A-Fa-f:.]+\]")
_HUB_URL = "https://registry-1.docker.io"
_PATTERN = re.compile(r"[A-Za-z0-9_.*?\[\]!-]{1,128}")


def read(item: Mapping[str, Any]) -> tuple[Archive, list[str]]:
    """What a registry of the scope archive says of its images, and one line for each thing that is wrong."""
    images, problems = _images(item.get("images"))
    sources, wrong = _sources(item.get("upstreams"))
    most = item.get("most_tags", MOST_TAGS)
    if isinstance(most, bool) or not re.fullmatch(r"[0-9]{1,4}", str(most)) or int(str(most)) < 1:
        wrong.append(f"most_tags: {shown(most)}: write a whole number from 1 to 9999.")
        most = 1
    platforms: list[str] = []
    written = item.get("platforms") or []
    try:
        if not isinstance(written, (list, tuple)) or not all(isinstance(each, str) for each in written):
            raise RegistryFleetError("platforms: is no list of text. Write one like [linux/amd64, linux/arm64], or leave it out for all.")
        platforms = check_platforms(written) if written and ALL_PLATFORMS not in written else []
    except RegistryFleetError as error:
        wrong.append(str(error))
    return Archive(images=images, sources=sources, most_tags=int(most), platforms=platforms), problems + wrong


def _images(value: object) -> tuple[list[Image], list[str]]:
    if isinstance(value, Missing):
        return [], [f"images: has no value ({value.reason})."]
    if not isinstance(value, (list, tuple)) or not value:
        what = "is missing" if value is None else "is empty" if value in ([], ()) else f"is {shown(value)}"
        return [], [f"images: {what}. Write a list of images, like docker.io/library/debian:12 or quay.io/org/app:v1*."]
    good: list[Image] = []
    problems = []
    for text in value:
        try:
            good.append(parse(text))
        except RegistryFleetError as error:
            problems.append(f"images: {error}")
    for (to, tag), count in Counter((image["to"], image["tag"]) for image in good).items():
        if count > 1:
            problems.append(f"images: {to}:{tag} is there {count} times. Leave it there once.")
    return good, problems


def parse(text: object) -> Image:
    """Read ``[DOMAIN/]PATH:TAG[@DIGEST]`` or ``[DOMAIN/]PATH:PATTERN``. Raises RegistryFleetError."""
    if not isinstance(text, str):
        raise RegistryFleetError(f"{shown(text)} is no image. Write text, like docker.io/library/debian:12.")
    name, at, digest = text.strip().partition("@")
    head, slash, last = name.rpartition("/")
    last, colon, tag = last.partition(":")
    path = f"{head}{slash}{last}"
    try:
        reference = parse_image_reference(f"{path}{at}{digest}")
    except ImageReferenceError as error:
        raise RegistryFleetError(str(error)) from None
    if not colon:
        raise RegistryFleetError(f"{text!r} does not say which tags. Write {path}:TAG{at}{digest}, or {path}:1.* for all that begin so.")
    if not is_tag(tag) and not (_PATTERN.fullmatch(tag) and re.search(r"[*?]|\[.+\]", tag)):
        raise RegistryFleetError(f"{text!r}: {tag!r} is no tag, and no pattern of tags (* for any text, ? for a character, [0-9] for one of several).")
    if is_pattern(tag) and digest:
        raise RegistryFleetError(f"{text!r} would hold many tags at one digest. Write the tag that is held.")
    if is_reserved(tag):
        raise RegistryFleetError(f"{text!r} names signatures or history, which come with their images. Write the image's tag.")
    domain = reference.domain.lower()
    to = repository(domain, reference.path)
    if "[" in domain or not is_repository(to):
        raise RegistryFleetError(f"{text!r} would be {to!r} in the archive, which no repository can be called. Write a domain that is a name.")
    return Image(text=text.strip(), domain=domain, path=reference.path, to=to, tag=tag, digest=digest)


def repository(domain: str, path: str) -> str:
    """What an upstream's repository is called in an archive. A colon can't be there, and an underscore is in no domain."""
    return f"{domain.replace(':', '_')}/{path}"


def _sources(value: object) -> tuple[list[Source], list[str]]:
    if value is None:
        return [], []
    if isinstance(value, Missing):
        return [], [f"upstreams: has no value ({value.reason})."]
    if not isinstance(value, (list, tuple)):
        return [], [f"upstreams: is {shown(value)}. Write a list, each with domain and what says how to come to it: {', '.join(_SOURCE_KEYS)}."]
    good: list[Source] = []
    problems = []
    for position, item in enumerate(value, 1):
        if not isinstance(item, dict) or not isinstance(item.get("domain"), str):
            problems.append(f"upstreams: item {position}: has no domain. Write the one that its images are named by, like domain: quay.io.")
            continue
        title = f"upstreams: {shown(item['domain'])}: "
        source, wrong = _source(item)
        problems += [title + line for line in wrong]
        good += [source] if source else []
    for domain, count in Counter(each["domain"] for each in good).items():
        if count > 1:
            problems.append(f"upstreams: {domain} is there {count} times. Leave it there once.")
    return good, problems


def _source(item: Mapping[str, Any]) -> tuple[Source | None, list[str]]:
    """Read by what reads mirror_upstreams, which knows what a URL or a credential must not be."""
    problems = []
    for key in item:
        if key not in ("domain", *_SOURCE_KEYS):
            meant = near_miss(str(key), _SOURCE_KEYS, 0.6)
            why = "skopeo finds no registry below a path: pull by a mirror (registry_archive_mirror)" if key == "path_prefix" else "is no key of it"
            problems.append(f"{key}: {why}. " + (f"Write {meant}." if meant else f"There are domain, {', '.join(_SOURCE_KEYS)}."))
    domain = item["domain"].lower()
    given = {key: item[key] for key in _SOURCE_KEYS if key in item}
    found, wrong = upstreams.read([{"name": "archive", "port": 5000, "canary": "a:1", "url": _url(domain), **given}])
    problems += [re.sub("^mirror_upstreams: upstream 'archive': ", "", line) for line in wrong]
    return (_from(domain, found[0]) if found and not problems else None), problems


def _url(domain: str) -> str:
    return _HUB_URL if domain == DOCKER_HUB else f"https://{domain}"


def _from(domain: str, upstream: Upstream) -> Source:
    return Source(
        domain=domain, url=upstream["url"], username=upstream["username"], password=upstream["password"], ca_certificate=upstream["ca_cert"],
        validate_certs=upstream["validate_certs"],
    )


def resolve(archive: Archive, known: Sequence[Upstream], mirror: Mapping[str, Any]) -> tuple[list[Source], list[str]]:
    """Where the images of each domain come from, and one line for each domain that has no way.

    What the registry says of its own comes before the mirror host, if there is one, and this before the upstream itself, with the credentials
    that mirror_upstreams has for it. mirror: `name` of the mirror host that upstreams are asked by, empty for none, and the rest of a Source.
    """
    found: list[Source] = []
    problems = []
    through = mirror["name"]
    if isinstance(through, Missing) or not isinstance(through, str) or (through and not _MIRROR.fullmatch(through)):
        return [], [f"registry_archive_mirror: {shown(through)}: write the name of a mirror host, without a port, or leave it out."]
    for domain in dict.fromkeys(image["domain"] for image in archive["images"]):
        own = next((source for source in archive["sources"] if source["domain"] == domain), None)
        upstream = next((each for each in known if domain_of(each) == domain), None)
        if own is not None:
            found.append(own)
        elif upstream is None:
            found.append(Source(domain=domain, url=_url(domain), username="", password="", ca_certificate="", validate_certs=True))
        elif through:
            found.append(Source(
                domain=domain, url=f"{mirror.get('scheme', 'https')}://{through}:{upstream['ports']['edge']}", username=mirror.get("username", ""),
                password=mirror.get("password", ""), ca_certificate=mirror.get("ca_certificate", ""), validate_certs=True,
            ))
        elif upstream["path_prefix"]:
            problems.append(
                f"images: {domain} is the upstream {upstream['name']!r}, which has a path_prefix, and skopeo finds no registry below a path. "
                "Write registry_archive_mirror, the mirror host that it is pulled by."
            )
        else:
            found.append(_from(domain, upstream))
    return found, problems
