# Copyright (c) 2026, mirrorfleet contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0
"""Promotion of images from one registry to another: what is to be done is worked out first, by questions alone, and then done, the tag last."""

from __future__ import annotations

import errno
import getpass
import hashlib
import json
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any, Callable, Iterable, Mapping, Sequence, TypeVar

from ansible_collections.mirrorfleet.registry.plugins.module_utils.errors import RegistryFleetError
from ansible_collections.mirrorfleet.registry.plugins.module_utils.image_manifest import Descriptor, Manifest, choose, parse_manifest
from ansible_collections.mirrorfleet.registry.plugins.module_utils.promotion import (
    Facts,
    Key,
    Policy,
    Wanted,
    history_tag,
    merge_attached,
    merge_referrers,
    parse_all,
    parse_key,
    parse_policy,
    read_facts,
    record_line,
    referrer_descriptor,
    violations,
)
from ansible_collections.mirrorfleet.registry.plugins.module_utils.promotion_tools import (
    Endpoint,
    SigningKey,
    Tools,
    UnsignedError,
    need,
    read_text_or_file,
)
from ansible_collections.mirrorfleet.registry.plugins.module_utils.registry_client import HttpClient, RegistryClient, RegistryError

_AT_ONCE = 16
_MAX_CONFIG_BYTES = 4 * 1024 * 1024
_KINDS = {"sig": "signatures", "att": "attestations", "sbom": "SBOM"}
# Layers that a registry need not hold.
_ELSEWHERE = ("foreign", "nondistributable")
_RECORDED = ("source", "target", "digest", "previous", "history_tag", "signed_by", "signed", "blobs_copied", "bytes_copied", "actions")

T = TypeVar("T")
R = TypeVar("R")


@dataclass
class _Node:
    """A manifest of an image: its index, or that of a platform. ``platform`` is empty for what is none, such as an attestation."""

    descriptor: Descriptor
    manifest: Manifest
    body: bytes
    platform: str = ""
    is_platform: bool = True

    @property
    def document(self) -> dict[str, Any]:
        return dict(json.loads(self.body))


@dataclass
class _Attached:
    """One thing to bring beside the image: ``digest`` at the source; ``tag`` and ``body`` where a manifest is then put at the target."""

    what: str
    digest: str
    tag: str = ""
    body: bytes = b""
    media_type: str = ""


@dataclass
class _Plan:
    """All that one promotion does, in its order."""

    wanted: Wanted
    digest: str
    top: _Node
    platforms: list[str]
    missing: list[Descriptor]
    copies: list[str]
    attached: list[_Attached]
    referrers: dict[str, list[_Attached]]
    previous: str
    history: str
    signs: bool
    signed_by: str

    @property
    def sets_tag(self) -> bool:
        return self.previous != self.digest

    @property
    def actions(self) -> list[str]:
        """One sentence each."""
        found = []
        if self.copies:
            found.append(f"copy it ({len(self.missing)} blobs, {sum(blob.size for blob in self.missing)} bytes)")
        found += [f"bring {each.what}" for each in (*self.attached, *(one for group in self.referrers.values() for one in group))]
        if self.signs:
            found.append("sign it with the target's key")
        if self.history:
            found.append(f"keep {self.previous} as {self.history}")
        if self.sets_tag:
            found.append(f"set the tag {self.wanted.to_tag}")
        return found


@dataclass(frozen=True)
class Record:
    """The file that every promotion is written down in, a line each."""

    path: str

    def check(self) -> None:
        """Raises RegistryFleetError if the file can't be written to; does not make it."""
        directory = os.path.dirname(os.path.abspath(self.path))
        place = self.path if os.path.exists(self.path) else directory
        if not os.path.isdir(directory) or os.path.isdir(self.path) or not os.access(place, os.W_OK):
            why = f"{directory} is no directory" if not os.path.isdir(directory) else f"{place} can't be written to"
            raise RegistryFleetError(f"record: {self.path} can't keep the record: {why}. Give the path of a file that this user may append to.")

    def add(self, by: str, report: Mapping[str, Any]) -> None:
        line = record_line(time=_timestamp(), by=by, host=os.uname().nodename, **{key: report[key] for key in _RECORDED})
        try:
            # One write at the end of the file: lines of two runs at once do not mix.
            descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o640)
            try:
                if os.write(descriptor, line) != len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        except OSError as error:
            why = f"it was done, but {self.path} can't be written to ({error.strerror}). Append this line to it: {line.decode().rstrip()}"
            raise RegistryFleetError(why) from None


