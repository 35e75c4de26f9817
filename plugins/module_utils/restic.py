# Copyright (c) 2026, mirrorfleet contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0
"""restic, as far as backups of registries need it; 0.14, which Debian 12 has, and later.

Secrets are in its environment, which root and its own user may read, and in no argument.
"""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import re
import socket
import subprocess
import tarfile
import tempfile
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import IO, Any, Iterator, Mapping, NamedTuple, Sequence
from urllib.parse import urlsplit

from ansible_collections.mirrorfleet.registry.plugins.module_utils.errors import RegistryFleetError

_CONNECT_SECONDS = 5.0
# A repository that is asked for little answers within this time. restic itself asks on for a quarter of an hour.
_ANSWER_SECONDS = 60.0
_TIME = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d{1,6})\d*)?(Z|[+-]\d\d:\d\d)")
# 0.14 asks "Is there a repository?" whatever the reason.
_NO_REPOSITORY = re.compile(r"unable to open config file: .*(no such file|specified (key|bucket) does not exist)|repository does not exist", re.IGNORECASE)
_REMEDIES = {
    r"wrong password or no key found": "Write the password that it was made with into registry_backup_password.",
    r"Access ?Denied|access key id you provided|request signature we calculated|403 Forbidden":
        "Check registry_backup_s3_access_key and registry_backup_s3_secret_key.",
    r"no space left on device|XMinioStorageFull": "Make room there, or keep fewer backups (registry_backup_keep).",
    r"permission denied": "It must belong to the user of the backup, mirrorfleet-registry-backup; site.yml gives a backup_target to it.",
    r"already locked": "Somebody else works with it; if nobody does, `restic unlock` removes a lock half an hour after it was made.",
    r"x509|certificate": "Write the authority of its certificate into registry_backup_ca_certificate.",
}


class ResticError(RegistryFleetError):
    """restic could not do what it was asked to."""


class Snapshot(NamedTuple):
    """A backup; `at` in seconds since 1970; `host` and `name` say of which registry."""

    id: str
    at: float
    host: str
    name: str
    paths: tuple[str, ...]

    @property
    def owner(self) -> str:
        """The registry that it is a backup of, by its host and its name."""
        return f"{self.host}/{self.name}"


class Backup(NamedTuple):
    """A snapshot that was made: what came into the repository for it, and all that is in it, in bytes."""

    snapshot: str
    bytes_new: int
    bytes: int


@dataclass(frozen=True)
class Secrets:
    """What opens a repository, and for S3 the way to it."""

    password: str = field(repr=False)
    access_key: str = field(default="", repr=False)
    secret_key: str = field(default="", repr=False)


