# Copyright (c) 2026, mirrorfleet contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0
"""A client for registries, on http.client: the collection's one way to speak HTTP.

Protocol: github.com/opencontainers/distribution-spec (spec.md). Authentication: RFC 7235, RFC 7617 and
github.com/distribution/distribution docs/content/spec/auth/token.md.
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
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Callable, Iterator, Mapping, Tuple, TypeVar
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
from ansible_collections.mirrorfleet.registry.plugins.module_utils.image_reference import is_digest

Origin = Tuple[str, str, int]  # scheme, host, port
Sink = Callable[[bytes], object]
T = TypeVar("T")

_CHUNK = 256 * 1024
_MAX_ERROR_BYTES = 16 * 1024
_MAX_TOKEN_BYTES = 1024 * 1024
_MAX_REDIRECTS = 5
_LONGEST_PAUSE = 8.0
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
    """A request that failed. ``status`` is None when there was no answer; ``temporary``: it may succeed when repeated."""

    def __init__(self, url: str, why: str, remedy: str = "", status: int | None = None, temporary: bool = False) -> None:
        super().__init__(url, why)
        self.url, self.why, self.remedy = public_url(url), why.rstrip("."), remedy
        self.status, self.temporary, self.attempts = status, temporary, 1

    def __str__(self) -> str:
        tried = f" (tried {self.attempts} times)" if self.attempts > 1 else ""
        return f"GET {self.url}: {self.why}{tried}." + (f" {self.remedy}" if self.remedy else "")


@dataclass(frozen=True)
class Transfer:
    """What came for one blob or manifest; ``seconds`` and ``seconds_to_first_byte`` count from the request that brought it.

    ``cached``: whether a cache had it stored; None when the answer does not say (RFC 9211, Cache-Status).
    """

    digest: str
    bytes: int
    seconds: float
    seconds_to_first_byte: float
    cached: bool | None = None


class Answer:
    """An answer whose body is read as it comes. Reading raises RegistryError."""

    def __init__(self, url: str, timeout: float, response: http.client.HTTPResponse) -> None:
        self.url, self.status, self.headers = url, response.status, response.headers
        self.received = 0
        self._timeout, self._response, self._length = timeout, response, response.length

    def chunk(self) -> bytes:
        """What has come, 256 KiB at most; nothing at the end of a whole body."""
        left = _CHUNK if self._length is None else min(_CHUNK, self._length - self.received)
        if not left:
            # Before Python 3.12 read1 would wait for more here. Closed with nothing left, the connection serves again.
            self._response.close()
            return b""
        with _errors_of(self.url, f"nothing came for {self._timeout:g} seconds"):
            chunk = self._response.read1(left)
        self.received += len(chunk)
        # http.client ends a body that breaks off as it ends a whole one.
        if not chunk and self._length is not None:
            why = f"the connection broke off after {self.received} of {self._length} bytes"
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


class HttpClient:
    """GET over kept-alive connections to any number of origins, from any number of threads.

    ``ca_certificate`` is PEM text or a file's path; it is trusted beside the system's authorities, as in Docker's certs.d.
    ``timeout`` bounds each wait for the other side, not a whole transfer; all times are seconds. Raises RegistryError.
    ``address`` is where to connect, whatever the URL's host; Host header and certificate stay the URL's.
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
    def get(self, url: str, headers: Mapping[str, str]) -> Iterator[Answer]:
        """The answer, whatever its status. The connection is kept if all of the body was read."""
        origin = _origin(url)
        parts = urlsplit(url)
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        connection, response = self._request(url, origin, target, headers)
        try:
            yield Answer(url, self._timeout, response)
        finally:
            # After the last byte http.client closes the response itself, and the connection too if it can't be kept.
            if response.isclosed() and connection.sock is not None:
                with self._lock:
                    self._idle.setdefault(origin, []).append(connection)
            else:
                response.close()
                connection.close()

    def _request(self, url: str, origin: Origin, target: str, headers: Mapping[str, str]) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        late = f"no answer within {self._timeout:g} seconds"
        with self._lock:
            idle = self._idle.get(origin)
            kept = idle.pop() if idle else None
        if kept is not None:
            # The other side may have closed an idle connection, which is no fault; so a new one is tried at once.
            with _errors_of(url, late):
                try:
                    return kept, _send(kept, target, headers)
                except (ConnectionError, http.client.BadStatusLine):
                    pass
        with _errors_of(url, f"no connection within {self._connect_timeout:g} seconds"):
            connection = self._connect(origin)
        with _errors_of(url, late):
            return connection, _send(connection, target, headers)

    def _connect(self, origin: Origin) -> http.client.HTTPConnection:
        scheme, host, port = origin
        connection = (
            http.client.HTTPSConnection(host, port, timeout=self._connect_timeout, context=self._tls)
            if scheme == "https"
            else http.client.HTTPConnection(host, port, timeout=self._connect_timeout)
        )
        if self._address:
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


