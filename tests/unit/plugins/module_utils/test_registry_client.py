# Copyright (c) 2026, mirrorfleet contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import base64
import hashlib
import json
import os
import socket
import time
import tracemalloc
from pathlib import Path
from typing import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.mirrorfleet.registry.plugins.module_utils.errors import RegistryFleetError
from ansible_collections.mirrorfleet.registry.plugins.module_utils.image_manifest import Descriptor
from ansible_collections.mirrorfleet.registry.plugins.module_utils.registry_client import (
    RegistryClient,
    RegistryError,
    parse_challenges,
    public_url,
)
from ansible_collections.mirrorfleet.registry.tests.unit.conftest import (
    Answers,
    Authority,
    Image,
    Registry,
    Server,
    StartRegistry,
    answer,
    answers_of,
    digest_of,
    free_port,
    image_of,
    layer_of,
)

Serve = Callable[[Answers], Server]

PASSWORD = "s3cret-p4ss"
# Of PASSWORD for the user `reader`; distribution takes bcrypt only.
HTPASSWD = "reader:$2b$04$aoFnkG06xa8scMfsHaxf6.5elNsb6YlEIvmpsG3GoShTKWeREJLri\n"
LAYER = layer_of({"app": os.urandom(700_000)})
IMAGE = image_of(LAYER)
DESCRIPTOR = Descriptor(digest_of(LAYER), len(LAYER), "")


def basic(password: str = PASSWORD) -> str:
    return "Basic " + base64.b64encode(f"reader:{password}".encode()).decode()


def failure_of(client: RegistryClient, repository: str = "svc/app", tag: str = "1") -> RegistryError:
    with pytest.raises(RegistryError) as caught:
        client.manifest(repository, tag)
    assert PASSWORD not in str(caught.value) and PASSWORD not in repr(caught.value)
    return caught.value


