# Copyright (c) 2026, mirrorfleet contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0
"""Keeps the replica of a registry like its primary, and the primary from being one of two. systemd runs one for each registry of a host.

At a replica: what the primary's distribution reports as pushed is brought at once, and a sweep every few minutes finds what no report
told. At the primary: the door to write stands open only while this runs (BindsTo=), and it ends when another host has become the primary.
No clock is compared with another host's: what comes first is told by the epoch, which grows by one with each failover.
"""

from __future__ import annotations

import base64
import hmac
import http.server
import json
import os
import re
import signal
import socket
import socketserver
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Mapping, Sequence

from ansible_collections.mirrorfleet.registry.plugins.module_utils.errors import RegistryFleetError
from ansible_collections.mirrorfleet.registry.plugins.module_utils.host_program import exposition, labels, replace, say
from ansible_collections.mirrorfleet.registry.plugins.module_utils.image_reference import is_digest, is_repository, is_tag
from ansible_collections.mirrorfleet.registry.plugins.module_utils.registry_client import HttpClient, RegistryClient, RegistryError
from ansible_collections.mirrorfleet.registry.plugins.module_utils.replica_copy import Copier, Door, tags_of

PATH = "/replica"
# Tells the front of another host who comes: see haproxy.cfg.j2 of the role registry.
HEADER = "X-Mirrorfleet-Replica"
STATUS = "status.json"
_MAX_BODY = 16 * 1024 * 1024
# Distribution tells of one push at a time, in 1 KB or so.
_MAX_EVENTS = 1024 * 1024
# Of what lacks and of leftovers anybody hears the first of so many, and who knows the secret the first of so many; all hear how many there are.
_SHORT, _LONG = 100, 10_000
_HANDLERS = 32
# It all is written anew each time.
_KEEP_SECONDS = 5.0
_LONGEST_PAUSE = 60.0
# What comes with a wrong digest comes whole, and in vain, until somebody pushes it again: then an event tells.
_LONGEST_PAUSE_OF_WRONG = 3600.0
# After so many images that did not come it is time to look at the primary again.
_MOST_FAILURES = 10
# After this a part of a blob is nobody's.
_PART_SECONDS = 7 * 86400.0


@dataclass(frozen=True)
class Settings:
    """What the role writes; times in seconds.

    urls: host -> where its front is, this one's left out; door: the socket of this host's distribution, socket: this program's own;
    state: what the host was told last (replicas.State); directory: what must outlive a restart; confirmed: what must not outlive a boot
    """

    registry: str
    here: str
    role: str
    primary: str
    urls: dict[str, str]
    ca: str
    secret: str
    door: str
    socket: str
    state: str
    directory: str
    confirmed: str
    metrics: str
    sweep_seconds: float
    poll_seconds: float


def settings_of(path: str) -> Settings:
    """Raises RegistryFleetError."""
    try:
        with open(path, encoding="utf-8") as file:
            return Settings(**json.load(file))
    except (OSError, ValueError, TypeError) as error:
        raise RegistryFleetError(f"{path} is not as the role registry_replica writes it: {error}. Run site.yml.") from None


@dataclass
class Image:
    """An image that one host has and another lacks.

    tag: empty for a manifest without one; digest: empty for a tag that can't be read; since: seconds since 1970 by this host's clock
    """

    repository: str
    tag: str
    digest: str
    since: float = 0.0
    why: str = ""

    @property
    def name(self) -> str:
        return f"{self.repository}{':' + self.tag if self.tag else ''}{'@' + self.digest if self.digest else ''}"


class Later:
    """What failed is tried again after a while that grows."""

    def __init__(self) -> None:
        self._failed: dict[str, tuple[float, float, str]] = {}  # name -> the last pause, its end, and why

    def pause(self, name: str) -> float:
        return self._failed.get(name, (0.0, 0.0, ""))[0]

    def is_due(self, name: str) -> bool:
        return time.monotonic() >= self._failed.get(name, (0.0, 0.0, ""))[1]

    def why(self, name: str) -> str:
        return self._failed.get(name, (0.0, 0.0, ""))[2]

    def failed(self, name: str, why: Exception | str) -> None:
        # Distribution refuses a wrong digest so.
        is_wrong = isinstance(why, RegistryError) and why.status == 400
        pause = min(_LONGEST_PAUSE_OF_WRONG if is_wrong else _LONGEST_PAUSE, self.pause(name) * 2 or 1.0)
        self._failed[name] = pause, time.monotonic() + pause, str(why)

    def forget(self, name: str) -> None:
        self._failed.pop(name, None)


