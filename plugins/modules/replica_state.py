#!/usr/bin/python
# Copyright (c) 2026, mirrorfleet contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0
"""What a host is for a registry with replicas: ask it, or tell it."""

from __future__ import annotations

DOCUMENTATION = r"""
module: replica_state
short_description: Ask or tell a host what it is for a registry with replicas
version_added: 0.1.0
description:
  - Each host of a registry with replicas keeps a small file that says what it was told last, in C(/var/lib/mirrorfleet/registry-replicas).
    By it a change of the primary that failover.yml did not make is refused, and a primary that was away finds out that there is another one.
  - Without O(role) it only says what there is.
author:
  - mirrorfleet contributors (@mirrorfleet)
attributes:
  check_mode:
    description: Can run without changing anything.
    support: full
  diff_mode:
    description: Says what changes.
    support: full
  idempotent:
    description: A second run changes nothing, unless O(takes_over) is set, which is a new failover each time.
    support: full
options:
  registry:
    description: The name of the registry.
    type: str
    required: true
  role:
    description: What the host is to be.
    type: str
    choices: [primary, replica, drained]
  primary:
    description: The host that is the primary.
    type: str
  known:
    description: What each host of the registry was told last, as RV(state) says it. What contradicts it is refused.
    type: dict
    default: {}
  unknown:
    description:
      - The hosts of the registry that can't be asked. While there are any, a primary that was started anew takes nothing before one of them
        has answered its replicator.
    type: list
    elements: str
    default: []
  takes_over:
    description: Whether this is a failover. Then nothing is refused, and the epoch grows by one.
    type: bool
    default: false
"""

EXAMPLES = r"""
- name: Show what the host is
  mirrorfleet.registry.replica_state:
    registry: prod
  register: found

- name: The host is a replica
  mirrorfleet.registry.replica_state:
    registry: prod
    role: replica
    primary: registry-a
    known:
      registry-a: {role: primary, primary: registry-a, epoch: 1}
"""

RETURN = r"""
state:
  description: What the host was told last, or with O(role) is told now; null where it was told nothing.
  type: dict
  returned: success
  contains:
    role:
      description: V(primary), V(replica) or V(drained).
      type: str
    primary:
      description: The host that is the primary.
      type: str
    epoch:
      description: It grows by one with each failover.
      type: int
status:
  description: What its replicator wrote down last; empty where there is none.
  type: dict
  returned: success
  sample: {follows: true, lacking: [], leftovers: [], lag_seconds: 0, epoch: 1}
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.mirrorfleet.registry.plugins.module_utils.errors import RegistryFleetError
from ansible_collections.mirrorfleet.registry.plugins.module_utils.replica_state import Layout, confirm, read, status, wanted, write


def run(module: AnsibleModule, layout: Layout) -> dict[str, Any]:
    """What the module answers. Raises RegistryFleetError."""
    options = module.params
    registry = options["registry"]
    before = read(layout, registry)
    after = before
    if options["role"]:
        known = dict(options["known"], **({"": before} if before and not options["known"] else {}))
        after = wanted(registry, options["role"], options["primary"], known, options["unknown"], options["takes_over"])
        if not module.check_mode:
            if after != before:
                write(layout, registry, after)
            if not options["unknown"] or options["takes_over"]:
                confirm(layout, registry)
    changed = after != before
    return {"changed": changed, "state": after, "status": status(layout, registry), "diff": {"before": before or {}, "after": after or {}}}


def main() -> None:
    """What Ansible calls."""
    module = AnsibleModule(
        argument_spec=dict(
            registry=dict(type="str", required=True),
            role=dict(type="str", choices=["primary", "replica", "drained"]),
            primary=dict(type="str"),
            known=dict(type="dict", default={}),
            unknown=dict(type="list", elements="str", default=[]),
            takes_over=dict(type="bool", default=False),
        ),
        required_by={"role": ("primary",)},
        supports_check_mode=True,
    )
    try:
        module.exit_json(**run(module, Layout()))
    except (RegistryFleetError, OSError) as error:
        module.fail_json(msg=str(error))


if __name__ == "__main__":
    main()
