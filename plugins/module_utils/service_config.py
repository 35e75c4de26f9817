# Copyright (c) 2026, mirrorfleet contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0
"""Everything a role configures on a host, written in one go, owned by a record, and undone by it.

The record (/var/lib/mirrorfleet/records/<name>.json) lists what is ours. It is written before anything it names comes into
being and shortened only after that is gone, so a run that is killed anywhere leaves nothing that the next run does not know.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets as random
import shutil
import subprocess
from dataclasses import asdict, dataclass, field
from typing import Any, Callable, Iterable, Mapping, Sequence

from ansible_collections.mirrorfleet.registry.plugins.module_utils import files
from ansible_collections.mirrorfleet.registry.plugins.module_utils.errors import RegistryFleetError
from ansible_collections.mirrorfleet.registry.plugins.module_utils.files import Attributes

KINDS = ("packages", "users", "images")
VALIDATION_SECONDS = 120


@dataclass(frozen=True)
class Layout:
    """Where the module keeps its own files."""

    state: str = "/var/lib/mirrorfleet"
    run: str = "/run/mirrorfleet"
    unit_files: str = "/etc/systemd/system"


@dataclass(frozen=True)
class Directory:
    path: str
    owner: str = "root"
    group: str = "root"
    mode: int = 0o755


@dataclass(frozen=True)
class File:
    """`needs` says what the `units` need when the file is different: restart, reload or nothing."""

    path: str
    content: bytes
    owner: str = "root"
    group: str = "root"
    mode: int = 0o644
    secret: bool = False
    needs: str = "restart"
    units: tuple[str, ...] = ()


@dataclass(frozen=True)
class Validation:
    directory: str
    command: tuple[str, ...]
    user: str | None = None


@dataclass(frozen=True)
class Wanted:
    """What a host is to have. `secrets` are values that never appear in a message."""

    platforms: tuple[str, ...] = ()
    requires: Mapping[str, Sequence[str]] = field(default_factory=dict)
    directories: tuple[Directory, ...] = ()
    files: tuple[File, ...] = ()
    units: tuple[str, ...] = ()
    validate: tuple[Validation, ...] = ()
    secrets: tuple[str, ...] = ()


@dataclass
class Record:
    """What is ours on this host.

    files: path -> {backup: path of the foreign file that was there before, or None; secret: bool}
    directories: path -> None when we made it, else the [uid, gid, mode] it had before
    installed: what was missing when the role came, so the role's to remove
    salt: keeps the hashes in the world-readable revisions from telling anything about a secret
    """

    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    directories: dict[str, list[int] | None] = field(default_factory=dict)
    units: list[str] = field(default_factory=list)
    requires: dict[str, list[str]] = field(default_factory=lambda: {kind: [] for kind in KINDS})
    installed: dict[str, list[str]] = field(default_factory=lambda: {kind: [] for kind in KINDS})
    salt: str = field(default_factory=lambda: random.token_hex(16))

    def owns_anything(self) -> bool:
        return bool(self.files or self.directories or self.units or any(self.installed.values()))


@dataclass(frozen=True)
class Plan:
    """What is to be done. The parts are filled by ServiceConfig._plan(), which says what each one is."""

    attributes: dict[str, Attributes]
    directories: dict[str, tuple[Attributes | None, Attributes]]
    files: list[tuple[File, files.Seen | None]]
    unwanted: list[str]
    emptied: list[str]
    released: list[str]
    revisions: dict[str, bytes]
    running: dict[str, bytes | None]
    states: dict[str, UnitState]
    leaving: list[str]

    @property
    def created(self) -> list[str]:
        """The directories to be made, parents first."""
        return [path for path, (was, _becomes) in self.directories.items() if was is None]


@dataclass(frozen=True)
class UnitState:
    """Properties of `systemctl show`, see org.freedesktop.systemd1(5)."""

    load: str
    active: str
    file: str
    stale: bool

    @property
    def up(self) -> bool:
        return self.active in ("active", "reloading", "refreshing")

    @property
    def enabled(self) -> bool:
        return self.file in ("enabled", "static", "generated", "alias", "indirect")

    @property
    def to_stop(self) -> bool:
        return self.active not in ("inactive", "failed") or self.file in ("enabled", "enabled-runtime")


@dataclass
class Result:
    changed: bool = False
    missing: dict[str, list[str]] = field(default_factory=lambda: {kind: [] for kind in KINDS})
    installed: dict[str, list[str]] = field(default_factory=lambda: {kind: [] for kind in KINDS})
    directories: list[str] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    actions: list[dict[str, str]] = field(default_factory=list)
    daemon_reload: bool = False
    diff: list[dict[str, str]] = field(default_factory=list)


def run(argv: Sequence[str], timeout: float = 60) -> subprocess.CompletedProcess[str]:
    """A command's outcome, its messages in English. Raises FileNotFoundError, and RegistryFleetError after `timeout` seconds."""
    try:
        return subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            env={**os.environ, "PATH": search_path(), "LC_ALL": "C"},
            cwd="/",
            timeout=timeout,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise RegistryFleetError(f"`{' '.join(argv[:2])}` gave no answer in {timeout:g} s.") from error


