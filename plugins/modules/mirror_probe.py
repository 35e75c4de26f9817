#!/usr/bin/python
# Copyright (c) 2026, mirrorfleet contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0
"""Does this docker host's own Docker really use the mirrors?"""

from __future__ import annotations

DOCUMENTATION = r"""
module: mirror_probe
short_description: Find out whether a docker host's own Docker really uses the mirrors
version_added: 0.1.0
description:
  - Docker goes to the Docker Hub without a word when a mirror fails, so that pulls succeed proves nothing. This module looks at three things.
  - What the running Docker has for its configuration, and whether C(daemon.json) says something else by now.
  - Whether this host reaches each mirror, whether its certificate is trusted as Docker trusts it, and how fast it answers.
  - Whether Docker gets an image from it. The edge of every mirror host has a canary, C(mirrorfleet-edge/canary:1), which no registry has and which
    needs no upstream. Docker is told to pull it, and its digest must be the one that a mirror gives. The image's label names the mirror host.
  - The image is a kilobyte. No container is started, and the image is removed unless it was there before.
author:
  - mirrorfleet contributors (@mirrorfleet)
attributes:
  check_mode:
    description: Runs the same in check mode.
    support: partial
    details:
      - Docker pulls nothing, as with O(pull=false).
  diff_mode:
    description: Shows what has changed.
    support: none
  idempotent:
    description: Leaves the host as it was.
    support: full
options:
  registries:
    description: The data center's mirrors by whose name images are pulled, as C(host:port).
    type: list
    elements: str
    default: []
  docker_hub:
    description: Whether images of the Docker Hub are to come by a mirror, by Docker's C(registry-mirrors).
    type: bool
    default: true
  pull:
    description: Whether Docker is to pull the canary.
    type: bool
    default: true
  username:
    description: The login for mirrors that ask for one.
    type: str
    default: ""
  password:
    description: Its password.
    type: str
    default: ""
  timeout:
    description: Seconds to wait for each answer of a mirror, and of Docker.
    type: float
    default: 10.0
  pull_timeout:
    description: Seconds to wait for each pull.
    type: float
    default: 60.0
  fail:
    description: Whether to fail when RV(uses_mirror) is V(false).
    type: bool
    default: false
  docker_socket:
    description: The socket of the Docker daemon. Empty means that of the daemon that runs as C(docker.service), wherever it is.
    type: path
    default: ""
  daemon_json:
    description: Docker's configuration.
    type: path
    default: /etc/docker/daemon.json
  certs_dir:
    description: Where Docker's CA files and C(hosts.toml) are, a directory for each registry.
    type: path
    default: /etc/docker/certs.d
notes:
  - C(hosts.toml) is read where Docker uses the containerd image store, as Docker does.
  - An image of that name that was there before may be another one afterwards.
seealso:
  - module: mirrorfleet.registry.mirror_pull
  - module: mirrorfleet.registry.docker_daemon_config
"""

EXAMPLES = r"""
- name: This docker host is asked
  mirrorfleet.registry.mirror_probe:
    registries: ["mirror1.zagreb.example.com:5000"]
  become: true
  register: probe

- name: It uses its mirror
  ansible.builtin.assert:
    that: probe.uses_mirror
    fail_msg: "{{ probe.why_not }}"

- name: The mirror hosts that its Docker got the canary from
  ansible.builtin.debug:
    msg: "{{ probe | community.general.json_query('pulls[?uses_mirror].mirror_host') }}"

- name: Mirrors whose certificate is valid for less than 30 days, or not trusted
  ansible.builtin.debug:
    msg: "{{ probe | community.general.json_query('mirrors[?tls.days < `30` || tls.trusted == `false`].{url: url, days: tls.days, why: tls.why_not}') }}"
"""

