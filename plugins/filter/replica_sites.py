# Copyright (c) 2026, mirrorfleet contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0
"""The filter that turns registry_primaries into what a host is for each registry."""

from __future__ import annotations

DOCUMENTATION = r"""
name: replica_sites
short_description: What a host is for each registry that has replicas
version_added: 0.1.0
author:
  - mirrorfleet contributors (@mirrorfleet)
positional: host, hosts, variables, drained
description:
  - Works out of C(registry_primaries), and of the C(registry_here) and C(registry_address) of all hosts, where the primary is and who else there is.
  - Whatever is wrong is said at once.
options:
  _input:
    description:
      - The value of C(registry_primaries), the primary of each registry.
    type: dict
    required: true
  host:
    description: The host that it is about.
    type: str
    required: true
  hosts:
    description: The hosts of the group C(registries).
    type: list
    elements: str
    required: true
  variables:
    description: The variables of each of them, as C(hostvars) has them.
    type: dict
    required: true
  drained:
    description: The registries whose primary takes nothing more.
    type: list
    elements: str
    default: []
"""

EXAMPLES = r"""
- name: Show what this host is
  ansible.builtin.debug:
    msg: "{{ {'prod': 'registry-a'} | mirrorfleet.registry.replica_sites('registry-b', ['registry-a', 'registry-b'], variables) }}"
  vars:
    variables:
      registry-a:
        registry_here: [{name: prod, scope: prod, port: 5012}]
      registry-b:
        registry_here: [{name: prod, scope: prod, port: 5012}]
"""

RETURN = r"""
_value:
  description:
    - For each registry that has replicas, its C(role) here (V(primary), V(replica) or V(drained)), C(here), the host, C(primary), the host that is it,
      its C(port), and the C(addresses) of all hosts that have it.
  type: dict
"""

from typing import Any, Callable, Iterable, Mapping, Sequence

from ansible.errors import AnsibleFilterError

from ansible_collections.mirrorfleet.registry.plugins.module_utils.errors import RegistryFleetError
from ansible_collections.mirrorfleet.registry.plugins.module_utils.replicas import Site, sites


def replica_sites(value: object, host: str, hosts: Iterable[str], variables: Mapping[str, Any], drained: Sequence[str] = ()) -> dict[str, Site]:
    """What the host is for each registry that has replicas."""
    try:
        return sites(value, host, hosts, variables, drained)
    except RegistryFleetError as error:
        raise AnsibleFilterError(str(error)) from error


class FilterModule:
    """What Ansible loads."""

    def filters(self) -> dict[str, Callable[..., object]]:
        """The filters of this file."""
        return {"replica_sites": replica_sites}