class TestARealRegistry:
    def test_a_manifest_and_a_blob_arrive_whole(self, registry: Registry) -> None:
        digest = registry.push("svc/app", "1", IMAGE)
        received = bytearray()
        with RegistryClient(registry.url) as client:
            manifest, transfer = client.manifest("svc/app", "1")
            by_digest, _transfer = client.manifest("svc/app", digest)
            blob = client.blob("svc/app", manifest.layers[0], received.extend)
        assert (transfer.digest, transfer.bytes) == (digest, len(IMAGE.manifest))
        assert by_digest == manifest and manifest.layers == (Descriptor(DESCRIPTOR.digest, DESCRIPTOR.size, "application/vnd.oci.image.layer.v1.tar+gzip"),)
        assert received == LAYER and blob.bytes == len(LAYER)
        assert 0 < blob.seconds_to_first_byte <= blob.seconds

    def test_a_docker_schema_2_manifest_is_read(self, registry: Registry) -> None:
        docker = "application/vnd.docker.distribution.manifest.v2+json"
        document = json.loads(IMAGE.manifest)
        document["mediaType"] = docker
        registry.push("svc/app", "1", Image(json.dumps(document).encode(), IMAGE.blobs, docker))
        with RegistryClient(registry.url) as client:
            manifest, _transfer = client.manifest("svc/app", "1")
        assert manifest.media_type == docker and [layer.digest for layer in manifest.layers] == [DESCRIPTOR.digest]

    def test_an_unknown_tag_is_a_404_with_the_registrys_words(self, registry: Registry) -> None:
        registry.push("svc/app", "1", IMAGE)
        with RegistryClient(registry.url) as client:
            error = failure_of(client, tag="2")
        assert error.status == 404
        assert f'GET {registry.url}/v2/svc/app/manifests/2: 404 Not Found, and says "manifest unknown (MANIFEST_UNKNOWN)".' in str(error)

    def test_basic_credentials_are_used_when_asked_for(self, start_registry: StartRegistry, tmp_path: Path) -> None:
        (tmp_path / "htpasswd").write_text(HTPASSWD)
        registry = start_registry(auth={"htpasswd": {"realm": "lab", "path": str(tmp_path / "htpasswd")}}, headers={"Authorization": basic()})
        registry.push("svc/app", "1", IMAGE)
        with RegistryClient(registry.url, username="reader", password=PASSWORD) as client:
            assert client.manifest("svc/app", "1")[1].digest == IMAGE.digest
            assert client.blob("svc/app", DESCRIPTOR).bytes == len(LAYER)
        with RegistryClient(registry.url, username="reader", password="wrong") as client:
            refused = failure_of(client)
        assert refused.status == 401 and "were refused" in str(refused) and "wrong" not in str(refused)
        with RegistryClient(registry.url) as client:
            missing = failure_of(client)
        assert missing.status == 401 and "Set username and password" in str(missing)

    def test_a_bearer_token_is_fetched_once_a_repository(self, start_registry: StartRegistry, serve: Serve, authority: Authority) -> None:
        tokens = serve(lambda path: authority.token(path) if basic() in tokens.requests[-1] else answer(401, b"who are you"))
        registry = start_registry(
            auth={"token": {"realm": f"{tokens.url}/token", "service": "lab", "issuer": "lab", "rootcertbundle": str(authority.certificate)}}
        )
        with RegistryClient(registry.url, username="reader", password=PASSWORD, retries=0) as client:
            granted = authority.token("/?scope=repository:svc/app:pull,push").partition(b"\r\n\r\n")[2]
            registry.headers = {"Authorization": f"Bearer {json.loads(granted)['token']}"}
            registry.push("svc/app", "1", IMAGE)
            assert client.manifest("svc/app", "1")[1].digest == IMAGE.digest
            assert client.blob("svc/app", DESCRIPTOR).bytes == len(LAYER)
            assert len(tokens.requests) == 1
            assert failure_of(client, repository="svc/other").status == 404
            assert len(tokens.requests) == 2
        with RegistryClient(registry.url, username="reader", password="wrong", retries=0) as client:
            refused = failure_of(client)
        assert refused.status == 401 and f"GET {tokens.url}/token" in str(refused) and "who are you" in str(refused)

    def test_tls_is_verified_with_the_given_authority(self, start_registry: StartRegistry, registry: Registry, authority: Authority) -> None:
        secure = start_registry(tls={"certificate": str(authority.server_certificate), "key": str(authority.server_key)})
        for given_as in (authority.certificate.read_text(), str(authority.certificate)):
            with RegistryClient(secure.url, ca_certificate=given_as, retries=0) as client:
                assert failure_of(client).status == 404
        with RegistryClient(secure.url, validate_certs=False, retries=0) as client:
            assert failure_of(client).status == 404
        with RegistryClient(secure.url) as client:
            untrusted = failure_of(client)
        assert "certificate is not trusted" in str(untrusted) and "ca_certificate" in str(untrusted) and untrusted.attempts == 1
        with RegistryClient(secure.url.replace("https", "http"), retries=0) as client:
            assert "Check scheme" in str(failure_of(client))
        with RegistryClient(registry.url.replace("http", "https"), retries=0) as client:
            assert "TLS failed" in str(failure_of(client))


class TestConnections:
    def test_they_are_kept(self, serve: Serve) -> None:
        server = serve(lambda path: answers_of(IMAGE)[path])
        with RegistryClient(server.url) as client:
            for _time in range(3):
                client.manifest("svc/app", "1")
                client.blob("svc/app", DESCRIPTOR)
        assert (len(server.requests), server.connections) == (6, 1)

    def test_one_that_the_registry_closed_while_idle_is_no_fault(self, serve: Serve) -> None:
        # Bytes in a list end with their connection, which the answer does not announce.
        server = serve(lambda path: [answers_of(IMAGE)[path]])
        with RegistryClient(server.url, retries=0) as client:
            for _time in range(3):
                client.manifest("svc/app", "1")
                time.sleep(0.05)
        assert server.connections == 3

    def test_a_blob_is_never_in_memory(self, serve: Serve) -> None:
        chunk, chunks = bytes(1024 * 1024), 48
        whole = hashlib.sha256()
        for _chunk in range(chunks):
            whole.update(chunk)
        size = chunks * len(chunk)

        def answers(_path: str) -> Iterator[bytes]:
            yield f"HTTP/1.1 200 OK\r\nContent-Length: {size}\r\n\r\n".encode()
            for _chunk in range(chunks):
                yield chunk

        server = serve(answers)
        with RegistryClient(server.url) as client:
            tracemalloc.start()
            client.blob("svc/app", Descriptor(f"sha256:{whole.hexdigest()}", size, ""))
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        assert peak < 2 * 1024 * 1024


