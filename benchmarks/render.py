# Copyright (c) 2026, mirrorfleet contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0
"""What the roles would put on a mirror host: their files and directories, rendered by Ansible, and the commands of their units.

Imported by the benchmark; it is no command.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Mapping, Sequence

from programs import BenchmarkError

ROOT = Path(__file__).resolve().parent.parent


@dataclass
class Rendered:
    """A role's files.yml.j2 and directories.yml.j2, for one set of variables."""

    files: list[dict[str, Any]]
    directories: list[dict[str, Any]]

    def write(self, inside: Path) -> None:
        """Put everything where it says, but for what belongs to systemd and logrotate. Nothing is written outside of `inside`."""
        wanted = [each for each in self.files if not each["path"].startswith(("/etc/systemd/", "/etc/logrotate.d/"))]
        for each in (*self.directories, *wanted):
            if inside not in Path(each["path"]).parents:
                raise BenchmarkError(f"a role wants {each['path']}: its variable for that directory must be set in benchmarks/setups.py")
        for each in self.directories:
            Path(each["path"]).mkdir(parents=True, exist_ok=True)
        for each in wanted:
            path = Path(each["path"])
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(each["content"])

    def command(self, instance: str = "") -> list[str]:
        """The command of the role's unit (systemd.service(5), "Command lines"), with its Environment and the variables of its EnvironmentFile."""
        # The one that starts at boot: the cache has another, for the time of a restart.
        unit, = (each["content"] for each in self.files if each["path"].endswith(".service") and "[Install]" in each["content"])
        unit = unit.replace("\\\n", " ").replace("%i", instance)
        values: dict[str, str] = {}
        for path in re.findall(r"(?m)^EnvironmentFile=(.+)$", unit):
            for line in Path(path).read_text().splitlines():
                name, equals, value = line.partition("=")
                if equals and not name.startswith("#"):
                    values[name] = value
        command = re.search(r"(?m)^ExecStart=(.+)$", unit)
        if command is None:
            raise BenchmarkError("a role's unit has no ExecStart")
        environment = [each for line in re.findall(r"(?m)^Environment=(.+)$", unit) for each in shlex.split(line)]
        words = [re.sub(r"\$\{(\w+)\}", lambda match: values[match[1]], word).replace("$$", "$") for word in shlex.split(command[1])]
        return ["env", *environment, *(f"{name}={value}" for name, value in values.items()), *words]


def render(directory: Path, roles: Sequence[str], variables: Mapping[str, Any]) -> dict[str, Rendered]:
    """Let Ansible render the roles, as mirror_service does on a mirror host."""
    directory.mkdir()
    (directory / "variables.json").write_text(json.dumps(variables))
    plays = []
    for role in roles:
        home = ROOT / "roles" / role
        if not home.is_dir():
            raise BenchmarkError(f"roles/{role} is not there")
        (directory / role).mkdir()
        tasks = []
        for name in ("files", "directories"):
            if (home / "templates" / f"{name}.yml.j2").exists():
                content = f"{{{{ lookup('ansible.builtin.template', '{name}.yml.j2') | from_yaml | to_json }}}}"
                tasks.append({"ansible.builtin.copy": {"content": content, "dest": str(directory / role / f"{name}.json"), "mode": "0600"}})
        defaults = [str(home / name / "main.yml") for name in ("defaults", "vars")]
        # Ansible knows role_path where a role runs.
        play = [{
            "hosts": "localhost", "gather_facts": False, "vars": {"role_path": str(home)},
            "vars_files": [*defaults, str(directory / "variables.json")], "tasks": tasks,
        }]
        (directory / role / "play.yml").write_text(json.dumps(play))
        # A play looks for templates beside itself.
        (directory / role / "templates").symlink_to(home / "templates")
        plays.append(str(directory / role / "play.yml"))
    command = shutil.which("ansible-playbook", path=f"{ROOT / '.venv' / 'bin'}:{os.environ['PATH']}")
    if command is None:
        raise BenchmarkError("ansible-playbook is missing: make venv")
    environment = {**os.environ, "ANSIBLE_COLLECTIONS_PATH": str(ROOT / ".collections"), "ANSIBLE_NOCOLOR": "1", "ANSIBLE_FORCE_COLOR": "0"}
    done = subprocess.run(
        [command, "--inventory", "localhost,", "--connection", "local", "--extra-vars", f"ansible_python_interpreter={sys.executable}", *plays],
        cwd=directory, env=environment, capture_output=True, text=True, check=False,
    )
    if done.returncode:
        raise BenchmarkError(f"Ansible could not render the roles:\n{(done.stdout + done.stderr)[-3000:]}")
    return {role: Rendered(*(_read(directory / role / f"{name}.json") for name in ("files", "directories"))) for role in roles}


def _read(path: Path) -> list[dict[str, Any]]:
    return list(json.loads(path.read_text())) if path.exists() else []