def search_path() -> str:
    """Where commands are: Debian's su and sudo can leave out the sbin directories."""
    return os.environ.get("PATH", "") + ":/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def platform(os_release: str = "/etc/os-release") -> str:
    """Like "debian 12": ID and VERSION_ID of os-release(5)."""
    try:
        with open(os_release, encoding="utf-8") as stream:
            values = dict(line.strip().split("=", 1) for line in stream if "=" in line)
    except FileNotFoundError:
        return "unknown"
    return " ".join(values[key].strip("\"'") for key in ("ID", "VERSION_ID") if key in values)


def check_platform(platforms: Sequence[str], found: str) -> None:
    if platforms and not any(found == each or found.startswith(each + " ") for each in platforms):
        raise RegistryFleetError(
            f"This host is {found}, and this service is supported on {', '.join(platforms)}: "
            "use one of them, or `mirror_runtime: container` where Docker runs."
        )


def missing_packages(names: Sequence[str]) -> list[str]:
    """Those of the Debian packages that are not installed."""
    if not names:
        return []
    try:
        out = run(["dpkg-query", "--show", "--showformat", "${Package} ${db:Status-Status}\n", "--", *names]).stdout
    except FileNotFoundError as error:
        raise RegistryFleetError(
            f"The packages {', '.join(names)} are required, and this host has no dpkg: use `mirror_runtime: container`."
        ) from error
    installed = {line.split()[0] for line in out.splitlines() if line.endswith(" installed")}
    return [name for name in names if name not in installed]


def missing_images(names: Sequence[str], docker_expected: bool) -> list[str]:
    """Those of the images that the local Docker does not have. All of them while there is no Docker, unless that is an error."""
    missing = []
    for name in names:
        try:
            answer = run(["docker", "image", "inspect", "--format", "{{.Id}}", name])
            problem = answer.stderr.strip() if answer.returncode and "no such image" not in answer.stderr.lower() else ""
        except FileNotFoundError:
            answer, problem = None, "there is no docker command"
        if problem and docker_expected:
            raise RegistryFleetError(f"Docker does not answer for the image {name}: {problem}. Install and start Docker first.")
        if answer is None or answer.returncode:
            missing.append(name)
    return missing


def unit_states(units: Sequence[str]) -> dict[str, UnitState]:
    """What systemd says of all `units`, asked once."""
    if not units:
        return {}
    if not os.path.isdir("/run/systemd/system"):
        raise RegistryFleetError(f"systemd does not run on this host, and it is to run {', '.join(units)}: use a host with systemd.")
    answer = run(["systemctl", "show", "--property=LoadState,ActiveState,UnitFileState,NeedDaemonReload", "--", *units])
    blocks = [dict(line.split("=", 1) for line in block.splitlines()) for block in answer.stdout.strip().split("\n\n")]
    if answer.returncode or len(blocks) != len(units):
        raise RegistryFleetError(f"systemd does not say how {', '.join(units)} are: {answer.stderr.strip() or answer.stdout.strip()}")
    return {
        unit: UnitState(block["LoadState"], block["ActiveState"], block.get("UnitFileState", ""), block["NeedDaemonReload"] == "yes")
        for unit, block in zip(units, blocks)
    }