@dataclass
class Status:
    """What is known here.

    lacking: what the primary has and this host has not; leftovers: the other way round; was_primary: and has not compared all tags since
    """

    epoch: int = 0
    follows: bool = False
    problem: str = ""
    lacking: dict[str, Image] = field(default_factory=dict)
    leftovers: dict[str, Image] = field(default_factory=dict)
    swept: bool = False
    was_primary: bool = False
    received_bytes: int = 0
    copied: int = 0


class Replicator:
    """The part that both roles share: the state, what the others say, the door in, the figures."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.status = self._load()
        self.changed = threading.Condition()
        self.stopping = self.news = False
        self._http = HttpClient(settings.ca, timeout=5.0, connect_timeout=2.0)
        self._keeping = threading.Lock()
        self._kept_at = 0.0
        self._copier: Copier | None = None

    def run(self) -> int:
        """Until it is told to stop; 0, or 1 when it must not go on."""
        raise NotImplementedError

    @property
    def state(self) -> dict[str, Any]:
        """What the host was told last. Raises RegistryFleetError."""
        try:
            with open(self.settings.state, encoding="utf-8") as file:
                state = json.load(file)
            return {"role": str(state["role"]), "primary": str(state["primary"]), "epoch": int(state["epoch"])}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RegistryFleetError(f"{self.settings.state} does not say what this host is: {error}. Run site.yml.") from None

    def said(self, most: int | None = None) -> dict[str, Any]:
        """What others may know: with that many images that lack, and as many that are left over."""
        state, status = self.state, self.status
        with self.changed:
            oldest = min((image.since for image in status.lacking.values()), default=0.0)
            return {
                "registry": self.settings.registry, "host": self.settings.here, **state, "epoch": max(state["epoch"], status.epoch),
                "follows": status.follows, "problem": status.problem, "swept": status.swept, "was_primary": status.was_primary,
                "lacking_images": len(status.lacking), "leftover_images": len(status.leftovers),
                "lacking": [dict(vars(image)) for image in islice(status.lacking.values(), most)],
                "leftovers": [dict(vars(image)) for image in islice(status.leftovers.values(), most)],
                "lag_seconds": round(max(0.0, time.time() - oldest), 3) if oldest else 0,
                "received_bytes": self._received(), "copied": status.copied,
            }

    def ask(self, host: str, login: bool = False) -> dict[str, Any] | None:
        """What another host says of itself, with a login more of it; None when it does not answer."""
        headers = {HEADER: "replicator", **({"Authorization": login_of(self.settings)} if login else {})}
        try:
            with self._http.get(self.settings.urls[host] + PATH, headers) as answer:
                body = answer.read(_MAX_BODY)
            said = json.loads(body)
            if answer.status == 200 and said["registry"] == self.settings.registry and said["host"] == host:
                return {**said, "role": str(said["role"]), "primary": str(said["primary"]), "epoch": int(said["epoch"])}
        except (RegistryFleetError, ValueError, KeyError, TypeError, RecursionError):
            pass
        return None

    def source(self, host: str) -> RegistryClient:
        """Another host's registry: what it has itself, text compressed."""
        return RegistryClient(
            self.settings.urls[host], ca_certificate=self.settings.ca, retries=2, timeout=20.0, compressed=True, headers={HEADER: "replicator"},
        )

    @property
    def copier(self) -> Copier:
        if self._copier is None:
            self._copier = Copier(self.door)
        return self._copier

    @property
    def door(self) -> Door:
        return Door(self.settings.door, os.path.join(self.settings.directory, "parts"))

    def heard(self, events: Sequence[Any]) -> None:
        """What a distribution reports."""

    def sweep_now(self) -> bool:
        """Look through everything, and come back when that is done; whether it could be."""
        return True

    def _received(self) -> int:
        return self.status.received_bytes + (self._copier.received if self._copier else 0)

    def keep(self) -> None:
        """Write down what is known, for a restart and for Prometheus."""
        with self._keeping:
            said = self.said()
            for path, text in ((os.path.join(self.settings.directory, STATUS), json.dumps(said)), (self._metrics_path, self._metrics(said))):
                try:
                    # The collector is another user.
                    replace(path, text, 0o644)
                except OSError as error:
                    say(f"<4>{path} can't be written: {error.strerror}")
            self._kept_at = time.monotonic()

    def _load(self) -> Status:
        """What was known before; what can't be read is found out anew."""
        try:
            with open(os.path.join(self.settings.directory, STATUS), encoding="utf-8") as file:
                said = json.load(file)
            images = [{image.name: image for image in (Image(**each) for each in said[key])} for key in ("lacking", "leftovers")]
            return Status(
                epoch=int(said["epoch"]), lacking=images[0], leftovers=images[1], received_bytes=int(said["received_bytes"]), copied=int(said["copied"]),
                was_primary=bool(said.get("was_primary", said["role"] != "replica")),
            )
        except (OSError, ValueError, KeyError, TypeError):
            return Status()

    @property
    def _metrics_path(self) -> str:
        return os.path.join(self.settings.metrics, f"mirrorfleet_replica_{self.settings.registry.replace('-', '_')}.prom")

    def _metrics(self, said: Mapping[str, Any]) -> str:
        where = labels(registry=self.settings.registry)
        return exposition("mirrorfleet_replica", [(name, kind, meaning, {where: value}) for name, kind, meaning, value in (
            ("primary", "gauge", "1 where the primary is.", int(said["role"] == "primary")),
            ("epoch", "gauge", "How many times a primary was chosen.", said["epoch"]),
            ("follows", "gauge", "1 while this host hears its primary, or is it.", int(said["follows"])),
            ("lag_seconds", "gauge", "For how long the image that lacks longest has been known.", said["lag_seconds"]),
            ("lacking_images", "gauge", "Images known to be at the primary and not here.", said["lacking_images"]),
            ("leftover_images", "gauge", "Images that are here and not at the primary.", said["leftover_images"]),
            ("received_bytes_total", "counter", "Bytes of blobs that came from other hosts.", said["received_bytes"]),
            ("copied_images_total", "counter", "Images that came from other hosts.", said["copied"]),
        )])

    def trouble(self, problem: str) -> None:
        """Say what is wrong, once."""
        if problem != self.status.problem:
            say(f"<4>{problem}" if problem else "that is over")
        self.status.problem = problem

    def rest(self, seconds: float) -> None:
        """Until something happens, or so long."""
        with self.changed:
            if not self.stopping and not self.news:
                self.changed.wait(seconds)
            self.news = False

    def stop(self) -> None:
        with self.changed:
            self.stopping = True
            self.changed.notify_all()


