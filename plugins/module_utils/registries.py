# Copyright (c) 2026, mirrorfleet contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0
"""Reads registry_here and registry_users, checks and completes them. Plain data in, plain data and sentences out."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Callable, Iterable, Mapping, Sequence, TypedDict

from ansible_collections.mirrorfleet.registry.plugins.module_utils import archive_list
from ansible_collections.mirrorfleet.registry.plugins.module_utils.errors import RegistryFleetError
from ansible_collections.mirrorfleet.registry.plugins.module_utils.upstreams import PLACEHOLDER, Missing, near_miss, shown


class Keep(TypedDict):
    """What stays of a repository: so many of its newest images, and whatever is younger than so many days (0: nothing for its age)."""

    newest: int
    days: int


class Registry(TypedDict):
    """One registry as templates use it; `filter/registries.py` explains the keys."""

    name: str
    scope: str
    port: int
    driver: str
    directory: str
    parameters: dict[str, Any]
    writer: str
    deletes: bool
    keep: Keep | None
    backup_target: str
    signing_key: str
    archive: archive_list.Archive | None


class User(TypedDict):
    """Who may log in. `hash` is bcrypt's, which is all that distribution reads."""

    name: str
    role: str
    hash: str


@dataclass(frozen=True)
class Scope:
    """The rules that a scope brings.

    writer: the role of the users who may write; none: anyone may. deletes: whether a writer may delete an image.
    days, newest: which rules of retention it takes; at_least: how many images of a repository stay, however old they are.
    archived: whether its images come by themselves, and its writer is no user of anybody's.
    """

    writer: str
    deletes: bool
    days: bool = False
    newest: bool = False
    at_least: int = 0
    guarded: bool = False
    archived: bool = False


SCOPES = {
    "sandbox": Scope(writer="", deletes=True, days=True),
    "ci_tests": Scope(writer="ci", deletes=True, days=True, at_least=1),
    "ci_snapshots": Scope(writer="ci", deletes=True, newest=True),
    "prod": Scope(writer="promotion", deletes=False, guarded=True),
    "archive": Scope(writer="archive", deletes=False, archived=True),
}
ROLES = ("reader", "ci", "promotion")
# What is used where nothing is written: that of the role registry.
DAYS, NEWEST = 14, 20
STORAGE = "/var/lib/mirrorfleet/registry"
# The front has no right to listen below.
LOWEST_PORT = 1024

REQUIRED = ("name", "scope", "port")
# What only some scopes take, and which.
_OF_SCOPES: dict[str, Callable[[Scope], bool]] = {
    "keep_days": lambda scope: scope.days,
    "keep_newest": lambda scope: scope.newest,
    "backup_target": lambda scope: scope.guarded,
    "signing_key": lambda scope: scope.guarded,
    **dict.fromkeys(archive_list.KEYS, lambda scope: scope.archived),
}
KEYS = (*REQUIRED, "storage", *_OF_SCOPES)
USER_KEYS = ("name", "role", "hash")
SECRETS = ("accesskey", "secretkey", "accountkey", "credentials", "private_key", "hash")

# The drivers of distribution 2.8 by the name that its configuration gives them, and their parameters: type, and whether one is needed.
# docs/content/storage-drivers in github.com/distribution/distribution, branch release/2.8; forcepathstyle is 3.x's.
DRIVERS: dict[str, dict[str, tuple[type, bool]]] = {
    "s3": {
        "bucket": (str, True), "region": (str, True), "accesskey": (str, False), "secretkey": (str, False), "regionendpoint": (str, False),
        "forcepathstyle": (bool, False), "rootdirectory": (str, False), "encrypt": (bool, False), "keyid": (str, False), "secure": (bool, False),
        "skipverify": (bool, False), "v4auth": (bool, False), "chunksize": (int, False), "multipartcopychunksize": (int, False),
        "multipartcopymaxconcurrency": (int, False), "multipartcopythresholdsize": (int, False), "storageclass": (str, False), "objectacl": (str, False),
        "accelerate": (bool, False),
    },
    "azure": {"accountname": (str, True), "accountkey": (str, True), "container": (str, True), "realm": (str, False)},
    "gcs": {"bucket": (str, True), "credentials": (dict, False), "rootdirectory": (str, False), "chunksize": (int, False)},
}
_WORDS = {str: "text", bool: "true or false", int: "a whole number", dict: "a dictionary, the service account's key file as it is"}
# What Debian's build of distribution has of them (debian/rules of docker-registry: no build tags); the image has all.
PACKAGED = ("filesystem", "s3")