@dataclass(frozen=True)
class Settings:
    """What holds for all images of a run.

    lean: what the target has by its digest is not asked for at the source again, and what it lacks the source is not asked for before it is copied.
    platforms: of an index only what is for these is brought, and an index of that alone; none: all of it.
    """

    policy: Policy = field(default_factory=Policy)
    signing: SigningKey | None = None
    force: bool = False
    record: Record | None = None
    by: str = ""
    dry: bool = False
    lean: bool = False
    platforms: tuple[str, ...] = ()


def promote(
    images: Sequence[str],
    source: Mapping[str, Any],
    target: Mapping[str, Any],
    *,
    policy: Mapping[str, Any] | None = None,
    sign: Mapping[str, Any] | None = None,
    force: bool = False,
    record: str = "",
    promoted_by: str = "",
    parallel: int = 3,
    copy_timeout: float = 3600,
    dry: bool = False,
    **waiting: Any,
) -> dict[str, Any]:
    """What the module image_promote documents. ``waiting`` are time-outs and retries of the client.

    Raises RegistryFleetError for what is wrong with the arguments; what goes wrong with an image is told.
    """
    ends = Endpoint("source", **source), Endpoint("target", **target)
    rules, signing = _policy(policy or {}), _signing_key(sign)
    need("skopeo", *(["cosign"] if rules.keys or signing else []))
    if parallel < 1:
        raise RegistryFleetError(f"parallel: {parallel} promotes nothing. Write 1 or more.")
    notes = Record(record) if record else None
    if notes:
        notes.check()
    settings = Settings(rules, signing, force, notes, promoted_by or whoever(), dry)
    wanted = parse_all(images, ends[0].host, ends[1].host)
    _refuse_replica(ends[1], **waiting)
    reports = promote_all(lambda *_clients: wanted, ends, settings, parallel, copy_timeout, **waiting)
    changed, failed = (sum(1 for each in reports if each[name]) for name in ("changed", "error"))
    return {"images": reports, "counts": {"images": len(reports), "promoted": changed, "failed": failed}}


def _refuse_replica(target: Endpoint, connect_timeout: float = 5.0, timeout: float = 30.0, **_unused: Any) -> None:
    """Raises RegistryFleetError where the target's URL leads to a replica of ours, whose tags may be those of a while ago (docs/replicas.md)."""
    try:
        client = HttpClient(target.ca_certificate, target.validate_certs, connect_timeout, timeout)
        with closing(client), client.get(f"{target.url.rstrip('/')}/replica", {}) as answer:
            body = answer.read(_MAX_CONFIG_BYTES)
        said = json.loads(body)
    except (RegistryError, ValueError, RecursionError):
        # Something else answers there, or nothing, which is told of each image.
        return
    why = ""
    if answer.status == 503 and b"the replicator of " in body:
        why = "leads to a host whose replicator does not answer, so it may be a replica"
    elif answer.status == 200 and isinstance(said, dict) and said.get("role") == "replica":
        why = f"leads to {said.get('host')}, a replica of {said.get('primary')}"
    if why:
        raise RegistryFleetError(
            f"target.url: {target.url} {why}. A replica's tags may be older than the primary's, and by them it is decided what is promoted. "
            "Write the primary's own name."
        )


def promote_all(
    asks: Callable[[RegistryClient, RegistryClient], Sequence[Wanted]], ends: tuple[Endpoint, Endpoint], settings: Settings, parallel: int,
    copy_timeout: float, **waiting: Any,
) -> list[dict[str, Any]]:
    """Promote what ``asks`` finds to be wanted, of both registries if need be; what happened to each.

    Raises RegistryFleetError for what is wrong with the registries.
    """
    with ExitStack() as stack:
        clients = [stack.enter_context(end.client(**waiting)) for end in ends]
        wanted = asks(clients[0], clients[1])
        # A registry that everybody may read from would take until the first copy to refuse a login, and --check would not see it.
        for client in (client for client, end in zip(clients, ends) if end.username):
            client.log_in()
        tools = stack.enter_context(Tools(*ends, retries=waiting.get("retries", 3), timeout=copy_timeout))
        key = parse_key(tools.public_key(settings.signing), "sign.key") if settings.signing else None
        pool, askers = stack.enter_context(ThreadPoolExecutor(parallel)), stack.enter_context(ThreadPoolExecutor(_AT_ONCE))
        run = _Run(ends, clients[0], clients[1], tools, settings, key, askers, wanted)
        return list(pool.map(run.promote, wanted))


