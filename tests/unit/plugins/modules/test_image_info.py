# Copyright (c) 2026, mirrorfleet contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0
"""What image_info makes of registries that are broken. Between real edges it is in tests/unit/roles/test_images_in_data_centers.py."""

from __future__ import annotations

import json
import os
import time
from typing import Any, Callable

import pytest

from ansible_collections.mirrorfleet.registry.plugins.module_utils.image_info import kind_of
from ansible_collections.mirrorfleet.registry.plugins.modules import image_info
from ansible_collections.mirrorfleet.registry.tests.unit.conftest import (
    Answers,
    Registry,
    RunModule,
    Server,
    answer,
    answers_of,
    image_of,
    index_of,
    layer_of,
)

Serve = Callable[[Answers], Server]

IMAGE = image_of(layer_of({"app": os.urandom(100_000)}))
OTHER = image_of(layer_of({"app": b"other"}))
PASSWORD = "s3cret-p4ss"
STORED = {**answers_of(IMAGE), "/v2/": answer(200, b"{}", Cache_Status="mirror; hit"), "/v2/svc/app/manifests/1": answer(200, IMAGE.digest.encode())}
FAULTS = {
    "401": answer(401, f"no {PASSWORD}".encode(), WWW_Authenticate='Basic realm="lab"'), "403": answer(403, b"no"), "404": answer(404, b"no"),
    "429": answer(429, b"no", Retry_After="1"), "429 for long": answer(429, b"no", Retry_After="999999"), "500": answer(500), "502": answer(502),
    "503": answer(503, Retry_After="Wed, 21 Oct 2015 07:28:00 GMT"), "page": answer(200, b"<html>Portal</html>", Content_Type="text/html"),
    "wrong bytes": answer(200, OTHER.manifest, Content_Type=OTHER.media_type, Docker_Content_Digest=IMAGE.digest), "empty": answer(200),
    "no HTTP": b"SSH-2.0\r\n",
}


def edge(path: str) -> bytes:
    return STORED.get(path, answer(504))


def fault(name: str, method: str) -> Any:
    """As a list, whose connection ends with it: a HEAD has no body."""
    said = answer(200, IMAGE.manifest)[:-5] if name == "short body" else FAULTS[name]
    return [said.partition(b"\r\n\r\n")[0] + b"\r\n\r\n" if method == "HEAD" else said]


def info(run_module: RunModule, *images: str, **options: Any) -> list[dict[str, Any]]:
    answered = run_module(image_info.main, images=list(images), **{"platforms": ["linux/amd64"], "retries": 0, **options})
    assert answered.get("changed") is False, answered
    assert PASSWORD not in str({**answered, "invocation": None})
    return list(answered["images"])


@pytest.mark.parametrize("name", [*FAULTS, "short body"])
def test_an_upstream_that_fails_is_told_and_the_cache_asked(serve: Serve, run_module: RunModule, name: str) -> None:
    server, cache = serve(lambda _path: fault(name, server.requests[-1].split()[0])), serve(edge)
    upstream = {"url": server.url, "username": "reader", "password": PASSWORD}
    (told,) = info(run_module, "svc/app:1", upstream=upstream, caches=[{"name": "zagreb", "url": cache.url}])
    assert told["digest"] is None and server.url in told["unknown"] and told["artifacts"] is None
    assert (told["caches"][0]["in_cache"], told["caches"][0]["digest"], told["caches"][0]["drift"]) == ("complete", IMAGE.digest, None)


@pytest.mark.parametrize("name", [*FAULTS, "short body"])
@pytest.mark.parametrize("call", ["/v2/", "/v2/svc/app/manifests/1", f"/v2/svc/app/manifests/{IMAGE.digest}", f"/v2/svc/app/blobs/{list(IMAGE.blobs)[1]}"])
def test_a_cache_that_fails_is_never_complete(serve: Serve, run_module: RunModule, name: str, call: str) -> None:
    upstream = serve(lambda path: answers_of(IMAGE).get(path, answer(404)))
    cache = serve(lambda path: fault(name, cache.requests[-1].split()[0]) if path == call else edge(path))
    (told,) = info(run_module, "svc/app:1", upstream={"url": upstream.url}, caches=[{"name": "zagreb", "url": cache.url}])
    assert (told["digest"], told["unknown"]) == (IMAGE.digest, "")
    (there,) = told["caches"]
    if there["in_cache"] == "unknown":
        assert cache.url in there["unknown"]
    else:
        # What is not there, or not in full, is a plain answer to HEAD.
        assert there["in_cache"] in ("partial", "absent") and call.rpartition("/")[2].startswith("sha256:")
        assert name in ("404", "short body", "wrong bytes", "empty", "page")


@pytest.mark.parametrize("name", [*FAULTS, "short body"])
def test_artifacts_that_cannot_be_had_are_unknown(serve: Serve, run_module: RunModule, name: str) -> None:
    upstream = serve(lambda path: answers_of(IMAGE)[path] if path in answers_of(IMAGE) else fault(name, upstream.requests[-1].split()[0]))
    (told,) = info(run_module, "svc/app:1", upstream={"url": upstream.url})
    assert told["digest"] == IMAGE.digest
    if name == "404":
        assert (told["artifacts"], told["artifacts_unknown"]) == ([], "")
    else:
        assert told["artifacts"] is None and upstream.url in told["artifacts_unknown"]


