#!/usr/bin/python
# Copyright (c) 2026, mirrorfleet contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

DOCUMENTATION = r"""
module: service_config
short_description: Everything that a role configures on a host, written in one go
version_added: 0.1.0
author:
  - mirrorfleet contributors (@mirrorfleet)
description:
  - Writes directories and files atomically, after a validator has accepted them, removes the files it wrote earlier that are no longer wanted,
    and says what the service's units still need.
  - What it owns stands in C(/var/lib/mirrorfleet/records/<name>.json). Nothing else is ever removed.
    A foreign file at a path that is wanted is kept beside it as C(<path>.<UTC>.mirrorfleet~) and comes back with O(state=absent);
    a file that already is as wanted stays foreign.
  - It starts, restarts and stops nothing itself. Give RV(actions) to M(ansible.builtin.systemd_service).
  - What a running unit has read is known from C(/run/mirrorfleet/revisions/<unit>), which each unit copies there from
    C(/var/lib/mirrorfleet/revisions/<unit>) when it starts and when it reloads. So a run that was interrupted between writing and restarting
    is finished by the next one, and a unit that was restarted by hand is not restarted again.
attributes:
  check_mode:
    description: Can run without changing anything.
    support: full
    details:
      - Users and groups that are yet to be created are tolerated. The validators run when everything they need is there.
  diff_mode:
    description: Says what changes.
    support: full
    details:
      - Of a secret file it only says that it differs.
  idempotent:
    description: A second run changes nothing.
    support: full
options:
  name:
    description: The name of the service's record, lower-case letters, digits, C(-) and C(_).
    type: str
    required: true
  state:
    description:
      - V(present) makes the host have what is wanted.
      - V(absent) is called twice. While units are active or enabled it removes nothing and says that they must stop.
        Once they have, it removes what it owns, and says what was installed for the service.
    type: str
    choices: [present, absent]
    default: present
  platforms:
    description: Where the service is supported, like V(debian 12) or V(ubuntu 24.04). None means anywhere.
    type: list
    elements: str
    default: []
  requires:
    description:
      - What must be there before anything is written. If something is missing, it is returned as RV(missing) and nothing is written.
        The record remembers it as installed for this service.
    type: dict
    default: {}
    suboptions:
      packages:
        description: Names of Debian packages.
        type: list
        elements: str
        default: []
      users:
        description: Names of users.
        type: list
        elements: str
        default: []
      images:
        description: References of images in the local Docker.
        type: list
        elements: str
        default: []
  directories:
    description: Directories, made before the files. Parents that are missing are made with mode 0755 and belong to root.
    type: list
    elements: dict
    default: []
    suboptions:
      path:
        description: Absolute path.
        type: str
        required: true
      owner:
        description: Name or id of the owner.
        type: str
        default: root
      group:
        description: Name or id of the group.
        type: str
        default: root
      mode:
        description: Octal mode.
        type: str
        default: '0755'
  files:
    description: Files, with their whole content. Ansible does not log this option.
    type: list
    elements: dict
    default: []
    suboptions:
      path:
        description: Absolute path.
        type: str
        required: true
      content:
        description: The whole content.
        type: str
        required: true
      owner:
        description: Name or id of the owner.
        type: str
        default: root
      group:
        description: Name or id of the group.
        type: str
        default: root
      mode:
        description: Octal mode.
        type: str
        default: '0644'
      secret:
        description: Whether the content stays out of diffs and messages.
        type: bool
        default: false
      needs:
        description:
          - What the units need when the file is different. A unit's own file in C(/etc/systemd/system), or its template's, always needs V(restart).
        type: str
        choices: [restart, reload, nothing]
        default: restart
      units:
        description: Which of O(units) read the file. None means all.
        type: list
        elements: str
        default: []
  units:
    description: The systemd units of the service.
    type: list
    elements: str
    default: []
  validate:
    description:
      - Commands that must end with 0 before a file is written. They run when a file is to be written or removed.
        If one fails, nothing is changed.
    type: list
    elements: dict
    default: []
    suboptions:
      directory:
        description: The wanted files below this directory are copied to a private directory, with their owners and modes.
        type: str
        required: true
      command:
        description:
          - The command and its arguments. C({directory}) stands for the copy, C({uid}) and C({gid}) for the ids of O(validate[].user).
        type: list
        elements: str
        required: true
      user:
        description: The user who runs the command. A C(docker) command runs as root and gets the user by C({uid}).
        type: str
  secrets:
    description:
      - Values that must not appear in a result. Without them, every word of a secret file that could be a secret is masked in a validator's message.
    type: list
    elements: str
    default: []
"""

