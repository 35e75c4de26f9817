#!/usr/bin/python
# Copyright (c) 2026, mirrorfleet contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0
"""What the rewrite front has seen of its upstreams."""

from __future__ import annotations

DOCUMENTATION = r"""
module: front_info
short_description: What the rewrite front of a mirror host knows of its upstreams
version_added: 0.1.0
description:
  - Asks the runtime socket of the rewrite front (HAProxy) for the health of every upstream, the bytes it sent over the WAN,
    and how it answered.
  - Counts begin at zero when the front starts or reloads; RV(counting_seconds) says how long ago that was.
author:
  - mirrorfleet contributors (@mirrorfleet)
attributes:
  check_mode:
    description: Runs the same in check mode.
    support: full
  diff_mode:
    description: Shows what has changed.
    support: none
  idempotent:
    description: Changes nothing.
    support: full
options:
  socket:
    description: The runtime socket. Only root and the front's own user may ask it.
    type: path
    default: /run/mirrorfleet-front/admin.sock
  timeout:
    description: Seconds to wait for an answer.
    type: float
    default: 5.0
seealso:
  - name: HAProxy Management Guide
    description: The runtime socket's commands and columns.
    link: https://docs.haproxy.org/3.0/management.html
"""

EXAMPLES = r"""
- name: The figures of all upstreams
  mirrorfleet.registry.front_info:
  become: true
  register: front

- name: Every upstream answers
  ansible.builtin.assert:
    that: front.upstreams | rejectattr('healthy') | length == 0
    fail_msg: "Down: {{ front.upstreams | rejectattr('healthy') | map(attribute='name') | join(', ') }}"
"""

RETURN = r"""
counting_seconds:
  description: Seconds that the counts cover, since the front's start or last reload.
  returned: success
  type: int
  sample: 86400
wan_bytes:
  description: Bytes received from all upstreams and from mirror hosts of the hub data center.
  returned: success
  type: int
  sample: 230686720
lan_bytes:
  description: Bytes received from other mirror hosts of the data center.
  returned: success
  type: int
  sample: 0
upstreams:
  description: One entry for each place that the front fetches from.
  returned: success
  type: list
  elements: dict
  contains:
    name:
      description:
        - The upstream. With C(_tags) after it, its answers to what a tag names, with shorter time-outs. With C(_token) or C(_redirect_1), its token
          endpoint or a host of its object storage, which have no health check. With C(_sources) or C(_sources_tags), other mirror hosts.
      type: str
      sample: central
    source:
      description: Where the bytes come from, C(upstream), C(token), C(storage), or a mirror host as C(sibling-NAME) or C(hub-NAME).
      type: str
      sample: upstream
    healthy:
      description: Whether requests are sent there.
      type: bool
      sample: true
    status:
      description: HAProxy's word for it. V(MAINT (resolution\)) says that DNS knows no such name.
      type: str
      sample: UP
    since_seconds:
      description: Seconds since it last went up or down.
      type: int
      sample: 3600
    wan_bytes:
      description: Bytes received, without TLS and without health checks; 0 for a sibling.
      type: int
      sample: 230686720
    lan_bytes:
      description: Bytes received from a sibling; 0 for anybody else.
      type: int
      sample: 0
    sent_bytes:
      description: Bytes sent.
      type: int
      sample: 2048
    requests:
      description: Requests sent.
      type: int
      sample: 12
    transfers:
      description: Requests that are under way.
      type: int
      sample: 0
    responses:
      description: Responses by class, V(1xx) to V(5xx) and V(other), as the front answered them.
      type: dict
      sample: {"1xx": 0, "2xx": 12, "3xx": 0, "4xx": 0, "5xx": 0, "other": 0}
    errors:
      description: C(connections) that failed, C(responses) that did not come or were broken, C(retries), failed health C(checks).
      type: dict
      sample: {"connections": 0, "responses": 0, "retries": 0, "checks": 0}
    check:
      description:
        - The last health check, or null where there is none.
        - C(result) is HAProxy's short name, C(status) the HTTP status or null, C(milliseconds) its length, C(text) what went wrong.
      type: dict
      sample: {"result": "L7OK", "status": 200, "milliseconds": 34, "text": "Layer7 check passed; OK"}
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.mirrorfleet.registry.plugins.module_utils.errors import RegistryFleetError
from ansible_collections.mirrorfleet.registry.plugins.module_utils.haproxy import SERVERS, ask, servers, uptime


def main() -> None:
    """Ask the runtime socket."""
    module = AnsibleModule(
        argument_spec={
            "socket": {"type": "path", "default": "/run/mirrorfleet-front/admin.sock"},
            "timeout": {"type": "float", "default": 5.0},
        },
        supports_check_mode=True,
    )
    path, timeout = module.params["socket"], module.params["timeout"]
    try:
        counting = uptime(ask(path, "show info", timeout))
        figures = servers(ask(path, SERVERS, timeout))
    except RegistryFleetError as error:
        module.fail_json(msg=str(error))
    module.exit_json(
        changed=False, counting_seconds=counting, upstreams=figures,
        wan_bytes=sum(each["wan_bytes"] for each in figures), lan_bytes=sum(each["lan_bytes"] for each in figures),
    )


if __name__ == "__main__":
    main()