# What tells one place of object storage from another.
_PLACE = ("regionendpoint", "accountname", "container", "bucket")

_NAME = re.compile(r"[a-z][a-z0-9-]{0,39}")
# No character of these needs quoting in systemd's, HAProxy's or distribution's files.
_PATH = re.compile(r"(/[A-Za-z0-9._~+-]+)+")
_USER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
_BCRYPT = re.compile(r"\$2[aby]\$[0-9]{2}\$[./A-Za-z0-9]{53}")
# Stands in a token for nobody, see haproxy.cfg.j2.
NOBODY = "anonymous"
_PUBLIC_KEY = re.compile(r"-----BEGIN PUBLIC KEY-----\s+[A-Za-z0-9+/=\s]+-----END PUBLIC KEY-----\s*")


class _Problem(Exception):
    """What is wrong with the value of one key, and what to write instead."""


def normalise(registries: object, users: object = (), days: object = DAYS, newest: object = NEWEST) -> list[Registry]:
    """The normalised form of registry_here. Raises RegistryFleetError, which lists everything that is wrong with it and its users."""
    good, problems = check(registries, users, days, newest)
    if problems:
        raise RegistryFleetError("\n".join(problems))
    return good


def check(registries: object, users: object, days: object, newest: object) -> tuple[list[Registry], list[str]]:
    """The registries of a host that are right, and one line for each thing that is wrong with them and with registry_users."""
    good, problems = read(registries, days, newest)
    known, wrong = read_users(users)
    return good, problems + wrong + ([] if wrong else writer_problems(good, known))


def read(registries: object, days: object = DAYS, newest: object = NEWEST) -> tuple[list[Registry], list[str]]:
    """The registries of a host that are right, and one line for each thing that is wrong.

    days, newest: registry_keep_days and registry_keep_newest, for registries that say nothing of their own.
    """
    problems = []
    defaults = {"keep_days": days, "keep_newest": newest}
    for key, value in list(defaults.items()):
        try:
            _count(value)
        except _Problem as error:
            problems.append(f"registry_{key}: {error}")
            defaults[key] = 1
    if isinstance(registries, Missing):
        return [], [*problems, f"registry_here: has no value ({registries.reason})."]
    if not isinstance(registries, (list, tuple)) or not registries:
        what = "empty" if registries in ([], ()) else shown(registries)
        return [], [*problems, f"registry_here: is {what}. Write a list of registries, each with name, scope and port."]
    good: list[Registry] = []
    for position, item in enumerate(registries, 1):
        if isinstance(item, Missing):
            problems.append(f"registry_here: item {position}: has no value ({item.reason}).")
            continue
        if not isinstance(item, dict):
            problems.append(f"registry_here: item {position}: is {shown(item)}. Write a dictionary with name, scope and port.")
            continue
        title = shown(item["name"]) if isinstance(item.get("name"), str) else f"number {position}"
        registry, wrong = _Reader(item, defaults).read()
        problems.extend(f"registry_here: registry {title}: {line}" for line in wrong)
        if registry is not None:
            good.append(registry)
    return good, problems + _clashes(good)


def driver_problems(registries: Iterable[Registry], runtime: object) -> list[str]:
    """Storage that the program of a runtime knows nothing of."""
    return [
        f"registry_here: registry '{each['name']}': storage: {each['driver']}: Debian's distribution is built without it. Write registry_runtime: container."
        for each in registries if runtime == "package" and each["driver"] not in PACKAGED
    ]


def host_clashes(registries: Mapping[str, Sequence[Registry]]) -> list[str]:
    """Object storage that registries of several hosts share, or their backups. Whether directories are one share, only the hosts can tell."""
    placed = [(host, each) for host, here in registries.items() for each in here]
    problems = []
    for position, (host, one) in enumerate(placed):
        for elsewhere, other in placed[:position]:
            who = f"registry_here: the registries '{other['name']}' of {elsewhere} and '{one['name']}' of {host}"
            shared = _shared(one, other) if one["driver"] != "filesystem" else ""
            if host != elsewhere and shared:
                problems.append(f"{who} share storage ({shared}). Give each its own.")
            targets = other["backup_target"], one["backup_target"]
            if host != elsewhere and all(each.startswith("s3:") for each in targets) and _nested(*targets):
                problems.append(f"{who} have the same backup_target, or one in the other's ({targets[0]} and {targets[1]}). Give each its own.")
    return problems


