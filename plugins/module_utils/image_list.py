# Copyright (c) 2026, mirrorfleet contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0
"""A list of images as an operator writes it, and which upstream each of them is from."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Iterable, Sequence

from ansible_collections.mirrorfleet.registry.plugins.module_utils.errors import RegistryFleetError
from ansible_collections.mirrorfleet.registry.plugins.module_utils.image_reference import (
    DOCKER_HUB,
    ImageReference,
    ImageReferenceError,
    parse_image_reference,
)
from ansible_collections.mirrorfleet.registry.plugins.module_utils.upstreams import Upstream


def read_list(text: str) -> list[str]:
    """The images of a file: one a line, or a YAML list of them; ``#`` begins a comment, which no reference has."""
    lines = (re.sub(r"^-\s", "", line.partition("#")[0].strip()).strip() for line in text.splitlines())
    lines = (line[1:-1].strip() if re.fullmatch(r"'[^']*'|\"[^\"]*\"", line) else line for line in lines)
    return [line for line in lines if line not in ("", "-", "---")]


def by_upstream(images: Iterable[object], upstreams: Sequence[Upstream], mirrors: Iterable[str] = ()) -> dict[str, list[str]]:
    """The images of each upstream that has some, by its name, each once and in order. Raises RegistryFleetError that names every image that has none.

    They are as the upstream knows them: path, tag and digest. An image is written as a docker host names it: its domain is the upstream's, or
    one of the names in ``mirrors`` with the upstream's port, and without a domain it is one of Docker Hub. Or it is written as
    ``UPSTREAM IMAGE``, with the upstream's name.
    """
    found: dict[str, dict[str, None]] = {upstream["name"]: {} for upstream in upstreams}
    names, problems = {name.lower() for name in mirrors}, []
    for image in images:
        try:
            if not isinstance(image, str):
                raise RegistryFleetError(f"{image!r} is no text")
            upstream, reference = _assign(image, upstreams, names)
            found[upstream["name"]][str(replace(reference, domain=""))] = None
        except ImageReferenceError as error:
            problems.append(str(error))
        except RegistryFleetError as error:
            problems.append(f"{image}: {error}.")
    if problems:
        there = ", ".join(f"{upstream['name']} ({domain_of(upstream)})" for upstream in upstreams) or "none"
        raise RegistryFleetError("\n".join([*problems, f"The upstreams are: {there}."]))
    return {name: list(references) for name, references in found.items() if references}


def _assign(image: str, upstreams: Sequence[Upstream], mirrors: set[str]) -> tuple[Upstream, ImageReference]:
    first, *rest = image.split(None, 1) or [""]
    if rest:
        named = [upstream for upstream in upstreams if upstream["name"] == first]
        if not named:
            raise RegistryFleetError(f"there is no upstream {first!r}")
        own = domain_of(named[0])
        reference = parse_image_reference(rest[0].strip(), DOCKER_HUB if own == DOCKER_HUB else "")
        # A path may begin as a domain does, as those in an archive do.
        is_path = reference.domain.lower() not in ("", own, named[0]["host"].lower()) and ":" not in reference.domain
        return named[0], replace(reference, domain="", path=f"{reference.domain}/{reference.path}") if is_path else reference
    reference = parse_image_reference(first)
    domain = reference.domain.lower()
    host, _colon, port = domain.rpartition(":")
    fitting = [
        upstream for upstream in upstreams
        if domain in (domain_of(upstream), upstream["host"].lower()) or (host in mirrors and port == str(upstream["ports"]["edge"]))
    ]
    if not fitting:
        raise RegistryFleetError(f"no upstream serves {domain}")
    # Of several mirrors of Docker Hub, a docker host asks the first.
    if len(fitting) > 1 and domain != DOCKER_HUB:
        remedy = " or ".join(f"'{upstream['name']} {reference.path}…'" for upstream in fitting)
        raise RegistryFleetError(f"{len(fitting)} upstreams are at {domain}; write {remedy}")
    return fitting[0], reference


def domain_of(upstream: Upstream) -> str:
    """The domain of its images, as docker hosts write it."""
    return DOCKER_HUB if upstream["docker_hub"] or upstream["host"] == "registry-1.docker.io" else upstream["host"].lower()