EXAMPLES = r"""
- name: The rewrite front's configuration is written
  mirrorfleet.registry.service_config:
    name: front
    platforms: [debian 12, debian 13, ubuntu 24.04]
    requires:
      packages: [haproxy]
      users: [mirrorfleet-front]
    directories:
      - path: /etc/mirrorfleet/front
        group: mirrorfleet-front
        mode: '0750'
    files:
      - path: /etc/mirrorfleet/front/haproxy.cfg
        content: "{{ lookup('ansible.builtin.template', 'haproxy.cfg.j2') }}"
        group: mirrorfleet-front
        mode: '0640'
        secret: true
        needs: reload
      - path: /etc/systemd/system/mirrorfleet-front.service
        content: "{{ lookup('ansible.builtin.template', 'mirrorfleet-front.service.j2') }}"
    units: [mirrorfleet-front.service]
    validate:
      - directory: /etc/mirrorfleet/front
        command: [haproxy, -c, -q, -f, '{directory}/haproxy.cfg']
        user: mirrorfleet-front
  register: front

- name: The rewrite front runs what is written
  ansible.builtin.systemd_service:
    name: "{{ item.unit }}"
    state: "{{ {'start': 'started', 'stop': 'stopped', 'restart': 'restarted', 'reload': 'reloaded'}[item.action] }}"
    enabled: "{{ item.action != 'stop' }}"
    daemon_reload: "{{ front.daemon_reload }}"
  loop: "{{ front.actions }}"
"""

RETURN = r"""
missing:
  description: What must be installed first. If anything is, and this is no check, nothing was written.
  returned: always
  type: dict
  sample: {packages: [haproxy], users: [], images: []}
installed:
  description: What was missing when the service came, and no other service requires, so what to remove now.
  returned: always, filled by the call with O(state=absent) that removes the files
  type: dict
  sample: {packages: [haproxy], users: [mirrorfleet-front], images: []}
directories:
  description: Paths of the directories made, or whose owner or mode was corrected.
  returned: always
  type: list
  elements: str
files:
  description: Paths of the files written, or whose owner or mode was corrected.
  returned: always
  type: list
  elements: str
removed:
  description: Paths of files and directories removed, or replaced by what was there before.
  returned: always
  type: list
  elements: str
kept:
  description: Directories of the service that hold files of others and therefore stay, with O(state=absent).
  returned: always
  type: list
  elements: str
actions:
  description:
    - What the units still need, at most one action a unit, C(stop) first. C(start) includes enabling.
  returned: always
  type: list
  elements: dict
  contains:
    unit:
      description: The unit.
      type: str
    action:
      description: V(start), V(restart), V(reload) or V(stop).
      type: str
  sample: [{unit: mirrorfleet-front.service, action: restart}]
daemon_reload:
  description: Whether systemd must read its unit files again before the actions.
  returned: always
  type: bool
"""

from dataclasses import asdict

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.mirrorfleet.registry.plugins.module_utils.errors import RegistryFleetError
from ansible_collections.mirrorfleet.registry.plugins.module_utils.service_config import ServiceConfig, wanted_from

LISTS = dict(type="list", elements="str", default=[])
OWNED = dict(path=dict(type="str", required=True), owner=dict(type="str", default="root"), group=dict(type="str", default="root"))
SPEC = dict(
    name=dict(type="str", required=True),
    state=dict(type="str", choices=["present", "absent"], default="present"),
    platforms=LISTS,
    requires=dict(type="dict", default={}, options=dict(packages=LISTS, users=LISTS, images=LISTS)),
    directories=dict(type="list", elements="dict", default=[], options=dict(OWNED, mode=dict(type="str", default="0755"))),
    # no_log keeps the contents out of the host's journal, where Ansible logs the arguments of every module.
    files=dict(
        type="list",
        elements="dict",
        default=[],
        no_log=True,
        options=dict(
            OWNED,
            content=dict(type="str", required=True),
            mode=dict(type="str", default="0644"),
            secret=dict(type="bool", default=False, no_log=False),
            needs=dict(type="str", choices=["restart", "reload", "nothing"], default="restart"),
            units=LISTS,
        ),
    ),
    units=LISTS,
    validate=dict(
        type="list",
        elements="dict",
        default=[],
        options=dict(directory=dict(type="str", required=True), command=dict(type="list", elements="str", required=True), user=dict(type="str")),
    ),
    secrets=dict(type="list", elements="str", default=[], no_log=True),
)


def main() -> None:
    module = AnsibleModule(argument_spec=SPEC, supports_check_mode=True)
    arguments = module.params
    # Ansible would also mask every path and word of `files` in the result: leave it the secrets.
    module.no_log_values = {value for value in arguments["secrets"] if value}
    module.no_log_values.update(each["content"] for each in arguments["files"] if each["secret"] and each["content"].strip())
    answer = {"invocation": {"module_args": {key: arguments[key] for key in ("name", "state", "requires", "units")}}}
    try:
        service = ServiceConfig(arguments["name"], module.check_mode, relabel=lambda path: module.set_default_selinux_context(path, False))
        if arguments["state"] == "present":
            result = service.present(wanted_from(arguments))
        else:
            result = service.absent()
        answer.update(asdict(result))
    except (RegistryFleetError, OSError) as error:
        module.fail_json(msg=str(error), **answer)
    module.exit_json(**answer)


if __name__ == "__main__":
    main()
