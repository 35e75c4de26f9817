# Copyright (c) 2026, mirrorfleet contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0
"""Brings the images of an archive from their upstreams. One call is one run; systemd calls it.

A tag comes as image_promote promotes one: by digest, with all platforms and signatures, its old digest under a history tag, itself last. So a run
that ends anywhere leaves tags that are whole, and the next one goes on with what is there. Nothing is ever removed.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import random
import secrets
import string
import sys
import time
from dataclasses import dataclass, field
from typing import Any, Callable, Iterator, Mapping, Sequence, TypeVar

from ansible_collections.mirrorfleet.registry.plugins.module_utils.archive_tags import fitting, is_pattern
from ansible_collections.mirrorfleet.registry.plugins.module_utils.errors import RegistryFleetError
from ansible_collections.mirrorfleet.registry.plugins.module_utils.host_program import exposition, labels, replace, say
from ansible_collections.mirrorfleet.registry.plugins.module_utils.image_promote import Record, Settings, origin, promote_all
from ansible_collections.mirrorfleet.registry.plugins.module_utils.promotion import Wanted
from ansible_collections.mirrorfleet.registry.plugins.module_utils.promotion_tools import Endpoint, need
from ansible_collections.mirrorfleet.registry.plugins.module_utils.registry_client import RegistryClient, RegistryError
from ansible_collections.mirrorfleet.registry.plugins.module_utils.store_state import load, locked, save

# Whom the front lets write into an archive; see haproxy.cfg.j2 of the role registry.
USER = "mirrorfleet-archive"
HISTORY, STATE = "history.jsonl", "archive.json"
_LOCK_SECONDS = 10.0
_COPY_SECONDS = 6 * 3600.0
_PARALLEL = 2
# bcrypt's least work: the password is 256 random bits.
_SALT = "$2b$04$"
_LIBRARIES = ("libcrypt.so.1", "libcrypt.so.2")

T = TypeVar("T")


@dataclass
class Outcome:
    """What a run found of each tag, by its name in the archive: what came, and what the upstream says otherwise; and what failed."""

    current: list[str] = field(default_factory=list)
    came: dict[str, str] = field(default_factory=dict)
    held: dict[str, str] = field(default_factory=dict)
    gone: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    bytes: int = 0


class _Upstream:
    """The images of one domain."""

    def __init__(self, source: RegistryClient, target: RegistryClient, most_tags: int, platforms: Sequence[str], outcome: Outcome) -> None:
        self._source, self._target, self._most_tags, self._platforms, self._outcome = source, target, most_tags, platforms, outcome
        self._enough = ""

    def wanted(self, images: Sequence[Mapping[str, str]]) -> list[Wanted]:
        """What is to be brought, or looked at again. A tag that is written comes before a pattern that it fits."""
        found: dict[str, Wanted | None] = {}
        for image in sorted(images, key=lambda image: is_pattern(image["tag"])):
            for tag in self._ask(f"{image['to']}:{image['tag']}", self._tags, image) or []:
                name = f"{image['to']}:{tag}"
                if name not in found:
                    found[name] = self._ask(name, self._look, image, tag, name)
        return [each for each in found.values() if each is not None]

    def _ask(self, name: str, question: Callable[..., T], *about: Any) -> T | None:
        """The answer; None where there is none. A registry that does not answer, or wants not to be asked now, is asked nothing more in this run."""
        if not self._enough:
            try:
                return question(*about)
            except RegistryFleetError as error:
                self._outcome.failed[name] = str(error)
                self._enough = str(error) if isinstance(error, RegistryError) and error.status in (None, 429, 503) else ""
        else:
            self._outcome.failed[name] = self._enough
        return None

    def _tags(self, image: Mapping[str, str]) -> list[str]:
        """The tag that is written, or those at the upstream that fit the pattern. Those in the archive that once did are told."""
        pattern, to = image["tag"], image["to"]
        if not is_pattern(pattern):
            return [pattern]
        there = self._listed(self._source, image["path"])
        kept = fitting(self._listed(self._target, to), pattern, sys.maxsize)[0]
        tags, beyond = fitting(there, pattern, self._most_tags)
        if not tags and not kept:
            raise RegistryFleetError("the upstream has no tag that fits. Correct the pattern, or take it out.")
        if beyond:
            self._outcome.left_out[f"{to}:{pattern}"] = f"{beyond} tags more fit than most_tags, which is {self._most_tags}: the highest versions come"
        for tag in kept:
            if tag not in there:
                self._outcome.gone.setdefault(f"{to}:{tag}", "")
        return tags

    def _listed(self, client: RegistryClient, path: str) -> list[str]:
        try:
            return list(client.tags(path))
        except RegistryError as error:
            if error.status == 404:
                return []
            raise

    def _look(self, image: Mapping[str, str], tag: str, name: str) -> Wanted | None:
        """One question to each side. What the tag names at the upstream later is of no account."""
        there, have, digest = self._source.head_manifest(image["path"], tag), self._target.head_manifest(image["to"], tag), image["digest"]
        if there is None:
            if have is None and not digest:
                raise RegistryFleetError("the upstream has no such tag. Correct it, or take it out.")
            # What never came may still be had by the digest that it is held at.
            if have is not None:
                self._outcome.gone[name] = have.digest
        if digest and there is not None and there.digest != digest:
            self._outcome.held[name] = f"{digest}, and the upstream has {there.digest}"
        digest = digest or (there.digest if there else "")
        if self._platforms and have is not None and digest and self._is_made_of(image["to"], have.digest, digest):
            digest = have.digest
        return Wanted(image["text"], image["path"], "", digest, image["to"], tag) if digest else None

    def _is_made_of(self, to: str, have: str, digest: str) -> bool:
        """Whether what is here is the part of it that is wanted."""
        annotations = json.loads(self._target.manifest_body(to, have)[1]).get("annotations") or {}
        return have != digest and origin(digest, self._platforms).items() <= annotations.items()


class Archive:
    """One run of one registry. ``settings`` is what the role registry writes."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self._settings = settings
        self.outcome = Outcome()

    def run(self) -> None:
        """Raises RegistryFleetError or OSError for what keeps all images from coming."""
        need("skopeo")
        record = Record(os.path.join(self._settings["state"], HISTORY))
        record.check()
        with admitted(self._settings["htpasswd"]) as password:
            target = Endpoint("target", self._settings["target"], USER, password, validate_certs=False)
            for source in self._settings["sources"]:
                self._bring(source, target, record)

    def _bring(self, settings: Mapping[str, Any], target: Endpoint, record: Record) -> None:
        images = [image for image in self._settings["images"] if image["domain"] == settings["domain"]]
        try:
            source = Endpoint("source", **{key: value for key, value in settings.items() if key != "domain"})
            platforms = tuple(self._settings["platforms"])
            how = Settings(force=True, record=record, by=f"the archive {self._settings['name']}", lean=True, platforms=platforms)
            reports = promote_all(
                lambda asked, there: _Upstream(asked, there, self._settings["most_tags"], platforms, self.outcome).wanted(images),
                (source, target), how, _PARALLEL, _COPY_SECONDS,
            )
        except RegistryFleetError as error:
            self.outcome.failed.update({f"{image['to']}:{image['tag']}": str(error) for image in images})
            return
        for report in reports:
            self._note(report)

    def _note(self, report: Mapping[str, Any]) -> None:
        name = report["target"].partition("/")[2]
        if report["error"]:
            self.outcome.failed[name] = report["error"]
        elif report["changed"]:
            moved = f"; it was {report['previous']}, which stays as {report['history_tag']}" if report["history_tag"] else ""
            self.outcome.came[name] = f"{report['digest']}, {report['blobs_copied']} blobs, {report['bytes_copied']} bytes{moved}"
            self.outcome.bytes += report["bytes_copied"]
        else:
            self.outcome.current.append(name)


