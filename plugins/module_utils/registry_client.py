# Copyright (c) 2026, mirrorfleet contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0
"""A client for registries, on http.client: the collection's one way to speak HTTP.

Protocol: github.com/opencontainers/distribution-spec (spec.md, 1.1). Authentication: RFC 7235, RFC 7617 and
github.com/distribution/distribution docs/content/spec/auth/token.md. Ranges: RFC 9110, section 14. Signatures:
github.com/sigstore/cosign/blob/main/specs/SIGNATURE_SPEC.md.
"""

from __future__ import annotations

import base64
import hashlib
import http.client
import json
import random
import re
import socket
import ssl
import threading
import time
import zlib
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from functools import partial
from typing import BinaryIO, Callable, Collection, Iterator, Mapping, Tuple, TypeVar
from urllib.parse import urlencode, urljoin, urlsplit

from ansible_collections.mirrorfleet.registry.plugins.module_utils.errors import RegistryFleetError
from ansible_collections.mirrorfleet.registry.plugins.module_utils.image_manifest import (
    MAX_MANIFEST_BYTES,
    MEDIA_TYPES,
    Descriptor,
    Manifest,
    ManifestError,
    parse_manifest,
)
from ansible_collections.mirrorfleet.registry.plugins.module_utils.image_reference import is_digest, is_repository, is_tag

Origin = Tuple[str, str, int]  # scheme, host, port
Sink = Callable[[bytes], object]
T = TypeVar("T")

_CHUNK = 256 * 1024
_MAX_ERROR_BYTES = 16 * 1024
_MAX_TOKEN_BYTES = 1024 * 1024
_MAX_LIST_BYTES = 16 * 1024 * 1024
_MAX_REDIRECTS = 5
_LONGEST_PAUSE = 8.0
# What asks for more patience than this is told, not waited for.
_LONGEST_WAIT = 60.0
# The most that distribution 3 gives at once (catalog.maxentries).
_PAGE = 1000
_MAX_PAGES = 10_000
# How the tags end that cosign gives what it attaches.
_COSIGN = {"signature": "sig", "attestation": "att", "sbom": "sbom"}
# How the media types of blobs end that gzip makes smaller.
_TEXT = (".tar", "+json", "/json", "text/plain")
_REDIRECTS = (301, 302, 303, 307, 308)
_TEMPORARY = (429, 500, 502, 503, 504)

_JOURNAL = "Look at the journal of what answers there."
_NO_REGISTRY = "Something other than a registry answers there; check the URL."
_WRONG_BYTES = "Bytes were changed on the way or in a store; pull the image from its upstream to see which."
_REMEDIES = {
    400: "Check scheme and port of the URL.",
    403: "The registry does not let this host or user have it: check its allowed networks and permissions.",
    404: "Check the name and the tag; a mirror says the same when its upstream has no such image or can't be reached.",
    429: "The registry limits requests; wait, or use credentials with a higher limit.",
}


class RegistryError(RegistryFleetError):
    """A request that failed. ``status`` is None when there was no answer; ``temporary``: it may succeed when repeated,
    after ``retry_after`` seconds if the registry said so."""

    def __init__(
        self, url: str, why: str, remedy: str = "", status: int | None = None, temporary: bool = False, retry_after: float | None = None
    ) -> None:
        super().__init__(url, why)
        self.url, self.why, self.remedy = public_url(url), why.rstrip("."), remedy
        self.status, self.temporary, self.retry_after = status, temporary, retry_after
        self.method, self.attempts = "", 1

    def __str__(self) -> str:
        tried = f" (tried {self.attempts} times)" if self.attempts > 1 else ""
        return f"{self.method or 'GET'} {self.url}: {self.why}{tried}." + (f" {self.remedy}" if self.remedy else "")


@dataclass(frozen=True)
class Transfer:
    """What came for one blob or manifest; ``seconds`` and ``seconds_to_first_byte`` count from its first request.

    ``cached``: whether a cache had it stored; None when the answer does not say (RFC 9211, Cache-Status).
    """

    digest: str
    bytes: int
    seconds: float
    seconds_to_first_byte: float
    cached: bool | None = None