def unit_file_names(unit: str) -> list[str]:
    """The names of the files that can define a unit: its own and, for an instance, its template's."""
    prefix, at, rest = unit.partition("@")
    return [unit, f"{prefix}@.{rest.rpartition('.')[2]}"] if at else [unit]


def needed_action(state: UnitState, wanted: bytes, running: bytes | None) -> str | None:
    """What brings a unit from its state, and the revision that it runs (None: not known), to the wanted revision.

    A revision is two lines: of the files that need a restart, of those that need a reload.
    """
    same_restart, same_reload = (running or b"\n").split(b"\n")[0] == wanted.split(b"\n")[0], running == wanted
    if state.up:
        if not same_restart:
            return "restart"
        if not same_reload:
            return "reload"
        return None if state.enabled else "start"
    # A unit that is just starting may have read its files already.
    return "restart" if state.active == "activating" and not same_reload else "start"


def wanted_from(arguments: Mapping[str, Any]) -> Wanted:
    """The module's arguments as a Wanted. Raises RegistryFleetError for a mode that is none."""

    def octal(entry: Mapping[str, Any]) -> int:
        if not re.fullmatch(r"[0-7]{3,4}", entry["mode"]):
            raise RegistryFleetError(f"The mode of {entry['path']} is {entry['mode']!r}: write it in octal and in quotes, like '0644'.")
        return int(entry["mode"], 8)

    return Wanted(
        platforms=tuple(arguments["platforms"]),
        requires={kind: (arguments["requires"] or {}).get(kind) or [] for kind in KINDS},
        directories=tuple(Directory(**{**each, "mode": octal(each)}) for each in arguments["directories"]),
        files=tuple(
            File(**{**each, "mode": octal(each), "content": each["content"].encode(), "units": tuple(each["units"])}) for each in arguments["files"]
        ),
        units=tuple(arguments["units"]),
        validate=tuple(Validation(each["directory"], tuple(each["command"]), each["user"]) for each in arguments["validate"]),
        secrets=tuple(arguments["secrets"]),
    )