def test_what_is_attached_is_told(serve: Serve, registry: Registry, run_module: RunModule) -> None:
    digest = registry.push("svc/app", "1", IMAGE)
    cosign = json.loads(OTHER.manifest)
    cosign["layers"][0]["mediaType"] = "application/vnd.dsse.envelope.v1+json"
    for blob_digest, blob in OTHER.blobs.items():
        _status, location, _body = registry.request("POST", "/v2/svc/app/blobs/uploads/")
        registry.request("PUT", f"{location.split(str(registry.port), 1)[1]}&digest={blob_digest}", blob)
    attestation = registry.push_manifest("svc/app", digest.replace(":", "-") + ".att", json.dumps(cosign).encode(), cosign["mediaType"])
    index = json.loads(index_of({"": IMAGE}))
    index["manifests"][0]["artifactType"] = "application/vnd.cncf.notary.signature"
    registry.push_manifest("svc/app", digest.replace(":", "-"), json.dumps(index).encode(), index["mediaType"])
    (told,) = info(run_module, "svc/app:1", upstream={"url": registry.url})
    assert [(each["kind"], each["artifact_type"], each["digest"], each["found_by"]) for each in told["artifacts"]] == [
        ("signature", "application/vnd.cncf.notary.signature", IMAGE.digest, "referrers"),
        ("attestation", "application/vnd.dsse.envelope.v1+json", attestation, "cosign"),
    ]
    (told,) = info(run_module, "svc/app:1", upstream={"url": registry.url}, artifacts=False)
    assert (told["artifacts"], told["artifacts_unknown"]) == (None, "nobody was asked")


@pytest.mark.parametrize(("artifact_type", "kind"), [
    ("application/vnd.dev.cosign.artifact.sig.v1+json", "signature"), ("application/vnd.dev.sigstore.bundle.v0.3+json", "signature"),
    ("application/vnd.in-toto+json", "attestation"), ("application/vnd.cyclonedx+json", "sbom"), ("application/spdx+json", "sbom"),
    ("application/vnd.example.design", "other"), ("", "other"),
])
def test_kinds(artifact_type: str, kind: str) -> None:
    assert kind_of(artifact_type) == kind


def test_all_are_asked_at_once(serve: Serve, run_module: RunModule) -> None:
    """And each blob once, however many images have it."""
    def slow(path: str) -> bytes:
        time.sleep(0.5)
        return edge(path.replace("/other/", "/app/"))

    def upstream_answers(path: str) -> bytes:
        time.sleep(0.5)
        return answers_of(IMAGE).get(path.replace("/other/", "/app/"), answer(404))

    upstream, caches = serve(upstream_answers), [serve(slow) for _each in range(4)]
    began = time.monotonic()
    told = info(run_module, "svc/app:1", "svc/other:1", upstream={"url": upstream.url}, artifacts=False,
                caches=[{"name": str(number), "url": cache.url} for number, cache in enumerate(caches)])
    assert {cache["in_cache"] for image in told for cache in image["caches"]} == {"complete"}
    # One after the other these would take 16 seconds.
    assert time.monotonic() - began < 10
    for cache in caches:
        asked = [request.split()[:2] for request in cache.requests]
        assert len([path for method, path in asked if "/blobs/" in path]) == len(IMAGE.blobs)
        assert all(method == "HEAD" for method, path in asked if "sha256:" in path)
        assert all("Cache-Control: only-if-cached" in request for request in cache.requests)


def test_an_upstream_that_is_gone_is_not_waited_for_again_and_again(serve: Serve, run_module: RunModule) -> None:
    upstream = serve(lambda _path: None)
    began = time.monotonic()
    told = info(run_module, *(f"svc/app{number}:1" for number in range(200)), upstream={"url": upstream.url}, timeout=0.5)
    assert all("no answer within 0.5 seconds" in image["unknown"] for image in told)
    assert len(upstream.requests) <= 16 and time.monotonic() - began < 60


@pytest.mark.parametrize(("options", "says"), [
    ({"images": ["Svc/App"]}, "'Svc/App' is no image reference"), ({"images": [""]}, "it is empty"),
    ({"platforms": ["amd64"]}, "platforms: 'amd64' is no platform. Write os/architecture"),
    ({"caches": [{"name": "a", "url": "http://a"}, {"name": "a", "url": "http://b"}]}, "caches: a is there 2 times"),
    ({"caches": [{"name": "a", "url": "mirror:5000"}]}, "no URL of a registry"),
    ({"upstream": {"url": f"https://u:{PASSWORD}@a"}}, "a user, a query or a fragment stands in the URL"),
    ({"upstream": {"url": "https://a", "ca_certificate": "/absent"}}, "ca_certificate"),
    ({"upstream": {"url": "https://a", "username": "reader"}}, "required together"),
    ({"timeout": 0}, "leaves no time to answer"),
])
def test_bad_input_is_refused_before_anybody_is_asked(serve: Serve, run_module: RunModule, options: dict[str, Any], says: str) -> None:
    server = serve(lambda _path: answer(404))
    failed = run_module(image_info.main, **{"images": ["svc/app:1"], "upstream": {"url": server.url}, **options})
    assert failed["failed"] and says in failed["msg"] and PASSWORD not in failed["msg"]
    assert server.requests == []