class Answer:
    """An answer whose body is read as it comes. Reading raises RegistryError."""

    def __init__(self, url: str, timeout: float, response: http.client.HTTPResponse, method: str = "GET", unpacks: bool = False) -> None:
        self.url, self.method, self.status, self.headers = url, method, response.status, response.headers
        self.received = 0
        self._timeout, self._response, self._length = timeout, response, response.length
        self._came = 0
        # 31: gzip with its header (zlib.h, inflateInit2).
        self._packed = zlib.decompressobj(31) if unpacks and response.headers.get("Content-Encoding", "") == "gzip" else None

    def chunk(self) -> bytes:
        """What has come, 256 KiB at most and unpacked; nothing at the end of a whole body."""
        chunk = self._raw_chunk() if self._packed is None else self._unpacked(self._packed)
        self.received += len(chunk)
        return chunk

    def _unpacked(self, packed: zlib._Decompress) -> bytes:
        while True:
            raw = packed.unconsumed_tail or self._raw_chunk()
            try:
                chunk = packed.decompress(raw, _CHUNK)
            except zlib.error as error:
                raise RegistryError(self.url, f"the answer can't be unpacked: {error}", _JOURNAL, self.status, temporary=True) from None
            if chunk:
                return chunk
            if not raw and not packed.eof:
                raise RegistryError(self.url, f"the connection broke off after {self._came} packed bytes", _JOURNAL, self.status, temporary=True)
            if not raw:
                return b""

    def _raw_chunk(self) -> bytes:
        left = _CHUNK if self._length is None else min(_CHUNK, self._length - self._came)
        if not left:
            # Before Python 3.12 read1 would wait for more here. Closed with nothing left, the connection serves again.
            self._response.close()
            return b""
        with _errors_of(self.url, f"nothing came for {self._timeout:g} seconds"):
            chunk = self._response.read1(left)
        self._came += len(chunk)
        # http.client ends a body that breaks off as it ends a whole one.
        if not chunk and self._length is not None:
            why = f"the connection broke off after {self._came} of {self._length} bytes"
            raise RegistryError(self.url, why, _JOURNAL, self.status, temporary=True)
        return chunk

    def read(self, limit: int) -> bytes:
        """The body, or its beginning: a longer one is cut between ``limit`` and ``limit`` + 256 KiB."""
        body = bytearray()
        while len(body) <= limit:
            chunk = self.chunk()
            if not chunk:
                break
            body += chunk
        return bytes(body)


class _UnixConnection(http.client.HTTPConnection):
    """A connection to a Unix socket."""

    path = ""

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.path)


class HttpClient:
    """Requests over kept-alive connections to any number of origins, from any number of threads.

    ``ca_certificate`` is PEM text or a file's path; it is trusted beside the system's authorities, as in Docker's certs.d.
    ``timeout`` bounds each wait for the other side, not a whole transfer; all times are seconds. Raises RegistryError.
    ``address`` is where to connect, whatever the URL's host; Host header and certificate stay the URL's. With a slash it is a Unix socket.
    """

    def __init__(
        self, ca_certificate: str = "", validate_certs: bool = True, connect_timeout: float = 5.0, timeout: float = 30.0, address: str = ""
    ) -> None:
        if min(connect_timeout, timeout) <= 0:
            raise RegistryFleetError(f"A time-out of {min(connect_timeout, timeout):g} seconds leaves no time to answer; give more than 0.")
        self._connect_timeout, self._timeout, self._address = connect_timeout, timeout, address
        self._idle: dict[Origin, list[http.client.HTTPConnection]] = {}
        self._lock = threading.Lock()
        self._tls = _tls_context(ca_certificate, validate_certs)

    @contextmanager
    def get(self, url: str, headers: Mapping[str, str], method: str = "GET", body: bytes | BinaryIO | None = None) -> Iterator[Answer]:
        """The answer, whatever its status. The connection is kept if all of the body was read."""
        origin = _origin(url)
        parts = urlsplit(url)
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        try:
            connection, response = self._request(url, origin, method, target, headers, body)
        except RegistryError as error:
            error.method = method
            raise
        try:
            yield Answer(url, self._timeout, response, method, headers.get("Accept-Encoding") == "gzip")
        finally:
            # After the last byte http.client closes the response itself, and the connection too if it can't be kept.
            if response.isclosed() and connection.sock is not None:
                with self._lock:
                    self._idle.setdefault(origin, []).append(connection)
            else:
                response.close()
                connection.close()

    def _request(
        self, url: str, origin: Origin, method: str, target: str, headers: Mapping[str, str], body: bytes | BinaryIO | None
    ) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        late = f"no answer within {self._timeout:g} seconds"
        with self._lock:
            idle = self._idle.get(origin)
            kept = idle.pop() if idle else None
        if kept is not None:
            # The other side may have closed an idle connection, which is no fault; so a new one is tried at once.
            with _errors_of(url, late):
                try:
                    return kept, _send(kept, method, target, headers, body)
                except (ConnectionError, http.client.BadStatusLine):
                    pass
        with _errors_of(url, f"no connection within {self._connect_timeout:g} seconds"):
            connection = self._connect(origin)
        with _errors_of(url, late):
            return connection, _send(connection, method, target, headers, body)

    def _connect(self, origin: Origin) -> http.client.HTTPConnection:
        scheme, host, port = origin
        connection = (
            _UnixConnection(host, port, timeout=self._connect_timeout)
            if "/" in self._address
            else http.client.HTTPSConnection(host, port, timeout=self._connect_timeout, context=self._tls)
            if scheme == "https"
            else http.client.HTTPConnection(host, port, timeout=self._connect_timeout)
        )
        if isinstance(connection, _UnixConnection):
            connection.path = self._address
        elif self._address:
            # The one place where http.client lets the peer differ from the host that TLS verifies.
            connection._create_connection = lambda peer, *more: socket.create_connection((self._address, peer[1]), *more)  # type: ignore[attr-defined]
        connection.connect()
        connection.sock.settimeout(self._timeout)
        return connection

    def close(self) -> None:
        """Close the idle connections."""
        with self._lock:
            connections = [connection for idle in self._idle.values() for connection in idle]
            self._idle.clear()
        for connection in connections:
            connection.close()