class ServiceConfig:
    """One named set of files on this host. `relabel` is told each path written (SELinux)."""

    def __init__(self, name: str, check: bool = False, layout: Layout = Layout(), relabel: Callable[[str], object] = lambda path: None) -> None:
        if not re.fullmatch(r"[a-z][a-z0-9_-]*", name):
            raise RegistryFleetError(f"name is {name!r}: write lower-case letters, digits, - and _, a letter first.")
        self.name = name
        self.check = check
        self.layout = layout
        self.relabel = relabel
        self.records = os.path.join(layout.state, "records")
        self.revisions = os.path.join(layout.state, "revisions")
        self.running = os.path.join(layout.run, "revisions")
        self.staging = f"{layout.run}-staging-{name}"
        self.record = self._load(name)
        self.others = {other: self._load(other) for other in self._other_names()}

    # --- the record

    def _path(self, name: str) -> str:
        return os.path.join(self.records, f"{name}.json")

    def _other_names(self) -> list[str]:
        try:
            names = sorted(each[: -len(".json")] for each in os.listdir(self.records) if each.endswith(".json") and not each.startswith("."))
        except FileNotFoundError:
            return []
        return [each for each in names if each != self.name]

    def _load(self, name: str) -> Record:
        path = self._path(name)
        seen = files.look(path)
        if seen is None:
            return Record()
        try:
            return Record(**json.loads(seen.content or b""))
        except (ValueError, TypeError) as error:
            raise RegistryFleetError(f"{path} lists what is ours on this host and is not readable ({error}): restore it.") from error

    def _save(self, name: str, record: Record) -> None:
        """Write a record, if it is different; a record of nothing is removed."""
        path = self._path(name)
        if not record.owns_anything():
            files.discard(files.temporary(path))
            files.discard(path)
            for directory in (self.records, self.revisions, self.layout.state, self.running, self.layout.run):
                files.remove_directory(directory)
            return
        content = json.dumps(asdict(record), indent=1, sort_keys=True).encode() + b"\n"
        seen = files.look(path)
        if seen is None or seen.content != content:
            files.make_directory(self.layout.state)
            files.make_directory(self.records, Attributes(0, 0, 0o700))
            files.write(path, content, mode=0o600)

    # --- present

    def present(self, wanted: Wanted) -> Result:
        """Make the host have what is wanted, or say what must be installed first."""
        self._check(wanted)
        check_platform(wanted.platforms, platform())
        result = Result(missing=self._missing(wanted.requires))
        record = self.record
        before = Record(**asdict(record))
        record.requires = {kind: sorted(wanted.requires.get(kind) or []) for kind in KINDS}
        if any(result.missing.values()) and not self.check:
            record.installed = {kind: sorted({*record.installed[kind], *result.missing[kind]}) for kind in KINDS}
            self._save(self.name, record)
            return result

        plan = self._plan(wanted)
        self._tell(plan, wanted, result)
        if self.check:
            unknown = any(None in becomes for becomes in plan.attributes.values())
            if not unknown and not plan.created and not any(result.missing.values()):
                self._validate(wanted, plan)
            return result

        # From here on the host is changed. Directories first: a validator may need them (a log's, for one).
        for path, (was, _becomes) in plan.directories.items():
            record.directories.setdefault(path, None if was is None else list(_known(was)))
        if plan.directories:
            self._save(self.name, record)
        for path in plan.created:
            files.make_directory(path, plan.directories[path][1])
            self.relabel(path)
        try:
            self._validate(wanted, plan)
        except RegistryFleetError:
            left = {path for path in reversed(plan.created) if not files.remove_directory(path)}
            before.directories.update(dict.fromkeys(left))
            self._save(self.name, before)
            raise
        self._write(wanted, plan)
        return result

    def _plan(self, wanted: Wanted) -> Plan:
        """What is, against what is wanted. Raises RegistryFleetError for what must not be touched."""
        record = self.record
        states = unit_states(list(dict.fromkeys([*wanted.units, *record.units])))
        for unit in wanted.units:
            if states[unit].load == "masked":
                raise RegistryFleetError(f"{unit} is masked and cannot start: find out why, and run `systemctl unmask {unit}`.")
        leaving = [unit for unit in record.units if unit not in wanted.units and states[unit].to_stop]
        attributes = self._attributes(wanted)
        directories = self._directory_changes(wanted, attributes)
        changes = []
        for each in wanted.files:
            seen = files.look(each.path)
            if seen != (each.content, attributes[each.path]):
                changes.append((each, seen))
        # systemd needs a unit's file until the unit has stopped.
        held = {os.path.join(self.layout.unit_files, name) for unit in leaving for name in unit_file_names(unit)}
        paths = {each.path for each in wanted.files} | held
        unwanted = [path for path in record.files if path not in paths]
        inside = paths | {each.path for each in wanted.directories}
        outside = [path for path in record.directories if not any(each == path or each.startswith(path + "/") for each in inside)]
        emptied = self._emptied(unwanted, outside)
        # What is not empty stays ours until it is, except what we did not make or another record has too.
        released = [path for path in outside if path in emptied or record.directories[path] is not None or self._shared(path)]
        revisions = {unit: self._revision(unit, wanted) for unit in wanted.units}
        running = {unit: self._running(unit, wanted, changes) for unit in wanted.units}
        return Plan(attributes, directories, changes, unwanted, emptied, released, revisions, running, states, leaving)

    def _tell(self, plan: Plan, wanted: Wanted, result: Result) -> None:
        """Fill in the result."""
        for path, (was, becomes) in plan.directories.items():
            result.directories.append(path)
            result.diff.append(_attribute_difference(f"{path}/", was, becomes))
        for each, seen in plan.files:
            result.files.append(each.path)
            if seen is None or seen.content != each.content:
                secret = each.secret or self.record.files.get(each.path, {}).get("secret", False)
                old = None if seen is None else b"(no regular file)\n" if seen.content is None else seen.content
                result.diff.append(files.difference(each.path, old, each.content, secret))
            if seen is not None and seen.attributes != plan.attributes[each.path]:
                result.diff.append(_attribute_difference(f"{each.path} (owner and mode)", seen.attributes, plan.attributes[each.path]))
        self._tell_removal(result, plan.unwanted, plan.emptied, plan.released)
        rewritten = any(files.content(os.path.join(self.revisions, unit)) != content for unit, content in plan.revisions.items())
        result.changed = bool(result.directories or result.files or result.removed or rewritten)
        result.daemon_reload = any(state.stale for state in plan.states.values()) or self._unit_file_among([*result.files, *result.removed])
        result.actions = [{"unit": unit, "action": "stop"} for unit in plan.leaving]
        for unit in wanted.units:
            action = needed_action(plan.states[unit], plan.revisions[unit], plan.running[unit])
            if action:
                result.actions.append({"unit": unit, "action": action})

    def _write(self, wanted: Wanted, plan: Plan) -> None:
        """Files, removals, revisions; the record before it as the union of old and new, after it as the new."""
        record = self.record
        for each, seen in plan.files:
            if each.path not in record.files:
                record.files[each.path] = {"backup": None if seen is None else files.put_aside(each.path), "secret": each.secret}
            record.files[each.path]["secret"] |= each.secret
        record.units = sorted({*record.units, *wanted.units})
        self._save(self.name, record)
        for path in record.files:
            files.discard(files.temporary(path))

        # Before the files, so that an interrupted run is not forgotten even where it only put back what somebody had edited.
        for unit, running in plan.running.items():
            path = os.path.join(self.running, unit)
            if running is None:
                files.discard(path)
            elif running != files.content(path):
                files.write(path, running)
        for path, (was, becomes) in plan.directories.items():
            if was is not None:
                files.set_attributes(path, becomes)
        for each, seen in plan.files:
            attributes = plan.attributes[each.path]
            if seen is None or seen.content != each.content:
                files.write(each.path, each.content, *_known(attributes))
                self.relabel(each.path)
            else:
                files.set_attributes(each.path, attributes)
        self._remove(plan.unwanted, plan.emptied)
        # After the files: a unit that restarts by itself in between restarts once too often, never too seldom.
        for unit, revision in plan.revisions.items():
            path = os.path.join(self.revisions, unit)
            if files.content(path) != revision:
                files.make_directory(self.revisions)
                files.write(path, revision)

        self._forget_units([unit for unit in record.units if unit not in wanted.units and unit not in plan.leaving])
        backups = self._forget_paths(plan.unwanted, plan.released)
        for each in wanted.files:
            if each.path in record.files:
                record.files[each.path]["secret"] = each.secret
        self._save(self.name, record)
        for backup in backups:
            files.discard(backup)

    def _check(self, wanted: Wanted) -> None:
        """Raise RegistryFleetError for arguments that contradict one another or another record."""
        every = [each.path for each in wanted.files] + [each.path for each in wanted.directories]
        for path in every:
            if not path.startswith("/") or os.path.normpath(path) != path or path == "/":
                raise RegistryFleetError(f"{path!r} is no absolute, normalised path of a file or a directory.")
            if every.count(path) > 1:
                raise RegistryFleetError(f"{path} is wanted twice: name it once.")
        for each in wanted.files:
            unknown = sorted(set(each.units) - set(wanted.units))
            if unknown:
                raise RegistryFleetError(f"{each.path} names the units {', '.join(unknown)}, which are not among the service's units.")
            for name, other in self.others.items():
                if each.path in other.files:
                    raise RegistryFleetError(f"{each.path} belongs to {name} on this host, so {self.name} cannot write it: give one of them another path.")
        for validation in wanted.validate:
            if not validation.command or not any(_is_below(each.path, validation.directory) for each in wanted.files):
                raise RegistryFleetError(f"The validation of {validation.directory} has no command, or no file is wanted there.")

    def _missing(self, requires: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
        packages = missing_packages(requires.get("packages") or [])
        return {
            "packages": packages,
            "users": [name for name in requires.get("users") or [] if files.user_id(name) is None],
            # Docker itself may be among the packages that are to come.
            "images": missing_images(requires.get("images") or [], docker_expected=not packages and not self.check),
        }

    def _attributes(self, wanted: Wanted) -> dict[str, Attributes]:
        """Path -> the attributes it is to have."""
        everything: list[Directory | File] = [*wanted.directories, *wanted.files]
        attributes = {}
        for each in everything:
            uid, gid = files.user_id(each.owner), files.group_id(each.group)
            if (uid is None or gid is None) and not self.check:
                what = f"user {each.owner}" if uid is None else f"group {each.group}"
                raise RegistryFleetError(f"{each.path} is to belong to the {what}, which this host does not know: create it, or name it in requires.users.")
            attributes[each.path] = Attributes(uid, gid, each.mode)
        return attributes

    def _directory_changes(self, wanted: Wanted, attributes: Mapping[str, Attributes]) -> dict[str, tuple[Attributes | None, Attributes]]:
        """Path -> attributes it has (None: it is to be made) and is to have; only what differs, parents first."""
        explicit = {each.path for each in wanted.directories}
        implied = {parent for path in attributes for parent in files.ancestors(path)} - explicit - {self.layout.state}
        changes = {}
        for path in sorted(explicit | implied):
            was, becomes = files.directory_attributes(path), attributes.get(path, files.COMMON)
            if was is None and os.path.lexists(path):
                raise RegistryFleetError(f"{path} is no directory, and files are to be written there: move it away.")
            if was is None or (path in explicit and was != becomes):
                changes[path] = (was, becomes)
            # What another record made and this one uses too belongs to both; the last that goes removes it.
            if was is not None and any(other.directories.get(path, was) is None for other in self.others.values()):
                self.record.directories.setdefault(path, None)
        return changes

    def _need(self, each: File, unit: str, wanted: Wanted) -> str:
        """What a unit needs when this file is different."""
        if each.path in [os.path.join(self.layout.unit_files, name) for name in unit_file_names(unit)]:
            return "restart"
        return each.needs if unit in (each.units or wanted.units) else "nothing"

    def _revision(self, unit: str, wanted: Wanted) -> bytes:
        """The content of the unit's revision file, see needed_action()."""
        hashes = {need: hashlib.sha256(self.record.salt.encode()) for need in ("restart", "reload", "nothing")}
        for each in sorted(wanted.files, key=lambda each: each.path):
            hashes[self._need(each, unit, wanted)].update(f"\0{each.path}\0{len(each.content)}\0".encode() + each.content)
        return "".join(f"{need} {hashes[need].hexdigest()}\n" for need in ("restart", "reload")).encode()

    def _running(self, unit: str, wanted: Wanted, changes: Sequence[tuple[File, files.Seen | None]]) -> bytes | None:
        """The revision that a unit runs; without the lines that a file on the host no longer matches, as the unit may have read that one."""
        running = files.content(os.path.join(self.running, unit))
        needs = {self._need(each, unit, wanted) for each, seen in changes if seen is None or seen.content != each.content}
        if running is None or "restart" in needs:
            return None
        return running.split(b"\n")[0] + b"\n" if "reload" in needs else running

    def _validate(self, wanted: Wanted, plan: Plan) -> None:
        """Run the validators on a private copy of the wanted files, if any changes. Raises RegistryFleetError with a validator's words."""
        for each in wanted.validate if plan.files or plan.unwanted else ():
            uid = gid = None
            if each.user is not None:
                uid, gid = files.user_id(each.user), files.primary_group(each.user)
                if uid is None or gid is None:
                    if self.check:
                        continue
                    raise RegistryFleetError(f"The validation of {each.directory} is to run as {each.user}, which this host does not know.")
            if self.check and shutil.which(each.command[0], path=search_path()) is None:
                continue
            shutil.rmtree(self.staging, ignore_errors=True)
            try:
                self._stage(each.directory, wanted, plan)
                self._run_validator(each, uid, gid, wanted)
            finally:
                shutil.rmtree(self.staging, ignore_errors=True)

    def _stage(self, directory: str, wanted: Wanted, plan: Plan) -> None:
        """Copy the wanted files below `directory`. Others may pass through to it but not list it: each copy has its owner and mode."""
        files.make_directory(self.staging, Attributes(0, 0, 0o711))
        for parent in reversed(list(files.ancestors(directory))):
            files.make_directory(self.staging + parent)
        for each in wanted.files:
            if _is_below(each.path, directory):
                for parent in reversed(list(files.ancestors(each.path))):
                    files.make_directory(self.staging + parent, plan.attributes.get(parent, files.COMMON))
                files.write(self.staging + each.path, each.content, *_known(plan.attributes[each.path]))

    def _run_validator(self, validation: Validation, uid: int | None, gid: int | None, wanted: Wanted) -> None:
        staged = self.staging + validation.directory
        command = [word.replace("{directory}", staged).replace("{uid}", str(uid)).replace("{gid}", str(gid)) for word in validation.command]
        if uid is not None and os.path.basename(command[0]) != "docker":
            command = ["setpriv", f"--reuid={uid}", f"--regid={gid}", "--init-groups", "--no-new-privs", "--", *command]
        if shutil.which(validation.command[0], path=search_path()) is None:
            raise RegistryFleetError(f"The configuration of {self.name} cannot be checked: this host has no command {validation.command[0]}.")
        answer = run(command, timeout=VALIDATION_SECONDS)
        if answer.returncode:
            said = (answer.stdout + answer.stderr).strip().replace(staged, validation.directory)
            said = mask(f"`{' '.join(validation.command)}` ended with {answer.returncode} and said:\n{said}", wanted)
            raise RegistryFleetError(f"The configuration of {self.name} is not valid, so nothing was changed. {said}")

    # --- absent

    def absent(self) -> Result:
        """Say what must stop; once nothing runs, remove what is ours, and say what was installed for it."""
        result = Result()
        record = self.record
        if not record.owns_anything():
            return result
        states = unit_states(record.units)
        result.actions = [{"unit": unit, "action": "stop"} for unit in record.units if states[unit].to_stop]
        result.changed = True
        # What another record requires as well stays, and becomes that record's to remove.
        heirs = {kind: {name: other for other, theirs in self.others.items() for name in theirs.requires[kind]} for kind in KINDS}
        result.installed = {kind: [name for name in record.installed[kind] if name not in heirs[kind]] for kind in KINDS}
        if result.actions and not self.check:
            return result
        emptied = self._emptied(list(record.files), list(record.directories))
        self._tell_removal(result, list(record.files), emptied, list(record.directories))
        kept = [path for path, was in record.directories.items() if was is None and path not in emptied and not self._shared(path)]
        result.kept = [path for path in kept if os.path.isdir(path)]
        result.daemon_reload = self._unit_file_among(record.files)
        if self.check:
            return result
        for kind in KINDS:
            for name in record.installed[kind]:
                if name in heirs[kind]:
                    theirs = self.others[heirs[kind][name]]
                    theirs.installed[kind] = sorted({*theirs.installed[kind], name})
                    self._save(heirs[kind][name], theirs)
        shutil.rmtree(self.staging, ignore_errors=True)
        for path in record.files:
            files.discard(files.temporary(path))
        self._remove(list(record.files), emptied)
        self._forget_units(list(record.units))
        backups = self._forget_paths(list(record.files), list(record.directories))
        self._save(self.name, Record())
        for backup in backups:
            files.discard(backup)
        return result

    # --- for both

    def _unit_file_among(self, paths: Iterable[str]) -> bool:
        return any(_is_below(path, self.layout.unit_files) for path in paths)

    def _shared(self, path: str) -> bool:
        return any(path in other.directories for other in self.others.values())

    def _emptied(self, paths: Sequence[str], directories: Sequence[str]) -> list[str]:
        """Those of the directories that are ours alone and empty once the files at `paths` are gone, the deepest first."""
        gone = {path for path in paths if not self._backup(path)} | {files.temporary(path) for path in self.record.files}
        emptied = []
        for path in sorted(directories, reverse=True):
            if self.record.directories[path] is None and not self._shared(path):
                try:
                    left = {os.path.join(path, name) for name in os.listdir(path)} - gone
                except (FileNotFoundError, NotADirectoryError):
                    continue
                if not left and not os.path.islink(path):
                    emptied.append(path)
                    gone.add(path)
        return emptied

    def _backup(self, path: str) -> str | None:
        backup = self.record.files[path]["backup"]
        return backup if backup and os.path.lexists(backup) else None

    def _tell_removal(self, result: Result, paths: Sequence[str], emptied: Sequence[str], released: Sequence[str]) -> None:
        for path in paths:
            backup = self._backup(path)
            if os.path.lexists(path) or backup:
                result.removed.append(path)
                after = files.content(backup) if backup else None
                result.diff.append(files.difference(path, files.content(path), after, self.record.files[path]["secret"]))
        for path in emptied:
            result.removed.append(path)
            result.diff.append(files.difference(f"{path}/", b"a directory\n", None))
        for path in released:
            was, now = self.record.directories[path], files.directory_attributes(path)
            if was is not None and now is not None and now != tuple(was):
                result.directories.append(path)
                result.diff.append(_attribute_difference(f"{path}/", now, Attributes(*was)))

    def _remove(self, paths: Sequence[str], emptied: Sequence[str]) -> None:
        """Bring back what was there before us, remove the rest. Can be repeated after a crash."""
        for path in paths:
            backup = self._backup(path)
            if backup:
                files.bring_back(path, backup)
                self.relabel(path)
            else:
                files.discard(path)
        for path in emptied:
            files.remove_directory(path)

    def _forget_paths(self, paths: Sequence[str], directories: Sequence[str]) -> list[str]:
        """Take what was removed out of the record (not yet saved) and return the backups that are then of no use."""
        backups = [backup for backup in (self._backup(path) for path in paths) if backup]
        for path in paths:
            del self.record.files[path]
        for path in directories:
            was = self.record.directories.pop(path)
            if was is not None and os.path.isdir(path):
                files.set_attributes(path, Attributes(*was))
        return backups

    def _forget_units(self, units: Sequence[str]) -> None:
        for unit in units:
            files.discard(os.path.join(self.revisions, unit))
            files.discard(os.path.join(self.running, unit))
            self.record.units.remove(unit)


def mask(text: str, wanted: Wanted) -> str:
    """`text` without the secrets: without the values given, or else without every word of a secret file that could be one."""
    hidden = set(wanted.secrets)
    for each in wanted.files:
        if each.secret:
            content = each.content.decode("utf-8", "replace")
            hidden.update(line.strip() for line in content.splitlines() if len(line.strip()) >= 16)
            if not wanted.secrets:
                hidden.update(word for word in re.split(r"[\s\"'=,;]+", content) if len(word) >= 6 and re.search(r"[0-9A-Z]", word))
    for value in sorted(hidden, key=len, reverse=True):
        if value:
            text = text.replace(value, "(secret)")
    return text


def _is_below(path: str, directory: str) -> bool:
    return path.startswith(directory.rstrip("/") + "/")


def _known(attributes: Attributes) -> tuple[int, int, int]:
    """For writing, where every name is known."""
    return attributes.uid or 0, attributes.gid or 0, attributes.mode


def _attribute_difference(header: str, was: Attributes | None, becomes: Attributes) -> dict[str, str]:
    return files.difference(header, None if was is None else files.describe(was).encode(), files.describe(becomes).encode())