def _clashes(registries: Sequence[Registry]) -> list[str]:
    """Names, ports and storage that two registries of a host share."""
    problems = []
    for name, count in Counter(each["name"] for each in registries).items():
        if count > 1:
            problems.append(f"registry_here: {count} registries have the name '{name}'. Give each its own.")
    for position, one in enumerate(registries):
        for other in registries[:position]:
            if one["name"] == other["name"]:
                continue
            if one["port"] == other["port"]:
                problems.append(f"registry_here: registries '{other['name']}' and '{one['name']}' both have port {one['port']}. Give each its own.")
            shared = _shared(one, other)
            if shared:
                problems.append(f"registry_here: registries '{other['name']}' and '{one['name']}' share storage ({shared}). Give each its own.")
    return problems + _target_clashes(registries)


def _target_clashes(registries: Sequence[Registry]) -> list[str]:
    """Backups that would mix with others, or with what they are a backup of."""
    problems = []
    backed_up = [each for each in registries if each["backup_target"]]
    for position, one in enumerate(backed_up):
        target = one["backup_target"]
        for other in backed_up[:position]:
            if _nested(target, other["backup_target"]):
                problems.append(
                    f"registry_here: registries '{other['name']}' and '{one['name']}' have the same backup_target, or one in the other's "
                    f"({other['backup_target']} and {target}). Give each its own."
                )
        for other in registries:
            if other["directory"] and _nested(target, other["directory"]):
                problems.append(
                    f"registry_here: registry '{one['name']}': backup_target: {target}: is, or is within, or holds the storage of '{other['name']}' "
                    f"({other['directory']}). Write a place on another disk, or s3:https://host/bucket."
                )
    return problems


def _nested(one: str, other: str) -> bool:
    """Whether two directories, or places behind S3, are the same or one is in the other."""
    first, second = PurePosixPath(one), PurePosixPath(other)
    return first == second or first in second.parents or second in first.parents


def _shared(one: Registry, other: Registry) -> str:
    """Where the files of two registries would mix."""
    if one["driver"] != other["driver"]:
        return ""
    if one["driver"] == "filesystem":
        first, second = PurePosixPath(one["directory"]), PurePosixPath(other["directory"])
        return f"{second} and {first}" if first == second or first in second.parents or second in first.parents else ""
    # One place, whoever opens it; a root directory parts what is in it.
    places = [
        tuple(re.sub("^https?://", "", str(each["parameters"].get(key, "")).lower()).strip("/") for key in _PLACE) for each in (one, other)
    ]
    roots = [PurePosixPath("/" + str(each["parameters"].get("rootdirectory", "")).strip("/")) for each in (one, other)]
    nested = roots[0] == roots[1] or roots[0] in roots[1].parents or roots[1] in roots[0].parents
    return f"{one['driver']} {'/'.join(filter(None, places[0]))}{roots[1]} and {roots[0]}" if places[0] == places[1] and nested else ""


