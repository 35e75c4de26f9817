# Copyright (c) 2026, mirrorfleet contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0
"""The filters that turn registry_here into what templates use."""

from __future__ import annotations

DOCUMENTATION = r"""
name: registries
short_description: Turn registry_here into the form that templates use
version_added: 0.1.0
author:
  - mirrorfleet contributors (@mirrorfleet)
positional: users, keep_days, keep_newest
description:
  - Checks what an operator wrote in C(registry_here) and C(registry_users) and completes it with what its scopes bring.
  - Whatever is wrong is said at once, each line with the registry, the key, the value and what to write instead. Secrets are never shown.
options:
  _input:
    description:
      - The value of C(registry_here).
    type: list
    elements: dict
    required: true
  users:
    description: The value of C(registry_users).
    type: list
    elements: dict
    default: []
  keep_days:
    description: How many days images are kept by a registry that has such a rule and does not say.
    type: int
    default: 14
  keep_newest:
    description: How many images of a repository are kept by a registry that has such a rule and does not say.
    type: int
    default: 20
"""

EXAMPLES = r"""
- name: Show where each registry listens
  ansible.builtin.debug:
    msg: "{{ dict(registries | map(attribute='name') | zip(registries | map(attribute='port'))) }}"
  vars:
    registries: "{{ registry_here | mirrorfleet.registry.registries }}"
    registry_here:
      - {name: play, scope: sandbox, port: 5010}
"""

RETURN = r"""
_value:
  description:
    - The registries in the order they were written.
  type: list
  elements: dict
  contains:
    name:
      description: The name of the registry.
      type: str
    scope:
      description: Its scope.
      type: str
    port:
      description: Where the front listens.
      type: int
    driver:
      description: V(filesystem), or another storage driver of distribution.
      type: str
    directory:
      description: Where the images are, with V(filesystem), else an empty string.
      type: str
    parameters:
      description: What any other driver is given.
      type: dict
    writer:
      description: The role of the users who may write; an empty string where anyone may.
      type: str
    deletes:
      description: Whether who may write may delete an image.
      type: bool
    keep:
      description:
        - What retention leaves of a repository, C(newest) images and whatever is younger than so many C(days), of which 0 is no rule.
        - Null where everything stays.
      type: dict
    backup_target:
      description: Where its backup goes, or an empty string.
      type: str
    signing_key:
      description: The public key by which images in it are signed, as PEM text, or an empty string.
      type: str
    archive:
      description: What comes into an archive, C(images), C(sources), C(most_tags) and C(platforms); null for any other scope.
      type: dict
"""

from typing import Callable

from ansible.errors import AnsibleFilterError

from ansible_collections.mirrorfleet.registry.plugins.module_utils.archive_list import Archive, Source, resolve
from ansible_collections.mirrorfleet.registry.plugins.module_utils.errors import RegistryFleetError
from ansible_collections.mirrorfleet.registry.plugins.module_utils.registries import DAYS, NEWEST, Registry, normalise
from ansible_collections.mirrorfleet.registry.plugins.module_utils.upstreams import normalise as normalise_upstreams


def registries(value: object, users: object = (), keep_days: object = DAYS, keep_newest: object = NEWEST) -> list[Registry]:
    """The normalised form of registry_here."""
    try:
        return normalise(value, users, keep_days, keep_newest)
    except RegistryFleetError as error:
        raise AnsibleFilterError(str(error)) from error


def archive_sources(value: Archive, upstreams: object, mirror: dict[str, str]) -> list[Source]:
    """Where the images of an archive come from."""
    try:
        found, problems = resolve(value, normalise_upstreams(upstreams), mirror)
    except RegistryFleetError as error:
        raise AnsibleFilterError(str(error)) from error
    if problems:
        raise AnsibleFilterError("\n".join(problems))
    return found


class FilterModule:
    """What Ansible loads."""

    def filters(self) -> dict[str, Callable[..., object]]:
        """The filters of this file."""
        return {"registries": registries, "archive_sources": archive_sources}
