#!/usr/bin/python
# Copyright (c) 2026, mirrorfleet contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0
"""What a mirror host fetched, what it sent, and what that saved."""

from __future__ import annotations

DOCUMENTATION = r"""
module: front_info
short_description: What a mirror host fetched over the WAN, what it sent to docker hosts, and what that saved
version_added: 0.1.0
description:
  - Asks the runtime socket of the rewrite front (HAProxy) for the health of every upstream, the bytes it sent over the WAN,
    and how it answered. Its counts begin at zero when it starts or reloads; RV(counting_seconds) says how long ago that was.
  - Counts what the edge (nginx) sent to docker hosts from its access log. These counts begin with the log's first line and outlive reloads of
    both programs and the rotation of the log; RV(edge.since) says when. What has been read is noted in O(memory), so each line is read
    once. After a boot the memory is gone, and the log is read from about where the rewrite front began.
  - RV(saved) compares both over the time that the rewrite front counts.
author:
  - mirrorfleet contributors (@mirrorfleet)
attributes:
  check_mode:
    description: Runs the same in check mode.
    support: full
    details:
      - But O(memory) is not written.
  diff_mode:
    description: Shows what has changed.
    support: none
  idempotent:
    description: Changes nothing but its own O(memory).
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
  access_log:
    description: The edge's access log. Beside it are its older files, as logrotate names them.
    type: path
    default: /var/log/mirrorfleet/edge/access.log
  memory:
    description: Where it is noted how far the log was read, and the counts.
    type: path
    default: /run/mirrorfleet-edge-figures.json
notes:
  - A docker host's request is in the log when it is over, and at most a second later.
  - Of a transfer that was under way when the rewrite front reloaded, RV(saved) has the bytes sent to docker hosts, and no WAN bytes.
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

- name: The places that are down, with what their check says
  ansible.builtin.debug:
    msg: "{{ front | community.general.json_query('upstreams[?!healthy].{name: name, source: source, why: check.text}') }}"

- name: What each upstream's mirror saved, most first
  ansible.builtin.debug:
    msg: "{{ front | community.general.json_query('saved.upstreams[?bytes] | reverse(sort_by(@, &bytes))[].{name: name, bytes: bytes, times: ratio}') }}"

- name: The upstreams with requests that the edge answered with 5xx
  ansible.builtin.debug:
    msg: "{{ front | community.general.json_query('edge.upstreams[?responses.\"5xx\" > `0`].name') }}"
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
edge:
  description: What the edge answered. Null where its log can't be read.
  returned: success
  type: dict
  contains:
    since:
      description: The time of the first request that is counted, in UTC, or null when there is none.
      type: str
      sample: "2026-11-14T00:00:07Z"
    counting_seconds:
      description: Seconds since then.
      type: int
      sample: 604800
    lan_bytes:
      description: Bytes of answers' bodies sent to docker hosts.
      type: int
      sample: 2306867200
    sibling_bytes:
      description: Bytes of answers' bodies sent to other mirror hosts.
      type: int
      sample: 0
    unreadable_lines:
      description: Lines in the log that are none of the edge's.
      type: int
      sample: 0
    upstreams:
      description: The same for each upstream. Checks of keepalived and of other mirror hosts are in none of the figures.
      type: list
      elements: dict
      contains:
        name:
          description: The upstream.
          type: str
          sample: central
        requests:
          description: Requests, however answered.
          type: int
          sample: 240
        lan_bytes:
          description: Bytes of answers' bodies sent to docker hosts.
          type: int
          sample: 2306867200
        sibling_bytes:
          description: Bytes of answers' bodies sent to other mirror hosts.
          type: int
          sample: 0
        hits:
          description: Blobs that were in the store.
          type: int
          sample: 45
        misses:
          description: Blobs that were not, though another docker host may have been fetching them.
          type: int
          sample: 5
        hit_ratio:
          description: The hits' share of both, or null when there are none.
          type: float
          sample: 0.9
        responses:
          description: Responses by class, V(1xx) to V(5xx) and V(other).
          type: dict
          sample: {"1xx": 0, "2xx": 240, "3xx": 0, "4xx": 0, "5xx": 0, "other": 0}
edge_unknown:
  description: Why RV(edge) and RV(saved) are null; empty when they are not.
  returned: success
  type: str
  sample: ""
saved:
  description:
    - What docker hosts did not fetch over the WAN, over the time that the rewrite front counts. Null where the edge's log can't be read.
    - Where the log no longer reaches back so far, C(lan_bytes), C(bytes) and C(ratio) are null.
  returned: success
  type: dict
  contains:
    since:
      description: When the rewrite front began to count, in UTC.
      type: str
      sample: "2026-11-14T00:00:07Z"
    lan_bytes:
      description: Bytes sent to docker hosts since then.
      type: int
      sample: 2306867200
    wan_bytes:
      description: Bytes received over the WAN.
      type: int
      sample: 230686720
    bytes:
      description: The difference. It is negative when more was fetched than sent, as by a docker host that gave up.
      type: int
      sample: 2076180480
    ratio:
      description: Bytes sent for each byte fetched, or null when none was.
      type: float
      sample: 10.0
    upstreams:
      description: The same for each upstream, by its C(name).
      type: list
      elements: dict
      sample: [{"name": "central", "lan_bytes": 2306867200, "wan_bytes": 230686720, "bytes": 2076180480, "ratio": 10.0}]
"""

import time

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.mirrorfleet.registry.plugins.module_utils import edge_figures
from ansible_collections.mirrorfleet.registry.plugins.module_utils.errors import RegistryFleetError
from ansible_collections.mirrorfleet.registry.plugins.module_utils.haproxy import SERVERS, ask, servers, start_time, uptime, wan_bytes_by_upstream


def main() -> None:
    """Ask the runtime socket, and read the edge's log."""
    module = AnsibleModule(
        argument_spec={
            "socket": {"type": "path", "default": "/run/mirrorfleet-front/admin.sock"},
            "timeout": {"type": "float", "default": 5.0},
            "access_log": {"type": "path", "default": edge_figures.LOG},
            "memory": {"type": "path", "default": edge_figures.MEMORY},
        },
        supports_check_mode=True,
    )
    path, timeout = module.params["socket"], module.params["timeout"]
    try:
        info = ask(path, "show info", timeout)
        counting, now = uptime(info), time.time()
        figures = servers(ask(path, SERVERS, timeout))
    except RegistryFleetError as error:
        module.fail_json(msg=str(error))
    edge, saved, unknown = None, None, ""
    try:
        seen = edge_figures.look(module.params["access_log"], module.params["memory"], start_time(info, now), remember=not module.check_mode)
        edge, saved = edge_figures.report(seen, wan_bytes_by_upstream(figures), now)
    except RegistryFleetError as error:
        unknown = str(error)
    module.exit_json(
        changed=False, counting_seconds=counting, upstreams=figures,
        wan_bytes=sum(each["wan_bytes"] for each in figures), lan_bytes=sum(each["lan_bytes"] for each in figures),
        edge=edge, edge_unknown=unknown, saved=saved,
    )


if __name__ == "__main__":
    main()
