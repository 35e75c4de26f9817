# Copyright (c) 2026, mirrorfleet contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0
"""Counts the remote commands of a site.yml that changes nothing, host by host, over SSH with pipelining.

usage: benchmarks/remote_commands.py        (after `make lab`, as the same user)

It lets the lab's hosts be reached by SSH, runs site.yml once so that nothing is left to do, runs it again with -vvv and
counts the lines that Ansible prints for each command it sends. Connections are counted as well: ControlPersist keeps one.
"""

from __future__ import annotations

import collections
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENT = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "ANSIBLE_NOCOLOR": "1", "ANSIBLE_FORCE_COLOR": "0"}
INVENTORY = ["--inventory", str(ROOT / "inventories" / "lab")]


def output(*argv: str) -> str:
    done = subprocess.run(argv, cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(argv)} ended with {done.returncode}:\n{done.stdout[-3000:]}")
    return done.stdout


def address(container: str) -> str:
    """An address of the container that this machine reaches."""
    networks = json.loads(output("docker", "inspect", "--format", "{{json .NetworkSettings.Networks}}", container))
    return next(iter(networks.values()))["IPAddress"]


def main() -> None:
    hosts = output("ansible", *INVENTORY, "mirrors:docker_hosts", "--list-hosts").split()
    hosts = [host for host in hosts if re.fullmatch(r"(mirror|docker)-\S+", host)]
    with tempfile.TemporaryDirectory() as directory:
        key = Path(directory) / "key"
        output("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key))
        overlay: dict[str, dict[str, str]] = {}
        for host in hosts:
            container = f"lab-{host}"
            public = key.with_suffix(".pub").read_text().strip()
            script = f"mkdir -p /root/.ssh && echo '{public}' >/root/.ssh/authorized_keys && ssh-keygen -qA && systemctl start ssh"
            output("docker", "exec", container, "sh", "-c", script)
            overlay[host] = {
                "ansible_connection": "ssh",
                "ansible_host": address(container),
                "ansible_user": "root",
                "ansible_ssh_private_key_file": str(key),
                "ansible_ssh_extra_args": "-o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null",
                "ansible_control_path_dir": directory,
            }
        inventory = Path(directory) / "ssh.json"
        inventory.write_text(json.dumps({"all": {"hosts": overlay}}))
        site = ["ansible-playbook", *INVENTORY, "--inventory", str(inventory), "playbooks/site.yml"]
        output(*site)
        told = output(*site, "-vvv")
    if re.search(r"changed=[1-9]", told):
        sys.exit("the second run changed something, so it can't be counted")
    commands = collections.Counter(re.findall(r"^<([0-9a-f.:]+)> SSH: EXEC ", told, re.M))
    print("remote commands of a site.yml that changes nothing (SSH, pipelining)")
    for host in hosts:
        print(f"  {host:24} {commands[overlay[host]['ansible_host']]}")


if __name__ == "__main__":
    main()
