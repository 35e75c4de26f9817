# Copyright (c) 2026, mirrorfleet contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0
"""The documentation of the action plugin of the same name, which does the work."""

from __future__ import annotations

DOCUMENTATION = r"""
module: fleet_check
short_description: Check the whole inventory before anything is touched
version_added: 0.1.0
author:
  - mirrorfleet contributors (@mirrorfleet)
description:
  - Looks at groups and variables on the controller, in one task for the whole play. No host is connected to.
  - "The groups are checked in the whole inventory: each data center with docker hosts has a mirror host, each mirror host and docker host
    is in one data center."
  - "The variables are checked for the hosts of the play, so with C(--limit) for those: C(mirror_upstreams) is there, complete, and the same
    all over a data center; no two upstreams, nor anything else, want one port; every credential has a value; values have the types and
    choices of the roles' argument specifications; no variable has a name that looks like a slip for a known one."
  - "The hubs (C(mirror_parent)) are checked for the data centers of the play: each is a data center with a mirror host, they make no circle,
    and the hub has the same upstreams at the same ports."
  - Every problem is listed, with the host or group, the variable, the value and what to write instead. Passwords are never shown.
notes:
  - "Use it in a play with C(hosts: all). A play of C(mirrors:docker_hosts) is skipped when it finds neither, and says nothing."
attributes:
  check_mode:
    description: Can run in check mode and return what it would.
    support: full
  diff_mode:
    description: Returns what has changed, or would.
    support: none
  idempotent:
    description: Changes nothing when it is run again.
    support: full
"""

EXAMPLES = r"""
- name: Everything is checked before anything is touched
  hosts: all
  gather_facts: false
  tasks:
    - name: The inventory is right
      mirrorfleet.registry.fleet_check:
      register: fleet
"""

RETURN = r"""
data_centers:
  description:
    - The data centers by name, which is that of the group without C(dc_). Hosts are in the inventory's order.
    - C(level) is the number of hubs above a data center.
  returned: success
  type: dict
  sample:
    zagreb:
      mirrors: [mirror1.zagreb.example.com, mirror2.zagreb.example.com]
      docker_hosts: [app1.zagreb.example.com]
      level: 0
"""