class Follower(Replicator):
    """At a replica."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self._swept_at = -1.0
        # Who asked for a sweep takes a number, and waits until it is served.
        self._asked = self._served = 0
        self._compared = False
        # By the names of images, and of the steps of _work.
        self._later = Later()

    def run(self) -> int:
        ready()
        while not self.stopping:
            with self.changed:
                number = self._asked
            asked = number > self._served
            if asked:
                self._compared = False
            self._look_at_primary()
            if self.status.follows:
                self._work(asked)
            self.keep()
            with self.changed:
                self._served = number
                self.changed.notify_all()
            self.rest(self.settings.poll_seconds)
        return 0

    def heard(self, events: Sequence[Any]) -> None:
        with self.changed:
            for event in events:
                target = event.get("target") if isinstance(event, dict) and event.get("action") == "push" else None
                if not isinstance(target, dict):
                    continue
                image = Image(str(target.get("repository") or ""), str(target.get("tag") or ""), str(target.get("digest") or ""), time.time())
                if is_repository(image.repository) and is_digest(image.digest) and (not image.tag or is_tag(image.tag)):
                    self.status.lacking.setdefault(image.name, image)
                    self._later.forget(image.name)
            self._later.forget("round")
            self.news = True
            self.changed.notify_all()
        self.keep()

    def sweep_now(self) -> bool:
        with self.changed:
            self._asked += 1
            number, self.news = self._asked, True
            self.changed.notify_all()
            while self._served < number and not self.stopping:
                self.changed.wait(1)
            return self._compared

    def _look_at_primary(self) -> None:
        """Whether the primary is one that may be followed."""
        primary, state = self.settings.primary, self.state
        said = self.ask(primary)
        known = max(state["epoch"], self.status.epoch)
        if said is None:
            why = f"the primary {primary} does not answer; what it may have got since is not known here"
        elif said["role"] == "unsure":
            why = f"{primary}, which is the primary here, is not sure to be the only one: {said.get('problem')}"
        elif said["role"] == "replica":
            why = f"{primary}, which is the primary here, says that it is a replica of {said['primary']} since epoch {said['epoch']}: run site.yml"
        elif said["epoch"] < known:
            why = f"{primary} is a primary of epoch {said['epoch']}, and there was one of epoch {known} since: it is not followed. Run site.yml"
        else:
            why = ""
            self.status.epoch = said["epoch"]
            if not self.status.follows:
                # What was pushed while it was not heard, nobody has reported.
                self._later, self._swept_at = Later(), -1.0
        if why or not self.status.follows:
            self.trouble(why)
        self.status.follows = not why

    def _work(self, asked: bool) -> None:
        """Bring what lacks, as far as it is known, after a sweep if it is time for one."""
        if asked:
            self._later = Later()
        if not self._later.is_due("round"):
            return
        old = self._swept_at < 0 or time.monotonic() - self._swept_at >= self.settings.sweep_seconds
        why = ""
        try:
            with self.source(self.settings.primary) as source, self.door as door:
                if asked or old and self._later.is_due("sweep"):
                    why = self._sweep(source, door)
                self._see_leftovers(source)
                # Not before it is known which tags here were moved here.
                if not self.status.was_primary:
                    why = self._bring(source, door) or why
        except (RegistryFleetError, OSError) as error:
            why = str(error)
            self._later.failed("round", why)
        with self.changed:
            why = why or next((image.why for image in self.status.lacking.values() if image.why), "")
        self.trouble(why)

    def _sweep(self, source: RegistryClient, door: Door) -> str:
        """Compare all tags; why that can't be done."""
        try:
            theirs, unread = tags_of(source)
            ours, _broken = tags_of(door)
            now = time.time()
            # One that can't be read here comes anew.
            lacking = [Image(*name, digest, now) for name, digest in theirs.items() if ours.get(name) != digest]
            lacking += [Image(*name, "", now, why) for name, why in unread.items() if name not in ours]
            # What is here and nowhere there was pushed here when this host was the primary. A tag that names something else there may have been
            # moved here, if this host was it until now; else it was moved there, and comes, and the primary keeps what it named.
            differ = [Image(*name, digest, now) for name, digest in ours.items() if theirs.get(name) != digest]
            only_here = [
                image for image in differ
                if (self.status.was_primary or (image.repository, image.tag) not in theirs or self._is_there(source, image, image.digest) is False)
                and self._is_there(source, image, image.tag, aside(image.tag, self.settings.here, image.digest)) is False
            ]
        except RegistryError as error:
            self._later.failed("sweep", error)
            return str(error)
        for name, why in unread.items():
            say(f"<4>{':'.join(name)} can't be read at the primary {self.settings.primary}: {why}")
        with self.changed:
            for image in lacking:
                self.status.lacking.setdefault(image.name, image)
            for image in only_here:
                if image.name not in self.status.leftovers:
                    say(f"<4>{image.name} is here and not at the primary {self.settings.primary}, which fetches it now")
                self.status.leftovers.setdefault(image.name, image)
        door.tidy(_PART_SECONDS)
        self._compared, self.status.swept, self.status.was_primary = True, True, False
        # Before a tag here is made to name what it names there.
        self.keep()
        self._swept_at = time.monotonic()
        self._later.forget("sweep")
        return ""

    def _is_there(self, source: RegistryClient, image: Image, *targets: str) -> bool | None:
        """Whether one of the tags or digests names the image at the primary; None where that can't be read."""
        try:
            heads = [source.head_manifest(image.repository, target) for target in targets]
        except RegistryError as error:
            if error.status is None:
                raise
            return None
        return any(head is not None and head.digest == image.digest for head in heads)

    def _see_leftovers(self, source: RegistryClient) -> None:
        """Which of them the primary has got meanwhile."""
        if not self.status.leftovers or not self._later.is_due("leftovers"):
            return
        before = len(self.status.leftovers)
        for name, image in list(self.status.leftovers.items()):
            if self._is_there(source, image, image.tag, aside(image.tag, self.settings.here, image.digest)):
                with self.changed:
                    del self.status.leftovers[name]
                say(f"{name} is at the primary {self.settings.primary} now")
        if len(self.status.leftovers) < before:
            self._later.forget("leftovers")
        else:
            self._later.failed("leftovers", "they are not there yet")

    def _bring(self, source: RegistryClient, door: Door) -> str:
        """All that lacks, the oldest first, but what failed before last; why something did not come."""
        with self.changed:
            lacking = sorted(self.status.lacking.values(), key=lambda image: self._later.pause(image.name))
        failures = 0
        why = ""
        for image in lacking:
            if self.stopping or not self._later.is_due(image.name):
                continue
            try:
                self._bring_one(source, door, image)
            except (RegistryError, OSError) as error:
                image.why = why = str(error)
                failures += 1
                self._later.failed(image.name, error)
                if failures >= _MOST_FAILURES or _stops_all(error, door):
                    self._later.failed("round", why)
                    return why
                continue
            self._later.forget(image.name)
            with self.changed:
                self.status.lacking.pop(image.name, None)
            if time.monotonic() - self._kept_at > _KEEP_SECONDS:
                self.keep()
        self._later.forget("round")
        return why

    def _bring_one(self, source: RegistryClient, door: Door, image: Image) -> None:
        # It may have moved since, or gone.
        head = source.head_manifest(image.repository, image.tag or image.digest)
        if head is None:
            say(f"<4>{image.name} does not come: the primary {self.settings.primary} has none")
            return
        digest = head.digest
        if door.named(image.repository, image.tag or digest) == digest:
            return
        self.copier.copy(source, image.repository, digest, image.tag)
        self.status.copied += 1
        say(f"{Image(image.repository, image.tag, digest).name} came, {max(0.0, time.time() - image.since):.1f} s after it was known")