class _Download:
    """A blob on its way into a sink, over as many requests as it takes. Each byte goes there once, and what went there is verified."""

    def __init__(self, blob: Descriptor, sink: Sink | None) -> None:
        self.blob, self.received, self.ranges = blob, 0, True
        self.began, self.first_byte = time.monotonic(), 0.0
        self.cached: bool | None = None
        self._running, self._sink = hashlib.new(blob.digest.partition(":")[0]), sink

    @property
    def digest(self) -> str:
        return f"{self._running.name}:{self._running.hexdigest()}"

    def take(self, chunk: bytes) -> None:
        self.received += len(chunk)
        self._running.update(chunk)
        if self._sink and chunk:
            self._sink(chunk)

    def note(self, cache_status: str | None) -> None:
        """A blob was cached if each of its parts was."""
        if cache_status is not None:
            self.cached = bool(re.search(r";\s*hit\b", cache_status)) and self.cached is not False

    def transfer(self) -> Transfer:
        return Transfer(self.blob.digest, self.received, time.monotonic() - self.began, self.first_byte - self.began, self.cached)


class RegistryClient:
    """One registry, at ``url``: ``https://host[:port]``, with a path if its ``/v2/`` is below one.

    Credentials are sent only when the registry asks for them, and never to where it redirects. A request that met a broken
    connection, a time-out, 429 or 5xx is tried ``retries`` times more, not before the registry's Retry-After, up to a minute.
    With ``only_if_cached`` a cache that knows the directive (RFC 9111, section 5.2.1.7) answers 504 instead of fetching.
    ``compressed`` asks for gzip, but for blobs that are compressed already. ``headers`` go with each request to the registry itself.
    Every method is safe to call from several threads and raises RegistryError.
    """

    def __init__(
        self,
        url: str,
        *,
        username: str = "",
        password: str = "",
        ca_certificate: str = "",
        validate_certs: bool = True,
        connect_timeout: float = 5.0,
        timeout: float = 30.0,
        retries: int = 3,
        address: str = "",
        only_if_cached: bool = False,
        compressed: bool = False,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self._origin = _origin(url)
        parts = urlsplit(url)
        if "@" in parts.netloc or parts.query or parts.fragment:
            remedy = "Give https://host[:port][/path] and pass credentials by their own options."
            raise RegistryError(url, "a user, a query or a fragment stands in the URL", remedy)
        self.url = url.rstrip("/")
        self._username, self._password, self._retries = username, password, max(0, retries)
        self._basic = "Basic " + base64.b64encode(f"{username}:{password}".encode()).decode() if username else ""
        self._authorization: dict[str, str] = {}  # by repository: a token is valid for one
        self._only_if_cached, self._compressed, self._headers = only_if_cached, compressed, dict(headers or {})
        self._http = HttpClient(ca_certificate, validate_certs, connect_timeout, timeout, address)

    def __enter__(self) -> RegistryClient:
        return self

    def __exit__(self, *_unused: object) -> None:
        self._http.close()

    def log_in(self) -> None:
        """Ask for nothing but what the registry thinks of the credentials. One that anybody may read from at ``/v2/`` does not say."""
        def ask() -> None:
            with self._get("", f"{self.url}/v2/", {}) as answer:
                answer.read(_MAX_ERROR_BYTES)

        self._retrying(ask)

    def manifest(self, repository: str, target: str) -> tuple[Manifest, Transfer]:
        """The manifest of a tag or digest, its digest verified."""
        manifest, _body, transfer = self._retrying(lambda: self._manifest(repository, target))
        return manifest, transfer

    def manifest_body(self, repository: str, target: str) -> tuple[Manifest, bytes]:
        """The manifest of a tag or digest with its bytes as they are, its digest verified."""
        return self._retrying(lambda: self._manifest(repository, target)[:2])

    def put_manifest(self, repository: str, target: str, body: bytes, media_type: str) -> None:
        """Store a manifest under a tag or its digest; what it names must be there. What a tag named before is no longer its."""
        url = f"{self.url}/v2/{repository}/manifests/{target}"

        def put() -> None:
            with self._get(repository, url, {"Content-Type": media_type}, "PUT", also=(201,), body=body) as answer:
                answer.read(_MAX_ERROR_BYTES)

        self._retrying(put)

    def blob(self, repository: str, blob: Descriptor, sink: Sink | None = None) -> Transfer:
        """Stream a blob into ``sink`` in chunks, each byte once, and verify size and digest. A retry goes on where the last one ended."""
        download = _Download(blob, sink)
        return self._retrying(lambda: self._blob(repository, download))

    def rest_of_blob(self, repository: str, blob: Descriptor, start: int, sink: Sink) -> None:
        """Stream what follows the first ``start`` bytes of a blob into ``sink``. Whoever stores all of it verifies the digest."""
        download = _Download(blob, sink)
        download.received = start

        def fetch() -> None:
            if download.received < blob.size:
                self._blob_rest(repository, f"{self.url}/v2/{repository}/blobs/{blob.digest}", download)

        self._retrying(fetch)

    def head_manifest(self, repository: str, target: str) -> Descriptor | None:
        """Digest, size and type of what a tag or digest names; None when it is not there."""
        return self._retrying(lambda: self._head_manifest(repository, target))

    def head_blob(self, repository: str, digest: str, size: int | None = None) -> bool:
        """Whether a blob is there, of that size if one is given. A pull-through cache that does not know ``only_if_cached`` fetches it."""
        url = f"{self.url}/v2/{repository}/blobs/{digest}"

        def ask() -> bool:
            headers = self._head(repository, url, {})
            return headers is not None and (size is None or headers.get("Content-Length", str(size)) == str(size))

        return self._retrying(ask)

    def understands_only_if_cached(self) -> bool:
        """Whether an edge of this collection answers, which tells what is stored and fetches nothing: it says so at ``/v2/``."""
        def ask() -> bool:
            with self._get("", f"{self.url}/v2/", {}) as answer:
                answer.read(_MAX_ERROR_BYTES)
                # Of several caches in a row the one that answers last is the one that is asked.
                return ", ".join(answer.headers.get_all("Cache-Status") or []) == "mirror; hit"

        return self._retrying(ask)

    def stored_tag(self, repository: str, tag: str) -> str:
        """The digest that a tag has in the store of an edge that ``understands_only_if_cached``; empty when it is not there."""
        url = f"{self.url}/v2/{repository}/manifests/{tag}"

        def ask() -> str:
            with self._get(repository, url, {}, also=(504,)) as answer:
                body, content_type = answer.read(_MAX_ERROR_BYTES), answer.headers.get("Content-Type", "")
            digest = body.decode("ascii", "replace").strip()
            if answer.status == 504:
                return ""
            if not is_digest(digest):
                # Distribution may be writing it down just now.
                why = f"the answer is no digest: it is {content_type or 'of no type'} and says {in_quotes(body) or 'nothing'}"
                raise RegistryError(url, why, _JOURNAL, 200, temporary=not body)
            return digest

        return self._retrying(ask)

    def tags(self, repository: str) -> Iterator[str]:
        """The repository's tags, page by page."""
        return self._names(repository, f"{self.url}/v2/{repository}/tags/list", "tags", is_tag)

    def repositories(self) -> Iterator[str]:
        """All repositories of a registry that lists them, page by page."""
        return self._names("", f"{self.url}/v2/_catalog", "repositories", is_repository)

    def referrers(self, repository: str, digest: str) -> tuple[Descriptor, ...]:
        """What is about a manifest, such as its signatures: by the referrers API, else by the tag that stands in for it."""
        found: list[Descriptor] = []
        url = f"{self.url}/v2/{repository}/referrers/{digest}"
        try:
            for body, content_type in self._pages(repository, url, {"Accept": MEDIA_TYPES[0]}):
                listed = _parse(url, body, content_type)
                if not listed.is_index:
                    raise RegistryError(url, "the answer is an image, not a list of referrers", _NO_REGISTRY, 200)
                found.extend(listed.manifests)
        except RegistryError as error:
            # A registry that knows the API never says 404; of the others some find the path malformed.
            if error.status not in (400, 404, 405, 501):
                raise
            algorithm, _colon, encoded = digest.partition(":")
            try:
                found.extend(self.manifest(repository, f"{algorithm}-{encoded[:64]}")[0].manifests)
            except RegistryError as absent:
                if absent.status != 404:
                    raise
        return tuple({item.digest: item for item in found}.values())

    def cosign(self, repository: str, digest: str) -> dict[str, Descriptor]:
        """What cosign attached to a manifest by tags: ``signature``, ``attestation`` and ``sbom``, those that are there."""
        asked = {kind: self.head_manifest(repository, f"{digest.replace(':', '-')}.{suffix}") for kind, suffix in _COSIGN.items()}
        return {kind: item for kind, item in asked.items() if item is not None}

    def _manifest(self, repository: str, target: str) -> tuple[Manifest, bytes, Transfer]:
        url = f"{self.url}/v2/{repository}/manifests/{target}"
        began = time.monotonic()
        with self._get(repository, url, {"Accept": ", ".join(MEDIA_TYPES)}) as answer:
            first = time.monotonic()
            body = answer.read(MAX_MANIFEST_BYTES)
            content_type = answer.headers.get("Content-Type", "")
            claimed = answer.headers.get("Docker-Content-Digest", "")
        if len(body) > MAX_MANIFEST_BYTES:
            raise RegistryError(url, f"the answer is longer than a manifest can be ({MAX_MANIFEST_BYTES} bytes)", _NO_REGISTRY, 200)
        manifest = _parse(url, body, content_type)
        wanted = target if is_digest(target) else claimed if is_digest(claimed) else ""
        algorithm = wanted.partition(":")[0] or "sha256"
        digest = f"{algorithm}:{hashlib.new(algorithm, body).hexdigest()}"
        if wanted and digest != wanted:
            raise RegistryError(url, f"the manifest has the digest {digest} instead of {wanted}", _WRONG_BYTES, 200)
        return manifest, body, Transfer(digest, len(body), time.monotonic() - began, first - began)

    def _head_manifest(self, repository: str, target: str) -> Descriptor | None:
        url = f"{self.url}/v2/{repository}/manifests/{target}"
        headers = self._head(repository, url, {"Accept": ", ".join(MEDIA_TYPES)})
        if headers is None:
            return None
        digest, length = headers.get("Docker-Content-Digest", ""), headers.get("Content-Length", "")
        media_type = headers.get("Content-Type", "").partition(";")[0].strip()
        if is_digest(target) and is_digest(digest) and digest != target:
            raise RegistryError(url, f"the answer is about {digest}", _WRONG_BYTES, 200)
        # A registry should say the digest; only the bytes tell that of one that does not.
        if not is_digest(digest) or not re.fullmatch("[0-9]{1,15}", length):
            manifest, _body, transfer = self._manifest(repository, target)
            return Descriptor(transfer.digest, transfer.bytes, manifest.media_type)
        return Descriptor(digest, int(length), media_type)

    def _blob(self, repository: str, download: _Download) -> Transfer:
        blob = download.blob
        url = f"{self.url}/v2/{repository}/blobs/{blob.digest}"
        if not download.received or download.received < blob.size:
            self._blob_rest(repository, url, download)
        if download.digest != blob.digest:
            raise RegistryError(url, f"the body has the digest {download.digest}", _WRONG_BYTES, 200)
        return download.transfer()

    def _blob_rest(self, repository: str, url: str, download: _Download) -> None:
        """What is still to come. No If-Range: a digest names the same bytes for ever, and a mirror has other validators once they are stored."""
        size, start = download.blob.size, download.received if download.ranges else 0
        # Of what is compressed already, or is to go on in the middle, the bytes are wanted as they are.
        plain = {} if download.blob.media_type.endswith(_TEXT) and not start else {"Accept-Encoding": "identity"}
        with self._get(repository, url, {"Range": f"bytes={start}-", **plain} if start else plain, also=(206, 416) if start else ()) as answer:
            is_page = answer.headers.get("Content-Type", "").startswith("text/")
            if answer.status == 200:
                start = 0
            elif answer.status == 416 or parse_content_range(answer.headers.get("Content-Range", "")) not in ((start, size - 1, size), (start, size - 1, None)):
                download.ranges = False
                raise RegistryError(url, f"it does not send the bytes from {start} on that were asked for", _JOURNAL, answer.status, temporary=True)
            download.note(answer.headers.get("Cache-Status"))
            while True:
                chunk = answer.chunk()
                download.first_byte = download.first_byte or time.monotonic()
                came = start + answer.received
                if not chunk or came > size:
                    break
                # Of a body that begins anew, the part that came before is left out.
                download.take(chunk[max(0, len(chunk) - (came - download.received)):])
        if came != size:
            why = f"the body has {'more' if came > size else came} bytes, where the manifest says {size}"
            raise RegistryError(url, why, _NO_REGISTRY if is_page else _WRONG_BYTES, 200)

    def _names(self, repository: str, url: str, key: str, is_name: Callable[[str], bool]) -> Iterator[str]:
        for body, content_type in self._pages(repository, f"{url}?n={_PAGE}", {}):
            try:
                names = json.loads(body)[key] or []
            except (ValueError, LookupError, TypeError, RecursionError):
                names = None
            if not isinstance(names, list):
                why = f"the answer holds no {key}: it is {content_type or 'of no type'} and says {in_quotes(body) or 'nothing'}"
                raise RegistryError(url, why, _NO_REGISTRY, 200)
            for name in names:
                # They become parts of URLs.
                if not isinstance(name, str) or not is_name(name):
                    raise RegistryError(url, f"among the {key} is {str(name)[:200]!r}, which is none", _NO_REGISTRY, 200)
                yield name

    def _pages(self, repository: str, url: str, headers: Mapping[str, str]) -> Iterator[tuple[bytes, str]]:
        """The bodies and types of a list's pages ("Listing Tags" in the specification)."""
        seen: set[str] = set()
        while url not in seen and len(seen) < _MAX_PAGES:
            seen.add(url)
            body, content_type, link = self._retrying(partial(self._page, repository, url, headers))
            yield body, content_type
            following = next_link(link)
            if not following:
                return
            # Only its query: behind a proxy, host and path are those of another place. And no page leads the credentials away.
            url = f"{url.partition('?')[0]}?{_query(url, following)}"
        raise RegistryError(url, "its pages have no end", _JOURNAL, 200)

    def _page(self, repository: str, url: str, headers: Mapping[str, str]) -> tuple[bytes, str, str]:
        with self._get(repository, url, headers) as answer:
            body = answer.read(_MAX_LIST_BYTES)
            if len(body) > _MAX_LIST_BYTES:
                raise RegistryError(url, f"a page of the list is longer than {_MAX_LIST_BYTES} bytes", _NO_REGISTRY, 200)
            return body, answer.headers.get("Content-Type", ""), ", ".join(answer.headers.get_all("Link") or [])

    def _retrying(self, fetch: Callable[[], T]) -> T:
        attempt = 0
        while True:
            try:
                return fetch()
            except RegistryError as error:
                attempt += 1
                error.attempts = attempt
                wished = error.retry_after or 0.0
                if not error.temporary or attempt > self._retries or wished > _LONGEST_WAIT:
                    raise
            # Jitter: a mirror that comes back must not meet all its docker hosts in one moment.
            time.sleep(max(wished, min(_LONGEST_PAUSE, 0.25 * 2**attempt) * random.uniform(0.5, 1.0)))

    def _head(self, repository: str, url: str, headers: Mapping[str, str]) -> http.client.HTTPMessage | None:
        """A 200's headers; None for what is not there, or not stored where only that was asked."""
        with self._get(repository, url, headers, "HEAD", also=(404, 504) if self._only_if_cached else (404,)) as answer:
            answer.chunk()
            if answer.status == 200 and answer.headers.get("Content-Type", "").startswith("text/html"):
                raise RegistryError(url, "the answer is a page", _NO_REGISTRY, 200)
            return answer.headers if answer.status == 200 else None

    @contextmanager
    def _get(
        self, repository: str, url: str, headers: Mapping[str, str], method: str = "GET", also: Collection[int] = (), body: bytes | BinaryIO | None = None
    ) -> Iterator[Answer]:
        """A 200, or another status that is looked for, after authentication and redirects."""
        where, redirects, asked = url, 0, False
        try:
            while True:
                sent = {"Accept-Encoding": "gzip" if self._compressed else "identity", **headers, "User-Agent": "mirrorfleet.registry"}
                if self._only_if_cached:
                    sent["Cache-Control"] = "only-if-cached"
                at_home = _origin(where) == self._origin
                if at_home:
                    sent.update(self._headers)
                if at_home and repository in self._authorization:
                    sent["Authorization"] = self._authorization[repository]
                with self._http.get(where, sent, method, body) as answer:
                    if answer.status == 200 or answer.status in also:
                        yield answer
                        return
                    said = answer.read(_MAX_ERROR_BYTES)
                location = answer.headers.get("Location", "")
                challenges = answer.headers.get_all("WWW-Authenticate") or []
                if answer.status in _REDIRECTS and location and redirects < _MAX_REDIRECTS:
                    where, redirects = _join(where, location), redirects + 1
                elif answer.status == 401 and challenges and at_home and not asked:
                    self._authorization[repository], asked = self._authorize(where, ", ".join(challenges), repository), True
                else:
                    raise self._failure(where, answer, said)
        except RegistryError as error:
            error.method = error.method or method
            raise

    def _authorize(self, url: str, challenges: str, repository: str) -> str:
        """The Authorization header that answers a challenge."""
        offered = parse_challenges(challenges)
        if "bearer" in offered:
            return "Bearer " + self._token(url, offered["bearer"], repository)
        if "basic" in offered and self._basic:
            return self._basic
        if "basic" in offered:
            raise RegistryError(url, "401 Unauthorized, and no credentials were given", "Set username and password.", 401)
        why = f"401 Unauthorized, and it offers {', '.join(offered) or 'no scheme'}"
        raise RegistryError(url, why, "Only Basic and Bearer are supported.", 401)

    def _token(self, url: str, challenge: Mapping[str, str], repository: str) -> str:
        realm = challenge.get("realm", "")
        # A registry reached by TLS must not talk the password out of it.
        if self._basic and self._origin[0] == "https" and _origin(realm)[0] != "https":
            why = f"it sends for a token to {public_url(realm)}, which is not https and does not get the credentials"
            raise RegistryError(url, why, "Correct the realm in the registry's configuration.", 401)
        parameters = {key: challenge[key] for key in ("service", "scope") if challenge.get(key)}
        parameters.setdefault("scope", f"repository:{repository}:pull" if repository else "registry:catalog:*")
        where = f"{realm}{'&' if '?' in realm else '?'}{urlencode(parameters)}"
        with self._http.get(where, {"Authorization": self._basic} if self._basic else {}) as answer:
            body = answer.read(_MAX_TOKEN_BYTES)
        if answer.status != 200:
            raise self._failure(where, answer, body)
        try:
            document = json.loads(body)
            token = document.get("token") or document.get("access_token")
        except (ValueError, AttributeError, RecursionError):
            token = None
        if not isinstance(token, str) or not re.fullmatch(r"[\x21-\x7e]+", token):
            raise RegistryError(where, "the answer holds no token", "Check the realm in the registry's configuration.", 200)
        return token

    def _failure(self, url: str, answer: Answer, body: bytes) -> RegistryError:
        sent = [value.partition(" ")[2] for value in (self._basic, *self._authorization.values())]
        said, status = in_quotes(body, self._password, *sent), answer.status
        why = f"{status} {http.client.responses.get(status, '')}".strip() + (f", and says {said}" if said else "")
        retry_after = parse_retry_after(answer.headers.get("Retry-After", ""), datetime.now(timezone.utc))
        if retry_after is not None and retry_after > _LONGEST_WAIT:
            why += f", and asks to wait {retry_after:.0f} seconds"
        if status == 401:
            remedy = "The given username and password were refused; correct them." if self._basic else "Set username and password."
        else:
            remedy = _REMEDIES.get(status, "It or its way to the upstream is broken; look at its journal." if status >= 500 else "")
        temporary = status in _TEMPORARY and not (status == 504 and self._only_if_cached)
        error = RegistryError(url, why, remedy, status, temporary, retry_after)
        error.method = answer.method
        return error


def public_url(url: str) -> str:
    """The URL as it may be shown: a query or a user part can carry a signature, a token or a password."""
    return re.sub(r"(?s)[?#].*", "?…", re.sub(r"//[^/?#]*@", "//", url))


def parse_challenges(header: str) -> dict[str, dict[str, str]]:
    """WWW-Authenticate by scheme, names in lower case: ``{"bearer": {"realm": "https://…", …}}`` (RFC 7235, section 4.1)."""
    found: dict[str, dict[str, str]] = {}
    parameters: dict[str, str] = {}
    for match in re.finditer(r'([^\s,="]+)\s*(?:=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s,"]*)))?', header):
        name, quoted, plain = match.groups()
        if quoted is None and plain is None:
            parameters = found.setdefault(name.lower(), {})
        else:
            parameters[name.lower()] = plain if quoted is None else re.sub(r"\\(.)", r"\1", quoted)
    return found


def parse_retry_after(value: str, now: datetime) -> float | None:
    """The seconds that Retry-After asks to wait: of a number, or of a date and the time that it is (RFC 9110, section 10.2.3)."""
    if re.fullmatch(r"[0-9]{1,9}", value.strip()):
        return float(value)
    try:
        then = parsedate_to_datetime(value)
        return max(0.0, (then if then.tzinfo else then.replace(tzinfo=timezone.utc)).timestamp() - now.timestamp())
    except (TypeError, ValueError, IndexError, OverflowError):
        return None


def parse_content_range(value: str) -> tuple[int, int, int | None] | None:
    """First byte, last byte and whole length, None where it is not known; None for what is no range (RFC 9110, section 14.4)."""
    match = re.fullmatch(r"bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18}|\*)", value.strip(), re.IGNORECASE)
    if match is None:
        return None
    first, last, length = int(match[1]), int(match[2]), None if match[3] == "*" else int(match[3])
    return (first, last, length) if first <= last and (length is None or last < length) else None


def next_link(header: str) -> str:
    """The target of the link whose relation is ``next``, as it is written; empty when there is none (RFC 8288, section 3)."""
    parameter = r'\s*;\s*([^\s=;,"<>]+)(?:\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s;,"<>]+)))?'
    for link in re.finditer(rf"<([^<>]*)>((?:{parameter})*)", header):
        for name, quoted, plain in re.findall(parameter, link[2]):
            if name.lower() == "rel":
                if "next" in (quoted or plain).lower().split():
                    return link[1]
                break
    return ""


def _query(url: str, link: str) -> str:
    query = urlsplit(_join(url, link)).query
    if not query or re.search(r"[^\x21-\x7e]", query):
        raise RegistryError(url, "its next page has an address without a query", _JOURNAL, 200)
    return query


def _parse(url: str, body: bytes, content_type: str) -> Manifest:
    try:
        return parse_manifest(body, content_type)
    except ManifestError as error:
        why = f"the answer is no manifest, {error}: it is {content_type or 'of no type'} and says {in_quotes(body) or 'nothing'}"
        raise RegistryError(url, why, _NO_REGISTRY, 200) from None


def _origin(url: str) -> Origin:
    """Scheme, host and port of an absolute URL. Raises RegistryError."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise RegistryError(url, f"it is no URL ({error})", "Write https://host[:port].") from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise RegistryError(url, "it is no URL of a registry", "Write https://host[:port].")
    return parts.scheme, parts.hostname, port or (443 if parts.scheme == "https" else 80)


def _join(url: str, location: str) -> str:
    try:
        return urljoin(url, location)
    except ValueError:
        raise RegistryError(url, "it redirects to what is no URL", _JOURNAL) from None


def _send(
    connection: http.client.HTTPConnection, method: str, target: str, headers: Mapping[str, str], body: bytes | BinaryIO | None
) -> http.client.HTTPResponse:
    try:
        if body is not None and not isinstance(body, bytes):
            # An idle connection that was closed may have taken some of it.
            body.seek(0)
        connection.request(method, target, body, dict(headers))
        return connection.getresponse()
    except BaseException:
        connection.close()
        raise


def _tls_context(ca_certificate: str, validate_certs: bool) -> ssl.SSLContext:
    context = ssl.create_default_context()
    # Python 3.13 refuses private authorities that lack extensions which no container engine asks for.
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    if not validate_certs:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if ca_certificate:
        is_text = "-----BEGIN" in ca_certificate
        try:
            context.load_verify_locations(cadata=ca_certificate) if is_text else context.load_verify_locations(cafile=ca_certificate)
        except (OSError, ValueError) as error:
            what = "the given text is no PEM certificate" if is_text else f"{ca_certificate} can't be read as a PEM certificate"
            raise RegistryFleetError(f"ca_certificate: {what} ({error}). Give a certificate with its BEGIN and END lines, or its file.") from None
    return context


@contextmanager
def _errors_of(url: str, late: str) -> Iterator[None]:
    """What goes wrong below HTTP, as a RegistryError that says what to look at; ``late`` says what took too long."""
    def error(why: str, remedy: str, temporary: bool = True) -> RegistryError:
        return RegistryError(url, why, remedy, temporary=temporary)

    try:
        yield
    except socket.timeout:
        raise error(late, "Check that it is up, that no firewall drops packets to it, and what its journal says.") from None
    except ssl.SSLCertVerificationError as fault:
        remedy = "Pass the authority that signed it as ca_certificate, and use a name that stands in it."
        raise error(f"its certificate is not trusted: {fault.verify_message}", remedy, temporary=False) from None
    except ssl.SSLError as fault:
        raise error(f"TLS failed: {fault.reason or fault}", "If it speaks plain HTTP, the URL begins with http://.") from None
    except socket.gaierror as fault:
        raise error(f"its name has no address: {fault.strerror}", "Check the name and this host's resolver.") from None
    except ConnectionRefusedError:
        raise error("connection refused", "Start what should listen there, or correct host and port.") from None
    except (ConnectionError, http.client.RemoteDisconnected, http.client.IncompleteRead):
        raise error("the connection broke off", _JOURNAL) from None
    except http.client.InvalidURL:
        raise error("the URL holds characters that no URL may hold", "Correct it.", temporary=False) from None
    except http.client.HTTPException as fault:
        raise error(f"the answer is not HTTP ({type(fault).__name__})", "Check scheme and port of the URL.", temporary=False) from None
    except UnicodeError:
        raise error("the URL or the credentials hold characters that HTTP can't carry", "Correct them.", temporary=False) from None
    except OSError as fault:
        raise error(f"{fault.strerror or fault}", "Check this host's way to it.") from None


def in_quotes(body: bytes, *secrets: str) -> str:
    """What the answer says, short enough for an error message: the registry's own errors, else its text without markup.

    A registry that repeats what it was sent must not bring a secret into a log.
    """
    text = body.decode("utf-8", "replace")
    try:
        text = "; ".join(f"{error.get('message') or ''} ({error['code']})".strip() for error in json.loads(text)["errors"])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        text = re.sub(r"(?is)<(script|style).*?</\1>|<[^>]*>", " ", text)
    for secret in filter(None, secrets):
        text = text.replace(secret, "***")
    text = " ".join(re.sub(r"[\x00-\x1f\x7f-\x9f]", " ", text).split())
    return f'"{text[:300]}{"…" if len(text) > 300 else ""}"' if text else ""