RETURN = r"""
uses_mirror:
  description: Whether Docker got the canary from a mirror, for every registry that is to have one. Null when it was not told to pull and nothing is wrong yet.
  returned: success
  type: bool
  sample: true
why_not:
  description: Why it is V(false), in sentences; empty when it is not.
  returned: success
  type: str
  sample: ""
docker:
  description: The running daemon.
  returned: success
  type: dict
  contains:
    version:
      description: Its version.
      type: str
      sample: 28.2.2
    image_store:
      description: V(containerd) or V(classic).
      type: str
      sample: classic
    registry_mirrors:
      description: Its mirrors of the Docker Hub, in the order in which it asks them.
      type: list
      elements: str
      sample: ["https://mirror1.zagreb.example.com:5001/"]
    insecure_registries:
      description: Registries and networks for which it does not ask for a trusted certificate.
      type: list
      elements: str
      sample: [127.0.0.0/8]
    pending:
      description: Keys of C(daemon.json) whose value the daemon does not have. It needs a reload.
      type: list
      elements: str
      sample: []
    why_not:
      description: Why the daemon or its configuration can't be read.
      type: str
      sample: ""
mirrors:
  description: Each address of each mirror, as this host sees it.
  returned: success
  type: list
  elements: dict
  contains:
    registry:
      description: What it is a mirror of, V(docker.io) or one of O(registries).
      type: str
      sample: docker.io
    url:
      description: Its URL.
      type: str
      sample: https://mirror1.zagreb.example.com:5001
    address:
      description: The address, or null where its name has none.
      type: str
      sample: 10.20.0.11
    reachable:
      description: Whether it answers HTTP.
      type: bool
      sample: true
    status:
      description: The status of C(/v2/), or null.
      type: int
      sample: 200
    milliseconds:
      description: From a request on an open connection to the answer's first byte, or null.
      type: float
      sample: 0.8
    mirror_host:
      description: The mirror host that answered, by its name in the inventory.
      type: str
      sample: mirror1.zagreb.example.com
    digest:
      description: The digest of its canary.
      type: str
      sample: sha256:2d1b2f0e9a5f6f9c1f0f5b1b1a3b7d3c5a8f1e4b6d9c2a7e0f3b5d8c1a4e7f0b
    tls:
      description:
        - Null for plain HTTP. C(trusted) is null where Docker does not ask; C(days) says how long the certificate is valid yet, and is negative when it
          has expired; C(signed_by) is the authority; C(why_not) says why it is not trusted.
      type: dict
      sample: {"trusted": true, "days": 397, "signed_by": "mirrorfleet authority", "why_not": ""}
    why_not:
      description: What is wrong, or an empty string.
      type: str
      sample: ""
pulls:
  description: What Docker got, for each registry that is to have a mirror.
  returned: success
  type: list
  elements: dict
  contains:
    registry:
      description: V(docker.io), one of O(registries), or one with a C(hosts.toml).
      type: str
      sample: docker.io
    image:
      description: What it was told to pull.
      type: str
      sample: mirrorfleet-edge/canary:1
    uses_mirror:
      description: Whether the image came from a mirror, or null when Docker was not told to pull.
      type: bool
      sample: true
    mirror_host:
      description: The mirror host that it came from.
      type: str
      sample: mirror1.zagreb.example.com
    digest:
      description: Its digest.
      type: str
      sample: sha256:2d1b2f0e9a5f6f9c1f0f5b1b1a3b7d3c5a8f1e4b6d9c2a7e0f3b5d8c1a4e7f0b
    seconds:
      description: How long the pull took, or null.
      type: float
      sample: 0.21
    why_not:
      description: What is wrong, or an empty string.
      type: str
      sample: ""
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.mirrorfleet.registry.plugins.module_utils.errors import RegistryFleetError
from ansible_collections.mirrorfleet.registry.plugins.module_utils.mirror_probe import Question, probe


def main() -> None:
    """Look, and answer."""
    module = AnsibleModule(
        argument_spec={
            "registries": {"type": "list", "elements": "str", "default": []},
            "docker_hub": {"type": "bool", "default": True},
            "pull": {"type": "bool", "default": True},
            "username": {"type": "str", "default": ""},
            "password": {"type": "str", "default": "", "no_log": True},
            "timeout": {"type": "float", "default": 10.0},
            "pull_timeout": {"type": "float", "default": 60.0},
            "fail": {"type": "bool", "default": False},
            "docker_socket": {"type": "path", "default": ""},
            "daemon_json": {"type": "path", "default": "/etc/docker/daemon.json"},
            "certs_dir": {"type": "path", "default": "/etc/docker/certs.d"},
        },
        supports_check_mode=True,
    )
    options = dict(module.params)
    fail = options.pop("fail")
    options["pull"] = options["pull"] and not module.check_mode
    try:
        found = probe(Question(**options))
    except RegistryFleetError as error:
        module.fail_json(msg=str(error))
    if fail and found["uses_mirror"] is False:
        module.fail_json(msg=found["why_not"], **found)
    module.exit_json(changed=False, **found)


if __name__ == "__main__":
    main()