@dataclass(frozen=True)
class Restic:
    """One repository. user: who runs restic where we are root; ca: the file of the authority of S3's certificate; empty: ourselves, the host's own."""

    repository: str
    secrets: Secrets
    cache: str
    user: str = ""
    ca: str = ""

    def identify(self) -> str | None:
        """The repository's identity; None where there is none. Raises ResticError where that can't be found out."""
        self._reach()
        done = self._run("cat", "config", "--no-lock", seconds=_ANSWER_SECONDS)
        if done.returncode == 0:
            return str(json.loads(done.stdout)["id"])
        if _NO_REPOSITORY.search(done.stderr):
            return None
        raise self._error("can't be opened", done.stderr)

    def init(self) -> None:
        """Make the repository."""
        self._must("can't be made", "init", seconds=_ANSWER_SECONDS)

    def unlock(self) -> None:
        """Remove the locks that are nobody's: of processes of this host that are no more, and those not renewed for half an hour."""
        self._must("can't be unlocked", "unlock")

    def snapshots(self) -> list[Snapshot]:
        """All of them, the oldest first."""
        listed = json.loads(self._must("can't be read", "snapshots", "--json", "--no-lock").stdout) or []
        found = [Snapshot(each["id"], moment(each["time"]), each["hostname"], (each.get("tags") or [""])[0], tuple(each["paths"])) for each in listed]
        return sorted(found, key=lambda each: each.at)

    def backup(self, paths: Sequence[str], host: str, name: str) -> Backup:
        """Make a snapshot of these directories, or none: one that lacks what could not be read is no backup."""
        done = self._run("backup", "--json", "--host", host, "--tag", name, *paths)
        summary: dict[str, Any] = {}
        said: list[str] = []
        errors: list[str] = []
        for line in [*done.stdout.splitlines(), *done.stderr.splitlines()]:
            try:
                message = json.loads(line)
            except ValueError:
                said.append(line)
                continue
            if message["message_type"] == "summary":
                summary = message
            elif message["message_type"] == "error":
                why = message.get("error") or {}
                number = why.get("Err")
                errors.append(f"{message.get('item', '')}: {why.get('message') or (os.strerror(number) if isinstance(number, int) else why)}")
        if done.returncode == 0:
            return Backup(summary["snapshot_id"][:8], summary["data_added"], summary["total_bytes_processed"])
        if summary.get("snapshot_id"):
            self._must("can't be cleared of a backup that is not whole", "forget", summary["snapshot_id"])
        raise self._error("did not get the backup", "\n".join([*said, *errors]))

    def forget(self, keep: Mapping[str, int]) -> None:
        """Remove the snapshots that no rule keeps, and the data that only they need."""
        rules = [f"--keep-{rule}={count}" for rule, count in sorted(keep.items())]
        # Whichever host made them: they are of one registry, which may have moved.
        self._must("can't be cleared of old backups", "forget", "--quiet", "--group-by", "tags", "--prune", *rules)

    def check(self, part: int, parts: int) -> None:
        """Look at the whole structure, and read one part of the data; compare what is read with its hashes."""
        self._must("is damaged", "check", "--quiet", f"--read-data-subset={part}/{parts}")

    @contextlib.contextmanager
    def dump(self, snapshot: str, path: str) -> Iterator[IO[bytes]]:
        """A file of a snapshot, or a directory as a tar stream. Raises ResticError if it breaks off, also when who reads stumbles over that."""
        with tempfile.TemporaryFile() as said:
            process = subprocess.Popen(
                ["restic", "dump", snapshot, path], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=said, **self._surroundings(),
            )
            if process.stdout is None:
                raise ResticError("restic dump has no output")
            broken = False
            try:
                try:
                    yield process.stdout
                except (tarfile.TarError, EOFError):
                    broken = True
                # Who has what was wanted need not read on.
                unread = not broken and process.stdout.read(1)
            except BaseException:
                process.kill()
                raise
            finally:
                process.stdout.close()
                code = process.wait()
            if broken or (code and not unread):
                said.seek(0)
                raise self._error(f"does not give {path} of the backup {snapshot[:8]}", said.read().decode(errors="replace"))

    def _reach(self) -> None:
        """Fail soon, and with the reason, where nobody is to be asked."""
        if not self.repository.startswith("s3:"):
            parent = os.path.dirname(self.repository)
            if not os.path.isdir(self.repository) and not os.path.isdir(parent):
                raise ResticError(f"The backup's target {self.repository} is not there, and neither is {parent}. Is a disk or share not mounted?")
            return
        url = urlsplit(self.repository[len("s3:"):])
        try:
            socket.create_connection((url.hostname or "", url.port or (443 if url.scheme == "https" else 80)), _CONNECT_SECONDS).close()
        except OSError as error:
            remedy = "Is the server well, and the way to it open?"
            raise ResticError(f"The backup's target {self.repository} can't be reached: {error.strerror or error}. {remedy}") from None

    def _must(self, failure: str, *arguments: str, seconds: float | None = None) -> subprocess.CompletedProcess[str]:
        done = self._run(*arguments, seconds=seconds)
        if done.returncode:
            raise self._error(failure, done.stderr or done.stdout)
        return done

    def _run(self, *arguments: str, seconds: float | None = None) -> subprocess.CompletedProcess[str]:
        surroundings = self._surroundings()
        try:
            return subprocess.run(
                ["restic", *arguments], stdin=subprocess.DEVNULL, capture_output=True, encoding="utf-8", errors="replace", check=False, timeout=seconds,
                **surroundings,
            )
        except subprocess.TimeoutExpired as error:
            said = error.stderr.decode(errors="replace") if isinstance(error.stderr, bytes) else error.stderr or ""
            raise self._error(f"did not answer within {seconds:g} seconds", said) from None

    def _surroundings(self) -> dict[str, Any]:
        """What every restic is run with. Raises ResticError where there is none."""
        environment = {
            "PATH": os.environ.get("PATH", "/usr/bin:/bin"), "LC_ALL": "C.UTF-8", "RESTIC_REPOSITORY": self.repository, "RESTIC_CACHE_DIR": self.cache,
            "RESTIC_PASSWORD": self.secrets.password, "AWS_ACCESS_KEY_ID": self.secrets.access_key, "AWS_SECRET_ACCESS_KEY": self.secrets.secret_key,
            # With --json it tells sixty times a second how far it is.
            "RESTIC_PROGRESS_FPS": "0.02",
        }
        if self.ca:
            environment["RESTIC_CACERT"] = self.ca
        if not any(os.access(os.path.join(directory, "restic"), os.X_OK) for directory in environment["PATH"].split(":")):
            raise ResticError("restic is not on this host. Run site.yml, which installs it where a registry has a backup_target.")
        identity: dict[str, Any] = {}
        if self.user and os.geteuid() == 0:
            try:
                user = pwd.getpwnam(self.user)
            except KeyError:
                raise ResticError(f"There is no user {self.user} on this host. Run site.yml.") from None
            identity = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
        return {"env": {name: value for name, value in environment.items() if value}, **identity}

    def _error(self, what: str, stderr: str) -> ResticError:
        """With the last that restic said, which is the reason."""
        lines = [line.strip() for line in stderr.splitlines() if line.strip()]
        said = "; ".join(lines[-3:])[-1000:] or "nothing"
        remedy = next((text for pattern, text in _REMEDIES.items() if re.search(pattern, stderr, re.IGNORECASE)), "")
        return ResticError(f"The backup's target {self.repository} {what}: restic says {said!r}. {remedy}".rstrip())


def moment(text: str) -> float:
    """A time as restic writes it (RFC 3339, nanoseconds, any zone) in seconds since 1970. Raises ResticError."""
    found = _TIME.fullmatch(text)
    if not found:
        raise ResticError(f"restic tells a time that is none: {text!r}.")
    zone = "+00:00" if found[3] == "Z" else found[3]
    return datetime.fromisoformat(f"{found[1]}.{(found[2] or '0').ljust(6, '0')}{zone}").astimezone(timezone.utc).timestamp()