def whoever() -> str:
    """The user who runs this, or who became it by sudo."""
    try:
        return os.environ.get("SUDO_USER") or getpass.getuser()
    except (KeyError, OSError, ImportError):
        return f"user {os.getuid()}"


def failure(report: Mapping[str, Any]) -> str:
    """Why a run fails; empty if it does not."""
    failed = [f"{each['image']}: {each['error']}" for each in report["images"] if each["error"]]
    return "\n".join([f"{len(failed)} of {len(report['images'])} images were not promoted.", *failed]) if failed else ""


def _policy(given: Mapping[str, Any]) -> Policy:
    keys = []
    for number, value in enumerate(given.get("signed_by") or [], 1):
        option = f"policy.signed_by[{number}]"
        is_text = "-----BEGIN" in value
        keys.append(parse_key(read_text_or_file(value, option), option if is_text else os.path.basename(value)))
    return parse_policy(keys, given.get("labels") or {}, given.get("max_age") or "", given.get("sources") or [])


def _signing_key(given: Mapping[str, Any] | None) -> SigningKey | None:
    if not given:
        return None
    path, text = given.get("key") or "", given.get("key_text") or ""
    if path and not os.access(path, os.R_OK):
        raise RegistryFleetError(f"sign.key: {path} can't be read. Give the path of cosign's private key on this host, or its text as sign.key_text.")
    return SigningKey(os.path.abspath(path) if path else "", text, given.get("password") or "")