class TestFaults:
    @pytest.mark.parametrize(("wrong", "says"), [
        (b"X" + LAYER[1:], "the body has the digest sha256:"),
        (LAYER[:-1], f"the body has {len(LAYER) - 1} bytes, where the manifest says {len(LAYER)}"),
        (LAYER + b"X", f"the body has more bytes, where the manifest says {len(LAYER)}"),
        (b"", "the body has 0 bytes"),
    ])
    def test_a_wrong_blob_is_refused_at_once(self, serve: Serve, wrong: bytes, says: str) -> None:
        server = serve(lambda _path: answer(200, wrong))
        with RegistryClient(server.url) as client, pytest.raises(RegistryError, match=says) as caught:
            client.blob("svc/app", DESCRIPTOR)
        assert "Bytes were changed" in str(caught.value) and len(server.requests) == 1

    def test_an_endless_body_is_left(self, serve: Serve) -> None:
        def answers(_path: str) -> Iterator[bytes]:
            yield b"HTTP/1.1 200 OK\r\n\r\n"
            while True:
                yield bytes(65536)

        server = serve(answers)
        with RegistryClient(server.url) as client:
            with pytest.raises(RegistryError, match="more bytes"):
                client.blob("svc/app", DESCRIPTOR)
            assert "longer than a manifest" in str(failure_of(client))

    @pytest.mark.parametrize("head", [f"Content-Length: {len(LAYER)}", "Transfer-Encoding: chunked"])
    def test_a_body_that_breaks_off_is_fetched_again(self, serve: Serve, head: str) -> None:
        half = LAYER[: len(LAYER) // 2]
        broken = f"HTTP/1.1 200 OK\r\n{head}\r\n\r\n".encode() + (f"{len(LAYER):x}\r\n".encode() if "chunked" in head else b"") + half
        server = serve(lambda _path: [broken] if len(server.requests) == 1 else answer(200, LAYER))
        with RegistryClient(server.url, retries=1) as client:
            assert client.blob("svc/app", DESCRIPTOR).bytes == len(LAYER)
        assert len(server.requests) == 2
        always = serve(lambda _path: [broken])
        with RegistryClient(always.url, retries=0) as client, pytest.raises(RegistryError, match="the connection broke off"):
            client.blob("svc/app", DESCRIPTOR)

    def test_a_manifest_of_another_digest_is_refused(self, serve: Serve) -> None:
        other = image_of(layer_of({"other": b""}))
        server = serve(lambda _path: answer(200, other.manifest, Content_Type=other.media_type, Docker_Content_Digest=IMAGE.digest))
        with RegistryClient(server.url) as client:
            for target in ("1", IMAGE.digest):
                assert f"has the digest {other.digest} instead of {IMAGE.digest}" in str(failure_of(client, tag=target))

    def test_a_page_is_no_manifest(self, serve: Serve) -> None:
        page = b"<html><head><style>p {}</style></head><body><h1>Portal</h1>\n<p>Sign in</p></body></html>"
        server = serve(lambda _path: answer(200, page, Content_Type="text/html; charset=utf-8"))
        with RegistryClient(server.url) as client:
            error = failure_of(client)
        assert 'text/html; charset=utf-8 and says "Portal Sign in"' in str(error) and "Something other than a registry" in str(error)

    @pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
    def test_a_passing_fault_is_tried_again(self, serve: Serve, status: int) -> None:
        server = serve(lambda path: answer(status, b"busy") if len(server.requests) == 1 else answers_of(IMAGE)[path])
        with RegistryClient(server.url, retries=1) as client:
            client.manifest("svc/app", "1")
        assert len(server.requests) == 2

    def test_a_lasting_fault_is_told_with_the_tries(self, serve: Serve) -> None:
        server = serve(lambda _path: answer(503, b'{"errors": [{"code": "UNAVAILABLE", "message": "no server"}]}'))
        with RegistryClient(server.url, retries=1) as client:
            error = failure_of(client)
        assert '503 Service Unavailable, and says "no server (UNAVAILABLE)" (tried 2 times)' in str(error)

    @pytest.mark.parametrize("status", [400, 403, 404, 418])
    def test_a_refusal_is_not_tried_again(self, serve: Serve, status: int) -> None:
        server = serve(lambda _path: answer(status, b"no"))
        with RegistryClient(server.url) as client:
            error = failure_of(client)
        assert error.status == status and 'says "no"' in str(error) and len(server.requests) == 1

    def test_silence_ends_after_the_timeout(self, serve: Serve) -> None:
        def stalls() -> Iterator[bytes]:
            yield f"HTTP/1.1 200 OK\r\nContent-Length: {len(LAYER)}\r\n\r\n".encode() + LAYER[:9]
            time.sleep(2)

        server = serve(lambda path: None if "manifests" in path else stalls())
        began = time.monotonic()
        with RegistryClient(server.url, timeout=0.5, retries=0) as client:
            assert "no answer within 0.5 seconds" in str(failure_of(client))
            with pytest.raises(RegistryError, match=r"nothing came for 0\.5 seconds"):
                client.blob("svc/app", DESCRIPTOR)
        assert time.monotonic() - began < 5

    def test_no_connection_is_told_by_its_cause(self) -> None:
        with RegistryClient(f"http://127.0.0.1:{free_port()}", retries=0) as client:
            assert "connection refused" in str(failure_of(client))
        with RegistryClient("http://registry.invalid", retries=0) as client:
            assert "its name has no address" in str(failure_of(client))
        # A listener whose queue is full drops what comes, as a firewall does.
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            listener.listen(0)
            address = listener.getsockname()
            waiting = [socket.socket() for _number in range(4)]
            for one in waiting:
                one.setblocking(False)
                one.connect_ex(address)
            with RegistryClient(f"http://127.0.0.1:{address[1]}", connect_timeout=0.3, timeout=30, retries=0) as client:
                assert "no connection within 0.3 seconds" in str(failure_of(client))
            for one in waiting:
                one.close()

    def test_what_is_not_http_is_told(self, serve: Serve) -> None:
        server = serve(lambda _path: [b"SSH-2.0-OpenSSH_9.2\r\n"])
        with RegistryClient(server.url, retries=0) as client:
            assert "the answer is not HTTP" in str(failure_of(client))

    @pytest.mark.parametrize(("url", "says"), [
        ("mirror:5000", "no URL of a registry"),
        ("ftp://mirror", "no URL of a registry"),
        ("https://mirror:port", "no URL"),
        ("https://[::1", "no URL"),
        (f"https://reader:{PASSWORD}@mirror", "in the URL"),
        (f"https://mirror?token={PASSWORD}", "in the URL"),
    ])
    def test_a_bad_url_is_refused(self, url: str, says: str) -> None:
        with pytest.raises(RegistryError, match=says) as caught:
            RegistryClient(url)
        assert PASSWORD not in str(caught.value)

    def test_a_bad_authority_is_refused(self, tmp_path: Path) -> None:
        for given_as in ("-----BEGIN CERTIFICATE-----\nnothing\n-----END CERTIFICATE-----\n", str(tmp_path / "absent.crt")):
            with pytest.raises(RegistryFleetError, match="ca_certificate"):
                RegistryClient("https://mirror", ca_certificate=given_as)


class TestCredentials:
    def test_they_do_not_follow_a_redirect_elsewhere(self, serve: Serve) -> None:
        storage = serve(lambda _path: answer(200, LAYER))

        def answers(path: str) -> bytes:
            if basic() not in registry.requests[-1]:
                return answer(401, WWW_Authenticate='Basic realm="lab"')
            return answer(307, Location=f"{storage.url}/object?X-Signature={PASSWORD}") if path.startswith("/v2/") else answer(200, LAYER)

        registry = serve(answers)
        with RegistryClient(registry.url, username="reader", password=PASSWORD) as client:
            assert client.blob("svc/app", DESCRIPTOR).bytes == len(LAYER)
        assert "Authorization" not in storage.requests[0]
        storage.answers = lambda _path: answer(401, b"sign in", WWW_Authenticate=f'Bearer realm="{storage.url}/token"')
        with RegistryClient(registry.url, username="reader", password=PASSWORD) as client, pytest.raises(RegistryError) as caught:
            client.blob("svc/app", DESCRIPTOR)
        assert "401" in str(caught.value) and PASSWORD not in str(caught.value)
        assert not any("Authorization" in head for head in storage.requests)

    def test_a_redirect_at_home_keeps_them_and_a_circle_ends(self, serve: Serve) -> None:
        def answers(path: str) -> bytes:
            if basic() not in server.requests[-1]:
                return answer(401, WWW_Authenticate='Basic realm="lab"')
            return answer(307, Location="/moved") if path.startswith("/v2/") else answer(200, LAYER)

        server = serve(answers)
        with RegistryClient(server.url, username="reader", password=PASSWORD) as client:
            assert client.blob("svc/app", DESCRIPTOR).bytes == len(LAYER)
            server.answers = lambda path: answer(302, Location=path)
            assert "302 Found" in str(failure_of(client))

    def test_what_the_registry_repeats_of_them_is_not_shown(self, serve: Serve) -> None:
        server = serve(lambda _path: answer(401, f"bad {basic()} {PASSWORD}".encode(), WWW_Authenticate="Basic"))
        with RegistryClient(server.url, username="reader", password=PASSWORD) as client:
            error = failure_of(client)
        assert "bad Basic *** ***" in str(error)

    def test_an_expired_token_is_fetched_anew(self, serve: Serve) -> None:
        tokens = serve(lambda _path: answer(200, json.dumps({"access_token": f"token{len(tokens.requests)}"}).encode()))
        challenge = answer(401, WWW_Authenticate=f'Bearer realm="{tokens.url}/t?a=b",service="x",scope="repository:svc/app:pull"')
        valid = ["token1"]
        server = serve(lambda path: answers_of(IMAGE)[path] if f"Authorization: Bearer {valid[0]}" in server.requests[-1] else challenge)
        with RegistryClient(server.url) as client:
            client.manifest("svc/app", "1")
            valid[0] = "token2"
            client.manifest("svc/app", "1")
            valid[0] = "none"
            assert failure_of(client).status == 401
        assert tokens.requests[0].startswith("GET /t?a=b&service=x&scope=repository%3Asvc%2Fapp%3Apull ")

    @pytest.mark.parametrize("said", [b"", b"[]", b'{"token": 1}', b'{"token": "a\\nb"}'])
    def test_an_answer_without_a_token_is_told(self, serve: Serve, said: bytes) -> None:
        tokens = serve(lambda _path: answer(200, said))
        server = serve(lambda _path: answer(401, WWW_Authenticate=f'Bearer realm="{tokens.url}"'))
        with RegistryClient(server.url) as client:
            assert "holds no token" in str(failure_of(client))

    def test_an_unknown_scheme_is_told(self, serve: Serve) -> None:
        server = serve(lambda _path: answer(401, WWW_Authenticate="Negotiate"))
        with RegistryClient(server.url, username="reader", password=PASSWORD) as client:
            assert "it offers negotiate" in str(failure_of(client))

    def test_tls_does_not_lead_to_a_plain_realm(self, start_registry: StartRegistry, serve: Serve, authority: Authority) -> None:
        tokens = serve(authority.token)
        registry = start_registry(
            tls={"certificate": str(authority.server_certificate), "key": str(authority.server_key)},
            auth={"token": {"realm": f"{tokens.url}/token", "service": "lab", "issuer": "lab", "rootcertbundle": str(authority.certificate)}},
        )
        with RegistryClient(registry.url, username="reader", password=PASSWORD, ca_certificate=str(authority.certificate), retries=0) as client:
            assert "does not get the credentials" in str(failure_of(client))
        assert not tokens.requests


token_text = st.from_regex(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", fullmatch=True)
challenges = st.dictionaries(
    token_text.map(str.lower), st.dictionaries(token_text.map(str.lower), st.text(st.characters(min_codepoint=32, max_codepoint=126))), min_size=1, max_size=3
)


@given(challenges)
def test_any_challenge_is_parsed(offered: dict[str, dict[str, str]]) -> None:
    def quoted(value: str) -> str:
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'

    header = ", ".join(f"{scheme} " + ", ".join(f"{name}={quoted(value)}" for name, value in found.items()) for scheme, found in offered.items())
    assert parse_challenges(header) == offered


@given(st.text())
def test_no_header_breaks_the_parser(header: str) -> None:
    parse_challenges(header)


@given(st.text(), st.text(min_size=1))
def test_no_query_and_no_user_is_shown(before: str, after: str) -> None:
    secret = "s3cret"
    assert secret not in public_url(f"https://reader:{secret}@mirror/v2/")
    assert secret not in public_url(f"https://mirror/{before}?{after}{secret}")
