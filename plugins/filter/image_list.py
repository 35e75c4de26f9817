# Copyright (c) 2026, mirrorfleet contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0
"""The filters image_list and by_upstream."""

from __future__ import annotations

DOCUMENTATION = r"""
name: image_list
short_description: The images of a file, one a line
version_added: 0.1.0
author:
  - mirrorfleet contributors (@mirrorfleet)
description:
  - Takes the text of a file and returns its lines, without comments, which begin with C(#), and without empty lines. A YAML list of
    images is read as well.
options:
  _input:
    description: The text.
    type: str
    required: true
"""

EXAMPLES = r"""
- name: The release is read
  ansible.builtin.set_fact:
    images: "{{ lookup('ansible.builtin.file', 'release.txt') | mirrorfleet.registry.image_list }}"
"""

RETURN = r"""
_value:
  description: The images.
  type: list
  elements: str
  sample: [docker.io/library/busybox:1]
"""

from typing import Callable

from ansible.errors import AnsibleFilterError

from ansible_collections.mirrorfleet.registry.plugins.module_utils import image_list as images
from ansible_collections.mirrorfleet.registry.plugins.module_utils.errors import RegistryFleetError
from ansible_collections.mirrorfleet.registry.plugins.module_utils.upstreams import Upstream


def image_list(text: str) -> list[str]:
    """The images of a file."""
    return images.read_list(text)


def by_upstream(value: list[object], upstreams: list[Upstream], mirrors: list[str]) -> dict[str, list[str]]:
    """The images of each upstream."""
    try:
        return images.by_upstream(value, upstreams, mirrors)
    except RegistryFleetError as error:
        raise AnsibleFilterError(str(error)) from error


class FilterModule:
    """What Ansible loads."""

    def filters(self) -> dict[str, Callable[..., object]]:
        """The filters of this file."""
        return {"image_list": image_list, "by_upstream": by_upstream}