class _Reader:
    """Reads one registry and collects what is wrong with it."""

    def __init__(self, item: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
        self._item, self._defaults = item, defaults
        self._problems: list[str] = []

    def read(self) -> tuple[Registry | None, list[str]]:
        self._unknown_keys()
        name = self._get("name", _name, "")
        scope_name = self._get("scope", _scope, "")
        port = self._get("port", _port, 0)
        driver, directory, parameters = self._get("storage", _storage, ("filesystem", f"{STORAGE}/{name}", {}))
        scope = SCOPES.get(scope_name)
        if scope is None:
            return None, self._problems
        days = self._get("keep_days", _count, self._defaults["keep_days"])
        newest = self._get("keep_newest", _count, self._defaults["keep_newest"])
        keep = None
        if scope.days or scope.newest:
            keep = Keep(newest=int(newest) if scope.newest else scope.at_least, days=int(days) if scope.days else 0)
        if keep and driver != "filesystem":
            self._problems.append(
                f"storage: {driver}: what the scope {scope_name} keeps is told by the times of files. Write a directory; object storage is for prod."
            )
        for key, applies in _OF_SCOPES.items():
            if key in self._item and not applies(scope):
                takers = _listed([each for each, rules in SCOPES.items() if applies(rules)])
                self._problems.append(f"{key}: the scope {scope_name} does not take it ({takers} does). Take it out, or write another scope.")
        target = self._get("backup_target", _target, "")
        key_text = self._get("signing_key", _public_key, "")
        if scope.guarded and driver != "filesystem" and target:
            self._problems.append(f"backup_target: is not for images in {driver}. Turn on the versions of its objects there, and take this out.")
        if scope.guarded and driver == "filesystem" and self._item.get("backup_target") is None:
            self._problems.append("backup_target: is missing. Nothing is in prod without a backup: write where it goes, a directory or s3:https://host/bucket.")
        if scope.guarded and self._item.get("signing_key") is None:
            self._problems.append("signing_key: is missing. What comes into prod is signed: write the public key (PEM text, as cosign.pub has it).")
        archive = None
        if scope.archived:
            archive, wrong = archive_list.read(self._item)
            self._problems += wrong
        if self._problems:
            return None, self._problems
        return Registry(
            name=name, scope=scope_name, port=port, driver=driver, directory=directory, parameters=parameters, writer=scope.writer,
            deletes=scope.deletes, keep=keep, backup_target=target, signing_key=key_text,
            archive=archive,
        ), []

    def _get(self, key: str, parse: Callable[[Any], Any], default: Any) -> Any:
        value = self._item.get(key)
        if value is None:
            if key in REQUIRED:
                self._problems.append(f"{key}: is missing.")
            return default
        try:
            if isinstance(value, Missing):
                raise _Problem(f"has no value ({value.reason}).")
            return parse(value)
        except _Problem as error:
            self._problems.append(f"{key}: {error}")
            return default

    def _unknown_keys(self) -> None:
        for key in self._item:
            if key not in KEYS:
                meant = near_miss(str(key), KEYS)
                self._problems.append(f"{key}: is no key of a registry. " + (f"Write {meant}." if meant else f"There are {_listed(KEYS)}."))


def read_users(users: object) -> tuple[list[User], list[str]]:
    """The users of registry_users that are right, and one line for each thing that is wrong. No hash is ever shown."""
    if isinstance(users, Missing):
        return [], [f"registry_users: has no value ({users.reason})."]
    if not isinstance(users, (list, tuple)):
        return [], ["registry_users: is no list. Write a list of users, each with name, role and hash."]
    good: list[User] = []
    problems = []
    for position, item in enumerate(users, 1):
        if not isinstance(item, dict):
            problems.append(f"registry_users: item {position}: is no dictionary. Write one with name, role and hash.")
            continue
        title = shown(item["name"]) if isinstance(item.get("name"), str) else f"number {position}"
        wrong = _user_problems(item)
        problems.extend(f"registry_users: user {title}: {line}" for line in wrong)
        if not wrong:
            good.append(User(name=item["name"], role=item["role"], hash=item["hash"]))
    for name, count in Counter(each["name"] for each in good).items():
        if count > 1:
            problems.append(f"registry_users: {count} users have the name '{name}'. Give each its own.")
    return good, problems


def _user_problems(item: Mapping[str, Any]) -> list[str]:
    problems = []
    for key in item:
        if key not in USER_KEYS:
            problems.append(f"{key}: is no key of a user. " + ("Write hash: a password stays with who logs in." if key == "password" else "Take it out."))
    name, role, digest = (item.get(key) for key in USER_KEYS)
    if not isinstance(name, str) or not _USER.fullmatch(name) or name == NOBODY:
        problems.append(f"name: {shown(name)}: write letters, digits and ._@-, and not {NOBODY}.")
    if role not in ROLES:
        problems.append(f"role: {shown(role)}: write {', '.join(ROLES[:-1])} or {ROLES[-1]}.")
    if isinstance(digest, Missing):
        problems.append(f"hash: has no value ({digest.reason}).")
    elif isinstance(digest, str) and digest == PLACEHOLDER:
        problems.append(f"hash: is still the example's {PLACEHOLDER}. Write the real one.")
    elif not isinstance(digest, str) or not _BCRYPT.fullmatch(digest):
        problems.append("hash: is no bcrypt hash. Write what `htpasswd -nB <name>` prints after the colon; distribution reads no other kind.")
    return problems


def writer_problems(registries: Iterable[Registry], users: Iterable[User]) -> list[str]:
    """Registries into which nobody can write."""
    roles = {each["role"] for each in users}
    return [
        f"registry_users: nobody has the role {each['writer']}, so nothing can come into the registry '{each['name']}' ({each['scope']}). Add a user with it."
        for each in registries if each["writer"] in ROLES and each["writer"] not in roles
    ]


def _listed(words: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def _name(value: object) -> str:
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise _Problem(f"{shown(value)}: write lower-case letters, digits and -, a letter first, at most 40.")
    return value


def _scope(value: object) -> str:
    if not isinstance(value, str) or value not in SCOPES:
        meant = near_miss(str(value), SCOPES, 0.7)
        raise _Problem(f"{shown(value)}: is no scope. " + (f"Write {meant}." if meant else f"There are {_listed(tuple(SCOPES))}."))
    return value


def _port(value: object) -> int:
    if isinstance(value, bool) or not re.fullmatch(r"[0-9]{1,5}", str(value)) or not LOWEST_PORT <= int(str(value)) <= 65535:
        raise _Problem(f"{shown(value)}: write a port from {LOWEST_PORT} to 65535.")
    return int(str(value))


def _count(value: object) -> int:
    """Of images or days. With none of them, a repository would be emptied."""
    if isinstance(value, bool) or not re.fullmatch(r"[0-9]{1,6}", str(value)) or int(str(value)) < 1:
        raise _Problem(f"{shown(value)}: write a whole number from 1: retention must not empty a repository.")
    return int(str(value))


def _path(value: str) -> str:
    parts = PurePosixPath(value).parts
    if not _PATH.fullmatch(value.rstrip("/")) or {".", ".."} & set(value.split("/")) or len(parts) < 3:
        raise _Problem(f"{shown(value)}: write an absolute path of at least two parts, of letters, digits and ._~+-.")
    return str(PurePosixPath(value))


def _storage(value: object) -> tuple[str, str, dict[str, Any]]:
    """Driver, directory (of a file system) and parameters (of anything else)."""
    if isinstance(value, str):
        return "filesystem", _path(value), {}
    if not isinstance(value, dict) or len(value) != 1:
        raise _Problem(f"{shown(value)}: write a directory, or one of {_listed(tuple(DRIVERS))} with its parameters.")
    (driver, parameters), = value.items()
    if driver == "filesystem":
        raise _Problem("filesystem: write the directory itself: storage: /srv/registry.")
    if driver not in DRIVERS:
        raise _Problem(f"{shown(driver)}: is no storage. Write a directory, or one of {_listed(tuple(DRIVERS))}.")
    if not isinstance(parameters, dict):
        raise _Problem(f"{driver}: write its parameters, {_listed([key for key, (_type, needed) in DRIVERS[driver].items() if needed])} at least.")
    _check_parameters(driver, parameters)
    # What is no Amazon has no host name for each bucket; 2.8 knows that by itself.
    defaults = {"forcepathstyle": True} if "regionendpoint" in parameters else {}
    return driver, "", {**defaults, **parameters}


def _check_parameters(driver: str, parameters: Mapping[str, Any]) -> None:
    """Of several things that are wrong the first is said. No value is: it may be a secret."""
    known = DRIVERS[driver]
    for key, value in parameters.items():
        if key not in known:
            meant = near_miss(str(key), known)
            raise _Problem(f"{driver}: {key}: is no parameter of it. " + (f"Write {meant}." if meant else f"There are {_listed(tuple(known))}."))
        missing = next((each for each in [value, *(value.values() if isinstance(value, dict) else [])] if isinstance(each, Missing)), None)
        if missing is not None:
            raise _Problem(f"{driver}: {key}: has no value ({missing.reason}).")
        kind = known[key][0]
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)) or value in ("", {}):
            raise _Problem(f"{driver}: {key}: write {_WORDS[kind]}.")
        if value == PLACEHOLDER:
            raise _Problem(f"{driver}: {key}: is still the example's {PLACEHOLDER}. Write the real one.")
    lacking = [key for key, (_type, needed) in known.items() if needed and key not in parameters]
    if lacking:
        raise _Problem(f"{driver}: {_listed(lacking)}: missing.")
    if ("accesskey" in parameters) != ("secretkey" in parameters):
        raise _Problem(f"{driver}: accesskey, secretkey: write both or neither; with neither, the host's own role is taken.")


def _target(value: object) -> str:
    """Where restic keeps a repository: a directory, or one behind S3."""
    if isinstance(value, str) and re.fullmatch(r"s3:https?://[A-Za-z0-9.:-]+(/[A-Za-z0-9._~+-]+)+", value):
        return value
    if not isinstance(value, str) or not value.startswith("/"):
        raise _Problem(f"{shown(value)}: write a directory or s3:https://host/bucket.")
    return _path(value)


def _public_key(value: object) -> str:
    if not isinstance(value, str) or not _PUBLIC_KEY.fullmatch(value.strip()):
        what = " It looks like a private key, which has no place here." if isinstance(value, str) and "PRIVATE KEY" in value else ""
        raise _Problem(f"is no public key.{what} Write PEM text, as cosign.pub has it.")
    return value.strip() + "\n"