@contextlib.contextmanager
def admitted(path: str) -> Iterator[str]:
    """A password for this run. Distribution knows it by the file at ``path``, which admits nobody before and after."""
    password = secrets.token_urlsafe(32)
    replace(path, f"{USER}:{hashed(password)}\n")
    try:
        yield password
    finally:
        replace(path, "")


def hashed(password: str) -> str:
    """bcrypt by the C library, which has it wherever Linux has passwords. Raises RegistryFleetError."""
    salt = _SALT + "".join(random.SystemRandom().choices(string.ascii_letters + string.digits, k=21)) + "."
    for name in _LIBRARIES:
        try:
            crypt = ctypes.CDLL(name).crypt
        except (OSError, AttributeError):
            continue
        crypt.restype = ctypes.c_char_p
        found = crypt(password.encode(), salt.encode())
        if found and found.startswith(_SALT.encode()):
            return str(found.decode())
    raise RegistryFleetError(f"This host's C library has no bcrypt ({' or '.join(_LIBRARIES)}). Install libcrypt1, or libxcrypt.")


def lines(outcome: Outcome) -> list[str]:
    """For the journal; systemd reads the priorities, see sd-daemon(3)."""
    found = [f"{name}: came: {what}" for name, what in outcome.came.items()]
    found += [f"<5>{name}: is held at {what}" for name, what in outcome.held.items()]
    found += [f"<5>{name}: is no longer at the upstream, and stays here{' as ' + digest if digest else ''}" for name, digest in outcome.gone.items()]
    found += [f"<5>{name}: {what}" for name, what in outcome.left_out.items()]
    return found + [f"<4>{name}: {why}" for name, why in outcome.failed.items()]