class _Run:
    """The images of a run, each by itself; only that a registry is out of reach is asked once for all."""

    def __init__(
        self, ends: tuple[Endpoint, Endpoint], source: RegistryClient, target: RegistryClient, tools: Tools, settings: Settings, key: Key | None,
        pool: ThreadPoolExecutor, wanted: Sequence[Wanted],
    ) -> None:
        self._ends, self._source, self._target, self._tools, self._settings, self._key, self._pool = ends, source, target, tools, settings, key, pool
        self._out_of_reach: RegistryError | None = None
        # Signatures are read, added to and written again: images that come into one repository do so one after the other.
        self._turns = {each.to_path: threading.Lock() for each in wanted}

    def promote(self, wanted: Wanted) -> dict[str, Any]:
        """Plan and, unless the run is dry, do it; what happened."""
        with self._turns[wanted.to_path]:
            return self._promote(wanted)

    def _promote(self, wanted: Wanted) -> dict[str, Any]:
        began = time.monotonic()
        report: dict[str, Any] = {
            "image": wanted.text, "source": f"{self._ends[0].host}/{wanted.name}", "target": f"{self._ends[1].host}/{wanted.to}", "digest": wanted.digest,
            "previous": "", "history_tag": "", "platforms": [], "signed_by": "", "signed": False, "blobs_copied": 0, "bytes_copied": 0,
            "actions": [], "changed": False, "error": "",
        }
        try:
            if self._out_of_reach is not None:
                raise self._out_of_reach
            plan = self._plan(wanted, report)
            report.update(
                digest=plan.digest, previous=plan.previous, history_tag=plan.history, platforms=plan.platforms, signed_by=plan.signed_by, signed=plan.signs,
                blobs_copied=len(plan.missing), bytes_copied=sum(blob.size for blob in plan.missing), actions=plan.actions,
            )
            if plan.actions and not self._settings.dry:
                self._do(plan)
            report["changed"] = bool(plan.actions)
            if report["changed"] and not self._settings.dry and self._settings.record:
                self._settings.record.add(self._settings.by, report)
        except RegistryError as error:
            # Nobody waits for each of ninety images until a registry that is gone has not answered, or asks one on that has had enough.
            if error.status in (None, 429):
                self._out_of_reach = error
            report["error"] = str(error)
        except RegistryFleetError as error:
            report["error"] = str(error)
        report["seconds"] = round(time.monotonic() - began, 3)
        return report

    def _plan(self, wanted: Wanted, report: dict[str, Any]) -> _Plan:
        now = datetime.now(timezone.utc)
        digest = report["digest"] = self._resolve(wanted)
        nodes = self._nodes(wanted, digest)
        parts = [digest] if nodes[0].descriptor.digest == digest else [node.descriptor.digest for node in nodes[1:]]
        digest = report["digest"] = nodes[0].descriptor.digest
        top, platforms = nodes[0], [node for node in nodes if node.is_platform]
        there = self._target.head_manifest(wanted.to_path, wanted.to_tag)
        previous = there.digest if there else ""
        signed_by = self._judge(wanted, digest, top, platforms, now, with_age=previous != digest)
        history = ""
        if previous not in ("", digest):
            if not self._settings.force:
                why = f"the target has {wanted.to} already, as {previous}, and what would be promoted is {digest}"
                raise RegistryFleetError(f"{why}. Promote it under another tag, or set force: the old digest then stays reachable under a history tag.")
            history = history_tag(wanted.to_tag, previous, now)
        manifests = self._each(nodes, lambda node: self._target.head_manifest(wanted.to_path, node.descriptor.digest))
        missing = self._missing_blobs(wanted, nodes)
        attached, referrers = self._attachments(wanted, [node.descriptor.digest for node in nodes])
        signs = self._key is not None and not self._signed_at_target(wanted, digest, self._key)
        names, copies = sorted(node.platform for node in platforms if node.platform), parts if missing or not all(manifests) else []
        return _Plan(wanted, digest, top, names, missing, copies, attached, referrers, previous, history, signs, signed_by)

    def _resolve(self, wanted: Wanted) -> str:
        """The digest to promote. A tag is asked for once; what it names later is of no account."""
        if self._settings.lean and wanted.digest and not wanted.tag and self._target.head_manifest(wanted.to_path, wanted.digest):
            return wanted.digest
        found = self._source.head_manifest(wanted.path, wanted.tag or wanted.digest)
        if found is None:
            raise RegistryFleetError(f"the source {self._source.url} has no {wanted.name}. Check the name, or push it there first.")
        if wanted.digest and found.digest != wanted.digest:
            why = f"the tag {wanted.tag} moved: at the source it is {found.digest} now, and {wanted.digest} was to be promoted"
            raise RegistryFleetError(f"{why}. Look at what was pushed since, and give the digest that is meant.")
        return found.digest

    def _body(self, wanted: Wanted, digest: str) -> tuple[Manifest, bytes]:
        if self._settings.lean and self._target.head_manifest(wanted.to_path, digest):
            return self._target.manifest_body(wanted.to_path, digest)
        return self._source.manifest_body(wanted.path, digest)

    def _nodes(self, wanted: Wanted, digest: str) -> list[_Node]:
        """The image's manifests, the top one first. Raises RegistryFleetError if one is not there."""
        manifest, body = self._body(wanted, digest)
        top = self._chosen(_Node(Descriptor(digest, len(body), manifest.media_type), manifest, body, is_platform=not manifest.is_index))

        def child(item: Descriptor) -> _Node:
            try:
                inner, content = self._body(wanted, item.digest)
            except RegistryError as error:
                if error.status != 404:
                    raise
                why = f"its manifest for {item.platform or item.media_type}, {item.digest}, is not there"
                raise RegistryFleetError(f"it is not whole at the source: {why}. Push it there again.") from None
            if inner.is_index:
                raise RegistryFleetError(f"its index names an index again, {item.digest}, which no engine pulls. Push it as one index.")
            return _Node(item, inner, content, item.platform, _is_platform(item))

        # Of a manifest that is named twice, what makes it an image counts: nothing may hide one from the policy.
        return [top, *self._each({item.digest: item for item in sorted(top.manifest.manifests, key=_is_platform)}.values(), child)]

    def _chosen(self, top: _Node) -> _Node:
        """An index of the wanted platforms and what is about them, which names the one it was made of. Raises ManifestError if there is none of them."""
        platforms = self._settings.platforms
        if not platforms or not top.manifest.is_index:
            return top
        digests = {item.digest for item in choose(top.manifest.manifests, platforms)[0]}
        digests |= {item.digest for item in top.manifest.manifests if item.about in digests}
        if digests >= {item.digest for item in top.manifest.manifests}:
            return top
        document = top.document
        document["manifests"] = [item for item in document["manifests"] if item["digest"] in digests]
        document["annotations"] = {**document.get("annotations", {}), **origin(top.descriptor.digest, platforms)}
        body = json.dumps(document, separators=(",", ":")).encode()
        manifest = parse_manifest(body, top.manifest.media_type)
        return _Node(Descriptor(f"sha256:{hashlib.sha256(body).hexdigest()}", len(body), manifest.media_type), manifest, body, is_platform=False)

    def _missing_blobs(self, wanted: Wanted, nodes: Sequence[_Node]) -> list[Descriptor]:
        """What the target lacks. Raises RegistryFleetError if the source lacks one of these."""
        blobs = {blob.digest: blob for node in nodes for blob in node.manifest.blobs if not any(word in blob.media_type for word in _ELSEWHERE)}
        there = self._each(blobs.values(), lambda blob: self._target.head_blob(wanted.to_path, blob.digest, blob.size))
        missing = [blob for blob, found in zip(blobs.values(), there) if not found]
        if self._settings.lean:
            return missing
        at_source = self._each(missing, lambda blob: self._source.head_blob(wanted.path, blob.digest, blob.size))
        lost = [f"{blob.digest} ({blob.size} bytes)" for blob, found in zip(missing, at_source) if not found]
        if lost:
            raise RegistryFleetError(f"it is not whole at the source: of its blobs {', '.join(lost)} is not there, or not whole. Push it there again.")
        return missing

    def _judge(self, wanted: Wanted, digest: str, top: _Node, platforms: Sequence[_Node], now: datetime, with_age: bool) -> str:
        """The key that signed it. Raises RegistryFleetError that names all of the policy that does not hold."""
        policy, found, signed_by = self._settings.policy, [], ""
        facts: list[Facts] = []
        if policy.labels or policy.max_age:
            if not platforms:
                found.append("it has no image for any platform")
            facts = self._each(platforms, lambda node: read_facts(node.platform, self._config(wanted.path, node), node.document, top.document))
        found += violations(policy, self._source.url, wanted.path, facts, now, with_age)
        reasons = []
        for key in policy.keys:
            try:
                self._tools.verify("src", wanted.path, digest, key)
                signed_by = key.label
                break
            except UnsignedError as error:
                reasons.append(error.why)
        if policy.keys and not signed_by:
            found.append(" and ".join(dict.fromkeys(reasons)))
        if found:
            raise RegistryFleetError(f"the target's policy does not let {digest} in: {'; '.join(found)}.")
        return signed_by

    def _config(self, path: str, node: _Node) -> dict[str, Any]:
        config, content = node.manifest.config, bytearray()
        if config is None or config.size > _MAX_CONFIG_BYTES:
            return {}
        self._source.blob(path, config, content.extend)
        try:
            document = json.loads(content)
        except (ValueError, RecursionError):
            document = None
        return document if isinstance(document, dict) else {}

    def _signed_at_target(self, wanted: Wanted, digest: str, key: Key) -> bool:
        if self._target.head_manifest(wanted.to_path, f"{digest.replace(':', '-')}.sig") is None:
            return False
        try:
            self._tools.verify("dest", wanted.to_path, digest, key)
        except UnsignedError:
            return False
        return True

    def _attachments(self, wanted: Wanted, digests: Sequence[str]) -> tuple[list[_Attached], dict[str, list[_Attached]]]:
        """What the target lacks of what is attached to these manifests: by cosign's tags, and as referrers by the digest they refer to.

        Something can be attached to a referrer, too.
        """
        attached: list[_Attached] = []
        referrers: dict[str, list[_Attached]] = {}
        seen, asked = set(digests), list(digests)
        while asked:
            tags = [(digest, kind) for digest in asked for kind in _KINDS]
            attached += [each for each in self._each(tags, lambda item: self._by_tag(wanted, *item)) if each]
            listed = self._each(asked, lambda digest: self._source.referrers(wanted.path, digest))
            following = []
            for digest, group in zip(asked, listed):
                if group:
                    there = {item.digest for item in self._target.referrers(wanted.to_path, digest)}
                    lacking = [item for item in group if item.digest not in there]
                    if lacking:
                        referrers[digest] = [_Attached(f"the referrer {each.digest} ({each.artifact_type or 'untyped'})", each.digest) for each in lacking]
                following += [item.digest for item in group if item.digest not in seen]
                seen.update(following)
            asked = following
        return attached, referrers

    def _by_tag(self, wanted: Wanted, digest: str, kind: str) -> _Attached | None:
        tag = f"{digest.replace(':', '-')}.{kind}"
        coming = self._source.head_manifest(wanted.path, tag)
        if coming is None:
            return None
        there = self._target.head_manifest(wanted.to_path, tag)
        if there is not None and there.digest == coming.digest:
            return None
        manifest, body = self._source.manifest_body(wanted.path, coming.digest)
        if there is not None:
            merged = merge_attached(json.loads(self._target.manifest_body(wanted.to_path, there.digest)[1]), json.loads(body))
            if merged is None:
                return None
            body = json.dumps(merged, separators=(",", ":")).encode()
        return _Attached(f"the {_KINDS[kind]} of {digest}", coming.digest, tag, body, manifest.media_type)

    def _do(self, plan: _Plan) -> None:
        wanted = plan.wanted
        for digest in plan.copies:
            self._tools.copy(wanted.path, digest, wanted.to_path)
        for each in plan.attached:
            self._tools.copy(wanted.path, each.digest, wanted.to_path)
            self._target.put_manifest(wanted.to_path, each.tag, each.body, each.media_type)
        for digest, group in plan.referrers.items():
            self._refer(wanted, digest, group)
        if plan.signs and self._settings.signing:
            about = {"promoted-by": self._settings.by, "promoted-from": f"{self._ends[0].host}/{wanted.path}", "promoted-at": _timestamp()}
            self._tools.sign(wanted.to_path, plan.digest, self._settings.signing, {key: value for key, value in about.items() if value})
        if plan.sets_tag:
            self._set_tag(plan)

    def _refer(self, wanted: Wanted, digest: str, group: Sequence[_Attached]) -> None:
        descriptors = []
        for each in group:
            self._tools.copy(wanted.path, each.digest, wanted.to_path)
            manifest, body = self._source.manifest_body(wanted.path, each.digest)
            descriptors.append(referrer_descriptor(body, each.digest, manifest.media_type))
        # A registry that knows referrers has noticed by now; for any other a tag lists them.
        listed = {item.digest for item in self._target.referrers(wanted.to_path, digest)}
        if not {each.digest for each in group} <= listed:
            tag = digest.replace(":", "-")
            there = self._target.head_manifest(wanted.to_path, tag)
            before = json.loads(self._target.manifest_body(wanted.to_path, there.digest)[1]) if there else None
            index = merge_referrers(before, descriptors)
            self._target.put_manifest(wanted.to_path, tag, json.dumps(index, separators=(",", ":")).encode(), index["mediaType"])

    def _set_tag(self, plan: _Plan) -> None:
        """The last step. What the tag named before keeps a name first."""
        wanted, target = plan.wanted, self._target
        there = target.head_manifest(wanted.to_path, wanted.to_tag)
        if (there.digest if there else "") != plan.previous:
            why = f"the tag {wanted.to} at the target was set by somebody else meanwhile, to {there.digest if there else 'nothing'}"
            raise RegistryFleetError(f"{why}; it was left as it is. Look at it, and promote again.")
        if plan.history:
            manifest, body = target.manifest_body(wanted.to_path, plan.previous)
            target.put_manifest(wanted.to_path, plan.history, body, manifest.media_type)
        target.put_manifest(wanted.to_path, wanted.to_tag, plan.top.body, plan.top.manifest.media_type)

    def _each(self, items: Iterable[T], work: Callable[[T], R]) -> list[R]:
        return list(self._pool.map(work, items))


def _is_platform(item: Descriptor) -> bool:
    """Only by this platform does an engine know what is no image; annotations are of no account."""
    return item.platform != "unknown/unknown"


def origin(digest: str, platforms: Sequence[str]) -> dict[str, str]:
    """The annotations of an index that holds some platforms of another one."""
    return {"mirrorfleet.made-of": digest, "mirrorfleet.platforms": ",".join(platforms)}


def _timestamp() -> str:
    return f"{datetime.now(timezone.utc):%Y-%m-%dT%H:%M:%SZ}"
