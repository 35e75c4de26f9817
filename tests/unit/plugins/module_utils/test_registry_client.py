# Copyright (c) 2026, mirrorfleet contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import base64
import gzip
import hashlib
import http.client
import json
import os
import re
import socket
import time
import tracemalloc
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime
from pathlib import Path
from typing import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.mirrorfleet.registry.plugins.module_utils import registry_client
from ansible_collections.mirrorfleet.registry.plugins.module_utils.errors import RegistryFleetError
from ansible_collections.mirrorfleet.registry.plugins.module_utils.image_manifest import Descriptor
from ansible_collections.mirrorfleet.registry.plugins.module_utils.registry_client import (
    RegistryClient,
    RegistryError,
    next_link,
    parse_challenges,
    parse_content_range,
    parse_retry_after,
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
    index_of,
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

    def test_a_manifest_is_put_under_a_tag_as_it_is(self, start_registry: StartRegistry, serve: Serve, authority: Authority) -> None:
        tokens = serve(authority.token)
        registry = start_registry(
            auth={"token": {"realm": f"{tokens.url}/token", "service": "lab", "issuer": "lab", "rootcertbundle": str(authority.certificate)}}
        )
        granted = authority.token("/?scope=repository:svc/app:pull,push").partition(b"\r\n\r\n")[2]
        registry.headers = {"Authorization": f"Bearer {json.loads(granted)['token']}"}
        registry.push("svc/app", "1", IMAGE)
        with RegistryClient(registry.url, username="reader", password=PASSWORD, retries=0) as client:
            manifest, body = client.manifest_body("svc/app", "1")
            assert body == IMAGE.manifest and manifest == client.manifest("svc/app", "1")[0]
            # A token that only lets pull is not enough.
            client.put_manifest("svc/app", "2", body, manifest.media_type)
            client.put_manifest("svc/app", IMAGE.digest, body, manifest.media_type)
            assert client.manifest_body("svc/app", "2") == (manifest, body)
            with pytest.raises(RegistryError) as refused:
                client.put_manifest("svc/app", "3", body.replace(DESCRIPTOR.digest.encode(), b"sha256:" + b"0" * 64), manifest.media_type)
            assert client.head_manifest("svc/app", "3") is None
        assert str(refused.value).startswith(f"PUT {registry.url}/v2/svc/app/manifests/3: 400") and "blob unknown" in str(refused.value)

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

    def test_a_head_tells_without_a_body(self, registry: Registry) -> None:
        digest = registry.push("svc/app", "1", IMAGE)
        with RegistryClient(registry.url) as client:
            for target in ("1", digest):
                assert client.head_manifest("svc/app", target) == Descriptor(digest, len(IMAGE.manifest), IMAGE.media_type)
            assert client.head_manifest("svc/app", "2") is None
            assert client.head_blob("svc/app", DESCRIPTOR.digest) and not client.head_blob("svc/app", digest_of(b"absent"))

    def test_lists_come_page_by_page(self, registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
        names = [f"svc/{number}" for number in range(7)]
        for name in names:
            registry.push(name, "1", IMAGE)
        registry.push("svc/0", "latest", IMAGE)
        monkeypatch.setattr(registry_client, "_PAGE", 3)
        with RegistryClient(registry.url) as client:
            assert list(client.repositories()) == names
            assert sorted(client.tags("svc/0")) == ["1", "latest"]
            with pytest.raises(RegistryError, match="404 Not Found"):
                list(client.tags("svc/absent"))

    def test_what_cosign_attached_is_found_by_its_tags(self, registry: Registry) -> None:
        digest = registry.push("svc/app", "1", IMAGE)
        with RegistryClient(registry.url) as client:
            assert client.cosign("svc/app", digest) == {} and client.referrers("svc/app", digest) == ()
            signature, sbom = image_of(layer_of({"signature": b"s"})), image_of(layer_of({"sbom": b"b"}))
            for image, suffix in ((signature, "sig"), (sbom, "sbom")):
                registry.push("svc/app", f"{digest.replace(':', '-')}.{suffix}", image)
            found = client.cosign("svc/app", digest)
        assert {kind: item.digest for kind, item in found.items()} == {"signature": signature.digest, "sbom": sbom.digest}

    def test_referrers_are_read_by_their_tag(self, registry: Registry) -> None:
        """Distribution 2.8 has no referrers API."""
        digest = registry.push("svc/app", "1", IMAGE)
        index = json.loads(index_of({"": IMAGE}))
        index["manifests"][0]["artifactType"] = "application/vnd.example.sbom"
        registry.push_manifest("svc/app", digest.replace(":", "-"), json.dumps(index).encode(), index["mediaType"])
        with RegistryClient(registry.url) as client:
            (referrer,) = client.referrers("svc/app", digest)
        assert (referrer.digest, referrer.artifact_type) == (IMAGE.digest, "application/vnd.example.sbom")

    @pytest.mark.parametrize("cuts", [[1], [len(LAYER) - 1], [300_000, 500_000]])
    def test_a_broken_blob_goes_on_where_it_broke(self, registry: Registry, serve: Serve, cuts: list[int]) -> None:
        """On the way to the registry a connection breaks when so much of the blob has passed."""
        registry.push("svc/app", "1", IMAGE)
        left, passed = list(cuts), [0]

        def relay(path: str) -> Iterator[bytes]:
            asked = re.search(r"(?im)^range: (.*?)\r$", server.requests[-1])
            connection = http.client.HTTPConnection("127.0.0.1", registry.port)
            connection.request("GET", path, headers={"Range": asked[1]} if asked else {})
            said = connection.getresponse()
            body = said.read()
            connection.close()
            if left:
                body = body[: left.pop(0) - passed[0]]
            passed[0] += len(body)
            yield f"HTTP/1.1 {said.status} {said.reason}\r\n{said.headers}".replace("\n", "\r\n").replace("\r\r", "\r").encode() + body

        server, received = serve(relay), bytearray()
        with RegistryClient(server.url, retries=len(cuts)) as client:
            transfer = client.blob("svc/app", DESCRIPTOR, received.extend)
        assert received == LAYER and transfer.bytes == len(LAYER)
        assert passed == [len(LAYER)], "no byte came twice"
        assert [re.findall(r"(?im)^range: bytes=(\d+)-\r$", request) for request in server.requests] == [[], *([str(cut)] for cut in cuts)]


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

    @pytest.mark.parametrize("second", [
        answer(200, LAYER),
        answer(206, LAYER[9:], Content_Range=f"bytes 9-{len(LAYER) - 1}/{len(LAYER)}"),
        answer(206, LAYER[9:], Content_Range=f"bytes 9-{len(LAYER) - 1}/*"),
    ])
    def test_the_sink_gets_each_byte_once(self, serve: Serve, second: bytes) -> None:
        server, received = serve(lambda _path: [answer(200, LAYER)[: len(answer(200)) + 5 + 9]] if len(server.requests) == 1 else second), bytearray()
        with RegistryClient(server.url, retries=1) as client:
            assert client.blob("svc/app", DESCRIPTOR, received.extend).bytes == len(LAYER)
        assert received == LAYER and "Range: bytes=9-\r\n" in server.requests[1]

    @pytest.mark.parametrize("second", [
        answer(416, b"no", Content_Range=f"bytes */{len(LAYER)}"),
        answer(206, LAYER[8:], Content_Range=f"bytes 8-{len(LAYER) - 1}/{len(LAYER)}"),
        answer(206, LAYER[9:], Content_Range=f"bytes 9-{len(LAYER) - 1}/{len(LAYER) + 1}"),
        answer(206, LAYER[9:-1], Content_Range=f"bytes 9-{len(LAYER) - 2}/{len(LAYER)}"),
        answer(206, LAYER[9:]),
        answer(206, LAYER[9:], Content_Range="bytes"),
    ])
    def test_another_part_than_asked_for_is_not_taken(self, serve: Serve, second: bytes) -> None:
        """It is asked for as a whole then."""
        answers, received = [[answer(200, LAYER)[: len(answer(200)) + 5 + 9]], second, answer(200, LAYER)], bytearray()
        server = serve(lambda _path: answers[len(server.requests) - 1])
        with RegistryClient(server.url, retries=2) as client:
            assert client.blob("svc/app", DESCRIPTOR, received.extend).bytes == len(LAYER)
        assert received == LAYER and "Range" not in server.requests[2]
        server.requests.clear()
        with RegistryClient(server.url, retries=1) as client, pytest.raises(RegistryError, match="does not send the bytes from 9 on"):
            client.blob("svc/app", DESCRIPTOR)

    def test_parts_of_different_blobs_are_no_blob(self, serve: Serve) -> None:
        wrong = bytes(len(LAYER))
        answers = [[answer(200, wrong)[: -9]], answer(206, LAYER[-9:], Content_Range=f"bytes {len(LAYER) - 9}-{len(LAYER) - 1}/{len(LAYER)}")]
        server = serve(lambda _path: answers[len(server.requests) - 1])
        with RegistryClient(server.url, retries=1) as client, pytest.raises(RegistryError, match="the body has the digest"):
            client.blob("svc/app", DESCRIPTOR)

    def test_a_blob_whose_end_alone_was_lost_is_not_asked_for_again(self, serve: Serve) -> None:
        server = serve(lambda _path: [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + f"{len(LAYER):x}\r\n".encode() + LAYER])
        with RegistryClient(server.url, retries=1) as client:
            assert client.blob("svc/app", DESCRIPTOR).bytes == len(LAYER)
        assert len(server.requests) == 1

    @pytest.mark.parametrize("status", [429, 503])
    @pytest.mark.parametrize("as_date", [False, True])
    def test_retry_after_is_waited_for(self, serve: Serve, status: int, as_date: bool) -> None:
        def answers(path: str) -> bytes:
            if len(server.requests) > 1:
                return answers_of(IMAGE)[path]
            # A date has no parts of a second.
            return answer(status, Retry_After=format_datetime(datetime.now(timezone.utc) + timedelta(seconds=3), usegmt=True) if as_date else "2")

        server = serve(answers)
        began = time.monotonic()
        with RegistryClient(server.url, retries=1) as client:
            client.manifest("svc/app", "1")
        assert len(server.requests) == 2 and time.monotonic() - began > 1.9

    def test_too_long_a_wait_is_told_instead(self, serve: Serve) -> None:
        server = serve(lambda _path: answer(429, Retry_After="3600"))
        began = time.monotonic()
        with RegistryClient(server.url) as client:
            error = failure_of(client)
        assert "429 Too Many Requests, and asks to wait 3600 seconds." in str(error)
        assert (len(server.requests), error.retry_after) == (1, 3600) and time.monotonic() - began < 10

    @pytest.mark.parametrize("said", [
        answer(200, b"<html>Portal</html>", Content_Type="text/html"), answer(200, b"[]"), answer(200, b"{}"), answer(200, b'{"tags": 1, "repositories": 1}'),
        answer(200, b'{"tags": ["../x"], "repositories": ["../x"]}'), answer(200, b'{"tags": [1], "repositories": [1]}'), answer(200, b"[" * 100_000),
        answer(401, WWW_Authenticate="Basic"), answer(403), answer(429, Retry_After="600"), answer(500), answer(200, b'{"tags": []')[:-1],
    ])
    def test_a_list_that_is_none_is_told(self, serve: Serve, said: bytes) -> None:
        server = serve(lambda _path: [said])
        with RegistryClient(server.url, retries=0) as client:
            for names in (client.tags("svc/app"), client.repositories()):
                with pytest.raises(RegistryError):
                    list(names)

    def test_pages_are_found_by_the_query_alone(self, serve: Serve) -> None:
        """Behind a proxy the next page's address is that of another place, and no page leads the credentials away."""
        links = [
            '</v2/svc/app/tags/list?last=a&n=1>; rel="next"', '<http://inside.example:81/other/path?last=b&n=1>; title="a,b"; rel="last next"',
            "<?last=c>;rel=prev",
        ]

        def answers(_path: str) -> bytes:
            number = len(server.requests) - 1
            return answer(200, json.dumps({"tags": ["abc"[number]]}).encode(), Link=links[number])

        server = serve(answers)
        with RegistryClient(f"{server.url}/prefix") as client:
            assert list(client.tags("svc/app")) == ["a", "b", "c"]
        assert [request.split()[1] for request in server.requests] == [
            "/prefix/v2/svc/app/tags/list?n=1000", "/prefix/v2/svc/app/tags/list?last=a&n=1", "/prefix/v2/svc/app/tags/list?last=b&n=1",
        ]

    @pytest.mark.parametrize("link", ["<?n=1000>; rel=next", "<?n=1>; rel=next", "<http://[>; rel=next", "<x>; rel=next"])
    def test_pages_in_a_circle_end(self, serve: Serve, link: str) -> None:
        server = serve(lambda _path: answer(200, b'{"tags": ["a"]}', Link=link))
        with RegistryClient(server.url, retries=0) as client, pytest.raises(RegistryError):
            list(client.tags("svc/app"))
        assert len(server.requests) <= 2

    def test_referrers_come_by_their_api(self, serve: Serve) -> None:
        def answers(path: str) -> bytes:
            document = json.loads(index_of({"": IMAGE}))
            document["manifests"][0].update(artifactType="application/vnd.example", digest=digest_of(path.encode()))
            link = {} if "last" in path else {"Link": "<?last=1>; rel=next"}
            return answer(200, json.dumps(document).encode(), Content_Type=document["mediaType"], **link)

        server = serve(answers)
        with RegistryClient(server.url) as client:
            assert [item.artifact_type for item in client.referrers("svc/app", IMAGE.digest)] == ["application/vnd.example"] * 2
        assert [request.split()[1] for request in server.requests] == [f"/v2/svc/app/referrers/{IMAGE.digest}{query}" for query in ("", "?last=1")]

    @pytest.mark.parametrize(("said", "status"), [
        (answer(401, WWW_Authenticate="Basic"), 401), (answer(403), 403), (answer(429, Retry_After="600"), 429), (answer(500), 500),
        (answer(200, b"<html>", Content_Type="text/html"), 200), (answer(200, b"{}"), 200), (answer(200, IMAGE.manifest)[:-1], None),
    ])
    def test_referrers_that_cannot_be_had_are_told(self, serve: Serve, said: bytes, status: int | None) -> None:
        server = serve(lambda _path: [said])
        with RegistryClient(server.url, retries=0) as client, pytest.raises(RegistryError) as caught:
            client.referrers("svc/app", IMAGE.digest)
        assert status is None or caught.value.status == status

    @pytest.mark.parametrize(("said", "status"), [
        (answer(401, WWW_Authenticate="Basic"), 401), (answer(403), 403), (answer(429, Retry_After="600"), 429), (answer(500), 500),
        (answer(200, Content_Type="text/html"), 200), (answer(504), 504),
    ])
    def test_a_head_that_fails_is_told(self, serve: Serve, said: bytes, status: int) -> None:
        server = serve(lambda _path: said)
        with RegistryClient(server.url, retries=0) as client:
            for ask in (lambda: client.head_manifest("svc/app", "1"), lambda: client.head_blob("svc/app", DESCRIPTOR.digest)):
                with pytest.raises(RegistryError) as caught:
                    ask()
                assert caught.value.status == status and str(caught.value).startswith(f"HEAD {server.url}/v2/svc/app/")

    def test_a_head_without_a_digest_needs_the_manifest(self, serve: Serve) -> None:
        server = serve(lambda path: answer(200, b"" if server.requests[-1].startswith("HEAD") else IMAGE.manifest, Content_Type=IMAGE.media_type))
        with RegistryClient(server.url, retries=0) as client:
            assert client.head_manifest("svc/app", "1") == Descriptor(IMAGE.digest, len(IMAGE.manifest), IMAGE.media_type)
            server.answers = lambda _path: answer(200, Content_Type=IMAGE.media_type, Docker_Content_Digest=IMAGE.digest)
            with pytest.raises(RegistryError, match="the answer is about"):
                client.head_manifest("svc/app", digest_of(b"other"))

    def test_only_what_is_stored_is_asked_for(self, serve: Serve) -> None:
        server = serve(lambda _path: answer(504))
        with RegistryClient(server.url, only_if_cached=True) as client:
            assert client.head_manifest("svc/app", "1") is None and not client.head_blob("svc/app", DESCRIPTOR.digest)
            assert failure_of(client).status == 504
        assert len(server.requests) == 3 and all("Cache-Control: only-if-cached\r\n" in request for request in server.requests)

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
            time.sleep(30)

        server = serve(lambda path: None if "manifests" in path else stalls())
        began = time.monotonic()
        with RegistryClient(server.url, timeout=1.5, retries=0) as client:
            assert "no answer within 1.5 seconds" in str(failure_of(client))
            with pytest.raises(RegistryError, match=r"nothing came for 1\.5 seconds"):
                client.blob("svc/app", DESCRIPTOR)
        assert time.monotonic() - began < 20

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
        # Nor a part of it, where what is said is cut.
        server = serve(lambda _path: answer(401, b"x" * 295 + PASSWORD.encode(), WWW_Authenticate="Basic"))
        with RegistryClient(server.url, username="reader", password=PASSWORD) as client:
            assert PASSWORD[:4] not in str(failure_of(client))

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


TEXT = b"all work and no play makes jack a dull boy\n" * 50_000
TAR = Descriptor(digest_of(TEXT), len(TEXT), "application/vnd.oci.image.layer.v1.tar")
BLOB = f"/v2/svc/app/blobs/{TAR.digest}"


class TestCompressed:
    def test_text_is_unpacked_where_it_was_asked_for(self, serve: Serve) -> None:
        packed = answer(200, gzip.compress(TEXT), Content_Encoding="gzip")
        server = serve(lambda path: packed)
        received = bytearray()
        with RegistryClient(server.url, compressed=True) as client:
            assert client.blob("svc/app", TAR, received.extend).bytes == len(TEXT)
        assert received == TEXT and "Accept-Encoding: gzip" in server.requests[0]

    def test_what_is_compressed_already_is_taken_as_it_is(self, serve: Serve) -> None:
        server = serve(lambda path: answer(200, LAYER))
        with RegistryClient(server.url, compressed=True) as client:
            assert client.blob("svc/app", Descriptor(DESCRIPTOR.digest, DESCRIPTOR.size, "application/vnd.oci.image.layer.v1.tar+gzip")).bytes == len(LAYER)
        assert "Accept-Encoding: identity" in server.requests[0]

    def test_an_unasked_encoding_is_the_blobs_own(self, serve: Serve) -> None:
        packed = gzip.compress(TEXT)
        server = serve(lambda path: answer(200, packed, Content_Encoding="gzip"))
        with RegistryClient(server.url) as client:
            assert client.blob("svc/app", Descriptor(digest_of(packed), len(packed), "")).bytes == len(packed)

    @pytest.mark.parametrize(("body", "why"), [(gzip.compress(TEXT)[:-20], "broke off after"), (b"x" * 500, "can't be unpacked")])
    def test_what_can_not_be_unpacked_is_no_blob(self, serve: Serve, body: bytes, why: str) -> None:
        server = serve(lambda path: answer(200, body, Content_Encoding="gzip"))
        with RegistryClient(server.url, compressed=True, retries=0) as client, pytest.raises(RegistryError, match=why):
            client.blob("svc/app", TAR)

    def test_more_than_the_blob_ends_it(self, serve: Serve) -> None:
        server = serve(lambda path: answer(200, gzip.compress(TEXT * 20), Content_Encoding="gzip"))
        with RegistryClient(server.url, compressed=True, retries=0) as client, pytest.raises(RegistryError, match="more bytes"):
            client.blob("svc/app", TAR)


def test_the_rest_of_a_blob_goes_on_where_another_ended(registry: Registry) -> None:
    registry.push("svc/app", "1", IMAGE)
    received = bytearray()
    with RegistryClient(registry.url) as client:
        client.rest_of_blob("svc/app", DESCRIPTOR, 1000, received.extend)
        client.rest_of_blob("svc/app", DESCRIPTOR, len(LAYER), received.extend)
    assert received == LAYER[1000:]


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


quoted_text = st.text(st.characters(min_codepoint=32, max_codepoint=126, exclude_characters='"\\'))
link_target = st.text(st.characters(min_codepoint=33, max_codepoint=126, exclude_characters="<>"))
link_parameters = st.dictionaries(st.from_regex(r"[a-z]{1,8}", fullmatch=True).filter(lambda name: name != "rel"), quoted_text, max_size=3)


@given(st.lists(st.tuples(link_target, link_parameters, st.sampled_from(["next", "prev", "last first", "prev NEXT"])), max_size=4), st.booleans())
def test_any_next_link_is_found(links: list[tuple[str, dict[str, str], str]], rel_last: bool) -> None:
    def written(target: str, parameters: dict[str, str], rel: str) -> str:
        others = [f'{name}="{value}"' for name, value in parameters.items()]
        return "; ".join([f"<{target}>", *(others if rel_last else []), f'rel="{rel}"', *([] if rel_last else others)])

    wanted = [target for target, _parameters, rel in links if "next" in rel.lower()]
    assert next_link(", ".join(written(*link) for link in links)) == (wanted[0] if wanted else "")


@given(st.integers(0, 10**6), st.integers(0, 10**6), st.integers(1, 10**6) | st.none())
def test_any_content_range_is_parsed(first: int, more: int, beyond: int | None) -> None:
    length = None if beyond is None else first + more + beyond
    assert parse_content_range(f"bytes {first}-{first + more}/{'*' if length is None else length}") == (first, first + more, length)


@pytest.mark.parametrize("value", [
    "", "bytes", "bytes */5", "bytes 5-4/9", "bytes 0-9/9", "bytes 0-1", "items 0-1/2", "bytes -1-2/3", "bytes 0-1/2x",
    "bytes 0-1/\N{ARABIC-INDIC DIGIT THREE}",
])
def test_what_is_no_content_range_is_none(value: str) -> None:
    assert parse_content_range(value) is None


NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone.utc)


@given(st.integers(-(10**6), 10**6))
def test_any_retry_after_is_parsed(seconds: int) -> None:
    then = NOW + timedelta(seconds=seconds)
    # The three forms that RFC 9110, section 5.6.7, wants to be read.
    for date in (format_datetime(then, usegmt=True), then.strftime("%A, %d-%b-%y %H:%M:%S GMT"), then.ctime()):
        assert parse_retry_after(date, NOW) == max(0, seconds)
    assert parse_retry_after(str(abs(seconds)), NOW) == abs(seconds)


@given(st.text())
def test_no_other_header_breaks_its_parser(header: str) -> None:
    next_link(header)
    parse_content_range(header)
    waits = parse_retry_after(header, NOW)
    assert waits is None or waits >= 0