def metrics_text(name: str, outcome: Outcome, state: Mapping[str, float]) -> str:
    """Prometheus' text format, of one registry."""
    tags = (
        ("current", outcome.current), ("came", outcome.came), ("held_elsewhere", outcome.held), ("gone_upstream", outcome.gone), ("failed", outcome.failed),
    )
    whole = labels(registry=name)
    return exposition("mirrorfleet_archive", [
        ("tags", "gauge", "What the last run found; a tag may count as several of these.", {
            labels(registry=name, state=key): len(found) for key, found in tags
        }),
        ("received_bytes_total", "counter", "Bytes of blobs that came.", {whole: round(state["bytes"])}),
        ("last_run_timestamp_seconds", "gauge", "When it ran last.", {whole: round(state["ran"])}),
        ("last_success_timestamp_seconds", "gauge", "When nothing failed last; 0 before.", {whole: round(state["succeeded"])}),
    ])


def main(arguments: Sequence[str]) -> int:
    """``archive.py FILE``, where FILE holds the settings. 0 if all went well."""
    try:
        with open(arguments[0], encoding="utf-8") as file:
            settings = json.load(file)
        archive = Archive(settings)
        with locked(settings["state"], "the archive's synchroniser", _LOCK_SECONDS):
            archive.run()
            problems = _keep(settings, archive.outcome)
    except (KeyError, TypeError, ValueError) as error:
        _say(f"<3>{arguments[0]} is not as the role registry writes it: {error!r}. Run site.yml.")
        return 1
    except (RegistryFleetError, OSError) as error:
        _say(f"<3>{error}")
        return 1
    outcome = archive.outcome
    for line in [*lines(outcome), *(f"<4>{problem}" for problem in problems)]:
        _say(line)
    _say(f"{len(outcome.came)} tags came, {outcome.bytes} bytes; {len(outcome.current)} are as they were, {len(outcome.failed)} failed")
    return int(bool(outcome.failed or problems))


def _keep(settings: Mapping[str, Any], outcome: Outcome) -> list[str]:
    """What the next run and the monitoring are to know; why they will not."""
    before, now = load(settings["state"], STATE), time.time()
    state = {
        "bytes": _number(before.get("bytes")) + outcome.bytes, "ran": now,
        "succeeded": _number(before.get("succeeded")) if outcome.failed else now,
    }
    problems = [problem for problem in [save(settings["state"], STATE, state)] if problem]
    path = os.path.join(settings["metrics"], f"mirrorfleet_archive_{settings['name']}.prom")
    try:
        # The collector is another user.
        replace(path, metrics_text(settings["name"], outcome, state), 0o644)
    except OSError as error:
        problems.append(f"{path} can't be written: {error.strerror}")
    return problems


def _number(value: object) -> float:
    return float(value) if isinstance(value, (int, float)) else 0.0


def _say(text: str) -> None:
    """A line break in what a registry said begins no line of its own."""
    say(" ".join(text.splitlines()))
