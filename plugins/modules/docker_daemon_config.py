#!/usr/bin/python
# Copyright (c) 2026, mirrorfleet contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

DOCUMENTATION = r"""
module: docker_daemon_config
short_description: Manage some keys of Docker's daemon.json, and the CA certificates of registries
version_added: 0.1.0
author:
  - mirrorfleet contributors (@mirrorfleet)
description:
  - Merges the keys it is given into C(daemon.json) and leaves every other byte of the file as it is.
  - Remembers which keys, which elements of C(registry-mirrors) and C(insecure-registries), and which certificates are its own,
    and what was there before. What is no longer wanted is put back to that.
  - Says what the running daemon does not have yet, also when an earlier run was interrupted, and whether a reload is enough.
    It never reloads or restarts Docker by itself.
  - Before anything is written it refuses invalid JSON, a key that is set by a flag of dockerd too, a mirror that Docker would refuse,
    and whatever C(dockerd --validate) refuses, which Docker has from version 23.
attributes:
  check_mode:
    description: Can run in check mode and tell what would be different, without changing anything.
    support: full
  diff_mode:
    description: Tells the file before and after. Credentials of a proxy and tokens of a log driver are not shown.
    support: full
  idempotent:
    description: A second run changes nothing.
    support: full
  platform:
    description: Linux with Docker 20.10 or later.
    support: full
    platforms: linux
options:
  state:
    description:
      - V(present) makes O(options) and O(ca_certificates) be there, and puts back what is no longer in them.
      - V(absent) puts everything back.
      - Docker forgets a key such as C(registry-mirrors) at a reload only when an empty one is written. Where nothing was there before,
        V(absent) is therefore two runs, with a reload between them. The first writes what clears the key and answers that a reload is
        needed. The second takes the key out. Where no daemon runs one is enough.
    type: str
    choices: [present, absent]
    default: present
  options:
    description:
      - Keys of C(daemon.json) with their values. Of C(registry-mirrors) and C(insecure-registries) the elements are added to those that
        are there, mirrors in front. Any other key is replaced as a whole.
      - C(authorization-plugins) is refused, because dockerd exits when it reloads and cannot reach a plugin.
    type: dict
    default: {}
  ca_certificates:
    description:
      - A CA's certificate in PEM form for each registry, by C(host:port). It becomes C(ca.crt) under O(certs_dir). Docker reads it at each pull.
    type: dict
    default: {}
  path:
    description:
      - Docker's configuration file. Of a link the target is written.
    type: path
    default: /etc/docker/daemon.json
  certs_dir:
    description:
      - Where Docker looks for certificates of registries.
    type: path
    default: /etc/docker/certs.d
  record:
    description:
      - Where the module remembers what is its own. The file is removed when there is nothing left to remember.
    type: path
    default: /var/lib/mirrorfleet/docker_daemon_config.json
"""

EXAMPLES = r"""
- name: Docker asks the data center's mirror first
  mirrorfleet.registry.docker_daemon_config:
    options:
      registry-mirrors:
        - https://mirror.zagreb.example.com:5001
      max-concurrent-downloads: 6
  register: configuration

- name: Docker has taken it over
  ansible.builtin.systemd_service:
    name: docker
    state: reloaded
  when: configuration.pending.reload | length > 0

- name: Docker trusts the mirror's authority
  mirrorfleet.registry.docker_daemon_config:
    ca_certificates:
      mirror.zagreb.example.com:5000: "{{ lookup('ansible.builtin.file', 'pki/ca.pem') }}"

- name: Docker's configuration is as it was before
  mirrorfleet.registry.docker_daemon_config:
    state: absent
"""

RETURN = r"""
keys_changed:
  description: The keys of C(daemon.json) that were, or would be, changed.
  returned: success
  type: list
  elements: str
  sample: [registry-mirrors]
certificates_changed:
  description: The certificates that were, or would be, written or removed.
  returned: success
  type: list
  elements: str
  sample: ["/etc/docker/certs.d/mirror.zagreb.example.com:5000/ca.crt"]
needs:
  description:
    - What the running daemon still needs, V(nothing), V(reload) or V(restart).
    - It does not depend on C(changed), because what an earlier run wrote may not have been taken over.
  returned: success
  type: str
  sample: reload
pending:
  description: The keys that the running daemon does not have yet. A restart is not needed for those under RV(pending.reload).
  returned: success
  type: dict
  contains:
    reload:
      description: Keys that wait for a reload.
      type: list
      elements: str
      sample: [registry-mirrors]
    restart:
      description: Keys that wait for a restart.
      type: list
      elements: str
      sample: [log-driver]
backup:
  description: The copy of the file as it was, or an empty string. The last five are kept, until O(state=absent) is done.
  returned: success
  type: str
  sample: /etc/docker/daemon.json.20260314T091503.120394Z.mirrorfleet~
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.mirrorfleet.registry.plugins.module_utils.daemon_json import secrets_in
from ansible_collections.mirrorfleet.registry.plugins.module_utils.docker_host import DockerHost, configure
from ansible_collections.mirrorfleet.registry.plugins.module_utils.errors import RegistryFleetError


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "options": {"type": "dict", "default": {}},
            "ca_certificates": {"type": "dict", "default": {}},
            "path": {"type": "path", "default": "/etc/docker/daemon.json"},
            "certs_dir": {"type": "path", "default": "/etc/docker/certs.d"},
            "record": {"type": "path", "default": "/var/lib/mirrorfleet/docker_daemon_config.json"},
        },
        supports_check_mode=True,
    )
    parameters = module.params
    # Only some values of options are secrets, so they are named here and not by no_log.
    module.no_log_values.update(secrets_in(parameters["options"]))
    try:
        result = configure(
            DockerHost.look(),
            path=parameters["path"],
            certs_dir=parameters["certs_dir"],
            record_path=parameters["record"],
            options=parameters["options"],
            certificates=parameters["ca_certificates"],
            absent=parameters["state"] == "absent",
            check=module.check_mode,
        )
    except RegistryFleetError as error:
        module.fail_json(msg=str(error))
    module.exit_json(**result.as_dict())


if __name__ == "__main__":
    main()
