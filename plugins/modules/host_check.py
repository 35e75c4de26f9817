#!/usr/bin/python
# Copyright (c) 2026, mirrorfleet contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

DOCUMENTATION = r"""
module: host_check
short_description: What keeps a host from becoming a part of the fleet
version_added: 0.1.0
author:
  - mirrorfleet contributors (@mirrorfleet)
description:
  - Looks at a host before anything is touched, and says everything that is wrong at once, each with its remedy.
  - It changes nothing.
attributes:
  check_mode:
    description: Can run without changing anything.
    support: full
  diff_mode:
    description: Says what changes.
    support: none
  idempotent:
    description: A second run changes nothing.
    support: full
options:
  platforms:
    description: Where the host's services are supported, like V(debian 12) or V(ubuntu 24.04). None means anywhere.
    type: list
    elements: str
    default: []
  systemd:
    description: Whether systemd must run.
    type: bool
    default: false
  docker:
    description: Whether the Docker daemon must answer.
    type: bool
    default: false
  programs:
    description: Programs that must be there.
    type: list
    elements: str
    default: []
  ports:
    description: TCP ports that services are to listen on.
    type: list
    elements: dict
    default: []
    suboptions:
      address:
        description: The address, of this host. V(0.0.0.0) and V(::) are every address.
        type: str
        default: 0.0.0.0
      port:
        description: The port.
        type: int
        required: true
      unit:
        description:
          - The systemd unit that may hold the port already. In container runtime it is the container named after it,
            C(mirrorfleet-cache-central) for C(mirrorfleet-cache@central.service).
        type: str
      purpose:
        description: What the port is for, as in a sentence, like V(the edge of central).
        type: str
  disk:
    description: What is to be on disk, and how much must be free for it. What is on one file system is added up.
    type: list
    elements: dict
    default: []
    suboptions:
      path:
        description: A directory or a file. It need not exist yet. What a file that exists takes already need not be free once more.
        type: str
        required: true
      free_bytes:
        description: Bytes that must be free on its file system.
        type: int
        required: true
      purpose:
        description: What it is for, as in a sentence, like V(the caches).
        type: str
  upstreams:
    description:
      - Upstreams in the form that the filter P(mirrorfleet.registry.upstreams#filter) gives them. Each is asked for its C(/v2/) with its credentials,
        or its token endpoint for a token, all at the same time, and waited for 5 seconds. Ansible does not log this option.
    type: list
    elements: dict
    default: []
  allow_unreachable:
    description: Whether an upstream that can't be reached is a warning only.
    type: bool
    default: false
  fail:
    description: Whether to fail when there is a problem, the message being all problems, one a line.
    type: bool
    default: true
"""

EXAMPLES = r"""
- name: This host can become a mirror host
  mirrorfleet.registry.host_check:
    platforms: [debian 12, debian 13, ubuntu 24.04]
    systemd: true
    ports:
      - {port: 5000, unit: mirrorfleet-edge.service, purpose: the edge of central}
      - {address: 127.0.0.1, port: 15000, unit: mirrorfleet-cache@central.service, purpose: the cache of central}
    disk:
      - {path: /var/lib/mirrorfleet/cache, free_bytes: 10737418240, purpose: the caches}
    upstreams: "{{ mirror_upstreams | mirrorfleet.registry.upstreams }}"
    allow_unreachable: "{{ mirror_allow_unreachable_upstreams | default(false) }}"
"""

RETURN = r"""
problems:
  description: What is wrong.
  returned: always
  type: list
  elements: dict
  contains:
    kind:
      description: V(platform), V(systemd), V(docker), V(program), V(port), V(disk), V(upstream) or V(unreachable).
      type: str
    subject:
      description: The thing, as an address with its port, a path or an upstream's name.
      type: str
    message:
      description: A sentence with the value and the remedy.
      type: str
  sample:
    - kind: port
      subject: 0.0.0.0:5000
      message: "0.0.0.0:5000 is needed for the edge of central and in use by nginx (pid 712, unit nginx.service): stop that, or choose another port."
tolerated:
  description: With O(allow_unreachable), the upstreams that gave no answer, in the form of RV(problems). Each is a warning too.
  returned: always
  type: list
  elements: dict
shares:
  description: Which paths of O(disk) are on a file system of another host, by NFS, SMB or the like, and where there.
  returned: always
  type: dict
  sample: {/srv/images: "nas.example.com:/export/images"}
facts:
  description: What the host is. A version is empty where the thing is not there.
  returned: always
  type: dict
  contains:
    platform:
      description: ID and VERSION_ID of os-release.
      type: str
    architecture:
      description: The machine's architecture as the kernel names it.
      type: str
    docker_version:
      description: Version of the Docker daemon that answers.
      type: str
    systemd_version:
      description: Version of the systemd that runs.
      type: str
    python:
      description: Version of the Python that runs modules.
      type: str
  sample: {platform: debian 12, architecture: x86_64, docker_version: 20.10.24, systemd_version: '252', python: 3.11.2}
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.mirrorfleet.registry.plugins.module_utils.errors import RegistryFleetError
from ansible_collections.mirrorfleet.registry.plugins.module_utils.host_check import check

SPEC = dict(
    platforms=dict(type="list", elements="str", default=[]),
    systemd=dict(type="bool", default=False),
    docker=dict(type="bool", default=False),
    programs=dict(type="list", elements="str", default=[]),
    ports=dict(
        type="list",
        elements="dict",
        default=[],
        options=dict(
            address=dict(type="str", default="0.0.0.0"), port=dict(type="int", required=True), unit=dict(type="str"), purpose=dict(type="str")
        ),
    ),
    disk=dict(
        type="list",
        elements="dict",
        default=[],
        options=dict(path=dict(type="str", required=True), free_bytes=dict(type="int", required=True), purpose=dict(type="str")),
    ),
    # no_log keeps the passwords out of the host's journal, where Ansible logs the arguments of every module.
    upstreams=dict(type="list", elements="dict", default=[], no_log=True),
    allow_unreachable=dict(type="bool", default=False),
    fail=dict(type="bool", default=True),
)


def main() -> None:
    module = AnsibleModule(argument_spec=SPEC, supports_check_mode=True)
    # Ansible would also mask every name and port of an upstream in the messages: leave it the secrets.
    secrets = [(each.get("password"), each.get("basic_authorization")) for each in module.params["upstreams"]]
    module.no_log_values = {value for pair in secrets for value in pair if value}
    answer = {"changed": False, "invocation": {"module_args": {key: value for key, value in module.params.items() if key != "upstreams"}}}
    try:
        findings = check(module.params)
    except RegistryFleetError as error:
        module.fail_json(msg=str(error), **answer)
    answer.update(findings.as_dict())
    for each in findings.tolerated:
        module.warn(each.message)
    if findings.problems and module.params["fail"]:
        module.fail_json(msg="\n".join(each.message for each in findings.problems), **answer)
    module.exit_json(**answer)


if __name__ == "__main__":
    main()