class RegistryClient:
    """One registry, at ``url``: ``https://host[:port]``, with a path if its ``/v2/`` is below one.

    Credentials are sent only when the registry asks for them, and never to where it redirects. A GET that met a broken
    connection, a time-out, 429 or 5xx is tried ``retries`` times more. Every method is safe to call from several threads and
    raises RegistryError.
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
        self._http = HttpClient(ca_certificate, validate_certs, connect_timeout, timeout, address)

    def __enter__(self) -> RegistryClient:
        return self

    def __exit__(self, *_unused: object) -> None:
        self._http.close()

    def manifest(self, repository: str, target: str) -> tuple[Manifest, Transfer]:
        """The manifest of a tag or digest, its digest verified."""
        return self._retrying(lambda: self._manifest(repository, target))

    def blob(self, repository: str, blob: Descriptor, sink: Sink | None = None) -> Transfer:
        """Stream a blob into ``sink`` in chunks, and verify size and digest; a retry starts at its first byte again."""
        return self._retrying(lambda: self._blob(repository, blob, sink))

    def _manifest(self, repository: str, target: str) -> tuple[Manifest, Transfer]:
        url = f"{self.url}/v2/{repository}/manifests/{target}"
        began = time.monotonic()
        with self._get(repository, url, {"Accept": ", ".join(MEDIA_TYPES)}) as answer:
            first = time.monotonic()
            body = answer.read(MAX_MANIFEST_BYTES)
            content_type = answer.headers.get("Content-Type", "")
            claimed = answer.headers.get("Docker-Content-Digest", "")
        if len(body) > MAX_MANIFEST_BYTES:
            raise RegistryError(url, f"the answer is longer than a manifest can be ({MAX_MANIFEST_BYTES} bytes)", _NO_REGISTRY, 200)
        try:
            manifest = parse_manifest(body, content_type)
        except ManifestError as error:
            why = f"the answer is no manifest, {error}: it is {content_type or 'of no type'} and says {_quote(body) or 'nothing'}"
            raise RegistryError(url, why, _NO_REGISTRY, 200) from None
        wanted = target if is_digest(target) else claimed if is_digest(claimed) else ""
        algorithm = wanted.partition(":")[0] or "sha256"
        digest = f"{algorithm}:{hashlib.new(algorithm, body).hexdigest()}"
        if wanted and digest != wanted:
            raise RegistryError(url, f"the manifest has the digest {digest} instead of {wanted}", _WRONG_BYTES, 200)
        return manifest, Transfer(digest, len(body), time.monotonic() - began, first - began)

    def _blob(self, repository: str, blob: Descriptor, sink: Sink | None) -> Transfer:
        url = f"{self.url}/v2/{repository}/blobs/{blob.digest}"
        began, first = time.monotonic(), 0.0
        running = hashlib.new(blob.digest.partition(":")[0])
        with self._get(repository, url, {}) as answer:
            is_page = answer.headers.get("Content-Type", "").startswith("text/")
            cache_status = answer.headers.get("Cache-Status")
            while True:
                chunk = answer.chunk()
                first = first or time.monotonic()
                running.update(chunk)
                if not chunk or answer.received > blob.size:
                    break
                if sink:
                    sink(chunk)
        if answer.received != blob.size:
            size = "more" if answer.received > blob.size else f"{answer.received}"
            why = f"the body has {size} bytes, where the manifest says {blob.size}"
        elif running.hexdigest() != blob.digest.partition(":")[2]:
            why = f"the body has the digest {running.name}:{running.hexdigest()}"
        else:
            cached = None if cache_status is None else bool(re.search(r";\s*hit\b", cache_status))
            return Transfer(blob.digest, answer.received, time.monotonic() - began, first - began, cached)
        raise RegistryError(url, why, _NO_REGISTRY if is_page else _WRONG_BYTES, 200)

    def _retrying(self, fetch: Callable[[], T]) -> T:
        attempt = 0
        while True:
            try:
                return fetch()
            except RegistryError as error:
                attempt += 1
                error.attempts = attempt
                if not error.temporary or attempt > self._retries:
                    raise
            # Jitter: a mirror that comes back must not meet all its docker hosts in one moment.
            time.sleep(min(_LONGEST_PAUSE, 0.25 * 2**attempt) * random.uniform(0.5, 1.0))

    @contextmanager
    def _get(self, repository: str, url: str, headers: Mapping[str, str]) -> Iterator[Answer]:
        """A 200, after authentication and redirects."""
        where, redirects, asked = url, 0, False
        while True:
            sent = {**headers, "User-Agent": "mirrorfleet.registry"}
            at_home = _origin(where) == self._origin
            if at_home and repository in self._authorization:
                sent["Authorization"] = self._authorization[repository]
            with self._http.get(where, sent) as answer:
                if answer.status == 200:
                    yield answer
                    return
                location = answer.headers.get("Location", "")
                challenges = answer.headers.get_all("WWW-Authenticate") or []
                body = answer.read(_MAX_ERROR_BYTES)
            if answer.status in _REDIRECTS and location and redirects < _MAX_REDIRECTS:
                where, redirects = _join(where, location), redirects + 1
            elif answer.status == 401 and challenges and at_home and not asked:
                self._authorization[repository], asked = self._authorize(where, ", ".join(challenges), repository), True
            else:
                raise self._failure(where, answer.status, body)

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
        parameters.setdefault("scope", f"repository:{repository}:pull")
        where = f"{realm}{'&' if '?' in realm else '?'}{urlencode(parameters)}"
        with self._http.get(where, {"Authorization": self._basic} if self._basic else {}) as answer:
            body = answer.read(_MAX_TOKEN_BYTES)
        if answer.status != 200:
            raise self._failure(where, answer.status, body)
        try:
            document = json.loads(body)
            token = document.get("token") or document.get("access_token")
        except (ValueError, AttributeError, RecursionError):
            token = None
        if not isinstance(token, str) or not re.fullmatch(r"[\x21-\x7e]+", token):
            raise RegistryError(where, "the answer holds no token", "Check the realm in the registry's configuration.", 200)
        return token

    def _failure(self, url: str, status: int, body: bytes) -> RegistryError:
        said = _quote(body)
        # A registry that repeats what it was sent must not bring a secret into a log.
        for secret in (self._password, self._basic[len("Basic "):], *(value.partition(" ")[2] for value in self._authorization.values())):
            said = said.replace(secret, "***") if secret else said
        why = f"{status} {http.client.responses.get(status, '')}".strip() + (f", and says {said}" if said else "")
        if status == 401:
            remedy = "The given username and password were refused; correct them." if self._basic else "Set username and password."
        else:
            remedy = _REMEDIES.get(status, "It or its way to the upstream is broken; look at its journal." if status >= 500 else "")
        return RegistryError(url, why, remedy, status, status in _TEMPORARY)


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


def _send(connection: http.client.HTTPConnection, target: str, headers: Mapping[str, str]) -> http.client.HTTPResponse:
    try:
        connection.request("GET", target, headers=dict(headers))
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


def _quote(body: bytes) -> str:
    """What the answer says, short enough for an error message: the registry's own errors, else its text without markup."""
    text = body.decode("utf-8", "replace")
    try:
        text = "; ".join(f"{error.get('message') or ''} ({error['code']})".strip() for error in json.loads(text)["errors"])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        text = re.sub(r"(?is)<(script|style).*?</\1>|<[^>]*>", " ", text)
    text = " ".join(re.sub(r"[\x00-\x1f\x7f-\x9f]", " ", text).split())
    return f'"{text[:300]}{"…" if len(text) > 300 else ""}"' if text else ""