class Watch(Replicator):
    """At the primary. It is ready when it is sure to be the only one, and ends when it is not."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.status.was_primary = True
        self._is_ready = False
        # What the other hosts said last, and why what they have alone did not come.
        self._answers: dict[str, dict[str, Any]] = {}
        self._unrescued = dict.fromkeys(settings.urls, "")
        # By the names of hosts, and of their images.
        self._later = Later()

    def said(self, most: int | None = None) -> dict[str, Any]:
        said = super().said(most)
        return said if self._is_ready else {**said, "role": "unsure"}

    def run(self) -> int:
        # A copy takes its time, and so long this must not wait.
        threading.Thread(target=self._rescue_all, daemon=True).start()
        while not self.stopping:
            state = self.state
            answers = {host: each for host, each in ((host, self.ask(host)) for host in self.settings.urls) if each is not None}
            why = self._why_not(state, answers)
            if why and self._is_ready:
                # With this process the door to write goes. The next one waits.
                self._is_ready = self.status.follows = False
                self.trouble(why)
                self.keep()
                return 1
            if not why and not self._is_ready:
                self._begin(state["epoch"])
            self._answers = answers
            self.trouble(why or "; ".join(filter(None, self._unrescued.values())))
            self.keep()
            self.rest(self.settings.poll_seconds)
        return 0

    def _why_not(self, state: Mapping[str, Any], answers: Mapping[str, Mapping[str, Any]]) -> str:
        """Why this host may not take what is pushed."""
        registry = self.settings.registry
        if "drained" in (state["role"], self.settings.role):
            # Its door lets nobody write, and those in who read.
            return ""
        if state["role"] != "primary":
            return f"this host takes nothing for the registry {registry}: it is a {state['role']} of {state['primary']}"
        ahead = max(answers.values(), key=lambda each: int(each["epoch"]), default=None)
        if ahead is not None and ahead["epoch"] > state["epoch"]:
            with suppress(OSError):
                os.unlink(self.settings.confirmed)
            return (
                f"{ahead['primary']} is the primary of the registry {registry} since epoch {ahead['epoch']}, and this host knows of epoch "
                f"{state['epoch']} only. It takes nothing more. Write registry_primaries: {{{registry}: {ahead['primary']}}} and run site.yml"
            )
        rival = next((each for each in answers.items() if each[1]["epoch"] == state["epoch"] and each[1]["primary"] != self.settings.here), None)
        if rival is not None:
            with suppress(OSError):
                os.unlink(self.settings.confirmed)
            return (
                f"{rival[0]} says that {rival[1]['primary']} is the primary of the registry {registry} in epoch {state['epoch']}, in which this host "
                f"is it, too. Neither takes anything. Decide for one, and run failover.yml -e registry={registry} -e to=<host> -e unannounced=true: "
                "what the other has alone is brought to it"
            )
        if not self._is_ready and not answers and not self._is_confirmed():
            return (
                f"none of {', '.join(self.settings.urls)} answers, so one of them may be the primary by now: nothing is taken until one does, "
                "or site.yml has run"
            )
        return ""

    def _begin(self, epoch: int) -> None:
        for image in self.status.lacking.values():
            say(f"<4>{image.name} was known to be at the primary before, and is not here")
        with self.changed:
            self.status.lacking.clear()
            self.status.leftovers.clear()
        self._is_ready = self.status.follows = True
        self._confirm()
        ready()
        say(f"this host is the primary of the registry {self.settings.registry}, epoch {epoch}")

    def _is_confirmed(self) -> bool:
        """Whether somebody has looked since this host was started."""
        return os.path.exists(self.settings.confirmed)

    def _confirm(self) -> None:
        if self._is_confirmed():
            return
        try:
            with open(self.settings.confirmed, "a", encoding="utf-8"):
                pass
        except OSError as error:
            say(f"<4>{self.settings.confirmed} can't be written: {error.strerror}")

    def _rescue_all(self) -> None:
        while not self.stopping:
            for host, said in self._answers.items():
                if self._is_ready and self._later.is_due(host):
                    self._unrescued[host] = self._rescue(host, said)
                    if self._unrescued[host]:
                        self._later.failed(host, self._unrescued[host])
                    else:
                        self._later.forget(host)
            self.rest(self.settings.poll_seconds)

    def _rescue(self, host: str, said: Mapping[str, Any]) -> str:
        """Bring what another host took when it was the primary, under a name that is free; why something did not come."""
        if not said.get("leftovers") or said["primary"] != self.settings.here:
            return ""
        said = self.ask(host, login=True) or said
        failures = 0
        try:
            leftovers = [Image(str(each["repository"]), str(each["tag"]), str(each["digest"])) for each in said["leftovers"]]
            leftovers = [image for image in leftovers if is_repository(image.repository) and is_tag(image.tag) and is_digest(image.digest)]
            with self.source(host) as source, self.door as door:
                for image in sorted(leftovers, key=lambda image: self._later.pause(f"{host} {image.name}")):
                    name = f"{host} {image.name}"
                    try:
                        if self._later.is_due(name):
                            self._rescue_one(source, door, host, image)
                            self._later.forget(name)
                    except (RegistryError, OSError) as error:
                        self._later.failed(name, error)
                        failures += 1
                        if failures >= _MOST_FAILURES or _stops_all(error, door):
                            break
        except (RegistryFleetError, OSError, KeyError, TypeError) as error:
            return str(error)
        return next(filter(None, (self._later.why(f"{host} {image.name}") for image in leftovers)), "")

    def _rescue_one(self, source: RegistryClient, door: Door, host: str, image: Image) -> None:
        free = aside(image.tag, host, image.digest)
        there = door.named(image.repository, image.tag)
        if image.digest in (there, door.named(image.repository, free)):
            return
        if there == "":
            free = image.tag
        self.copier.copy(source, image.repository, image.digest, free)
        self.status.copied += 1
        say(f"{image.name} came from {host}, which had taken it alone; it is {image.repository}:{free} here")


def _stops_all(error: Exception, door: Door) -> bool:
    """Whether nothing else can come either: nobody answers, or the storage here takes nothing."""
    if not isinstance(error, RegistryError) or error.status is None:
        return True
    return error.status >= 500 and error.url.startswith(door.url)


def aside(tag: str, host: str, digest: str) -> str:
    """The tag of an image whose own is taken. A tag has 128 characters at most, and other ones than a host's name."""
    ending = f"-of-{re.sub('[^A-Za-z0-9_.-]', '-', host)[:60]}-{digest.partition(':')[2][:12]}"
    return tag[:128 - len(ending)] + ending


def ready() -> None:
    """Tell systemd (sd_notify(3))."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if address:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
            channel.sendto(b"READY=1", f"\0{address[1:]}" if address.startswith("@") else address)


def login_of(settings: Settings) -> str:
    """How the hosts of a registry know each other."""
    return "Basic " + base64.b64encode(f"replica:{settings.secret}".encode()).decode()


class _Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    """So many at once; the others wait for their turn."""

    daemon_threads = True
    request_queue_size = 128
    replicator: Replicator

    def __init__(self, address: str) -> None:
        self._free = threading.Semaphore(_HANDLERS)
        super().__init__(address, _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        self._free.acquire()
        try:
            super().process_request(request, client_address)
        except BaseException:
            self._free.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()


class _Handler(http.server.BaseHTTPRequestHandler):
    """GET /replica: what this host is and lacks. POST /replica, with the secret: what distribution reports, or {"sweep": true}, which is
    answered by 503 when the tags could not be compared.

    HTTP/1.0: who has his answer goes, and keeps no handler.
    """

    server: _Server
    timeout = 30

    def do_GET(self) -> None:
        self._answer(200, _LONG if self._knows_secret() else _SHORT) if self.path == PATH else self._answer(404)

    def do_POST(self) -> None:
        replicator = self.server.replicator
        # Of who does not know the secret nothing is read.
        if not self._knows_secret():
            return self._answer(401)
        length = self.headers.get("Content-Length", "")
        if self.path != PATH or not length.isdigit() or int(length) > _MAX_EVENTS:
            return self._answer(400)
        try:
            said = json.loads(self.rfile.read(int(length)))
            events = said.get("events", [])
        except (ValueError, AttributeError, RecursionError):
            return self._answer(400)
        if said.get("sweep"):
            return self._answer(200 if replicator.sweep_now() else 503, _LONG)
        replicator.heard(events if isinstance(events, list) else [])
        return self._answer(200)

    def _knows_secret(self) -> bool:
        return hmac.compare_digest(self.headers.get("Authorization", "").encode(), login_of(self.server.replicator.settings).encode())

    def _answer(self, status: int, most: int = 0) -> None:
        try:
            body = json.dumps(self.server.replicator.said(most) if most or status == 200 else {}).encode()
        except RegistryFleetError:
            status, body = 503, b"{}"
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def address_string(self) -> str:
        return "socket"

    def log_message(self, format: str, *args: Any) -> None:
        """The front has a log."""


def main(arguments: Sequence[str]) -> int:
    """``replicator.py FILE [sweep|status]``, where FILE holds what the role writes. With a word, the running one is asked."""
    try:
        settings = settings_of(arguments[0])
        if len(arguments) > 1:
            return _ask_running(settings, arguments[1])
        replicator: Replicator = Follower(settings) if settings.role == "replica" else Watch(settings)
        with suppress(FileNotFoundError):
            os.unlink(settings.socket)
        server = _Server(settings.socket)
        server.replicator = replicator
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.5}, daemon=True).start()
        signal.signal(signal.SIGTERM, lambda *_unused: replicator.stop())
        code = replicator.run()
    except (RegistryFleetError, OSError) as error:
        say(f"<3>{error}")
        code = 1
    # Blobs may be on their way in threads, for which Python would wait; and as long as this lives, the door to write is open.
    os._exit(code)


def _ask_running(settings: Settings, word: str) -> int:
    """Print what the running one says, after a sweep if one is wished."""
    # A sweep takes as long as what it finds takes to come.
    client = HttpClient(address=settings.socket, timeout=24 * 3600.0)
    body = json.dumps({"sweep": True}).encode() if word == "sweep" else None
    with client.get(f"http://localhost{PATH}", {"Authorization": login_of(settings)}, "POST" if body else "GET", body) as answer:
        text = answer.read(_MAX_BODY).decode()
    say(text)
    return 0 if answer.status == 200 else 1
