# Copyright (c) 2026, mirrorfleet contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0
"""What is refused of registry_here and registry_users, and what becomes of what is right."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.mirrorfleet.registry.plugins.module_utils.errors import RegistryFleetError
from ansible_collections.mirrorfleet.registry.plugins.module_utils.registries import (
    SCOPES,
    check,
    driver_problems,
    host_clashes,
    normalise,
    read,
    read_users,
)
from ansible_collections.mirrorfleet.registry.plugins.module_utils.upstreams import Missing

KEY = "-----BEGIN PUBLIC KEY-----\nMFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAE\n-----END PUBLIC KEY-----\n"
HASH = "$2y$05$" + "a" * 53
USERS = ({"name": "builder", "role": "ci", "hash": HASH}, {"name": "promoter", "role": "promotion", "hash": HASH})
PLAY = {"name": "play", "scope": "sandbox", "port": 5010}
SNAPSHOTS = {"name": "snapshots", "scope": "ci_snapshots", "port": 5011}
PROD = {"name": "prod", "scope": "prod", "port": 5012, "backup_target": "/mnt/backup", "signing_key": KEY}
IN_S3 = {**PROD, "backup_target": None}
S3 = {"bucket": "images", "region": "eu-central-1", "accesskey": "AKIA", "secretkey": "wander3r"}


def problems(*registries: Any, users: Any = USERS, days: Any = 14, newest: Any = 20) -> list[str]:
    return check(list(registries), users, days, newest)[1]


def test_a_scope_brings_its_rules() -> None:
    play, snapshots, tests, prod = normalise([PLAY, SNAPSHOTS, {"name": "tests", "scope": "ci_tests", "port": 5013, "keep_days": 3}, PROD], USERS, 7, 5)
    assert (play["writer"], play["deletes"], play["keep"]) == ("", True, {"newest": 0, "days": 7})
    assert (snapshots["writer"], snapshots["deletes"], snapshots["keep"]) == ("ci", True, {"newest": 5, "days": 0})
    assert (tests["writer"], tests["deletes"], tests["keep"]) == ("ci", True, {"newest": 1, "days": 3})
    assert (prod["writer"], prod["deletes"], prod["keep"]) == ("promotion", False, None)
    assert (play["driver"], play["directory"]) == ("filesystem", "/var/lib/mirrorfleet/registry/play")
    assert (prod["backup_target"], prod["signing_key"]) == ("/mnt/backup", KEY)


def test_object_storage_is_passed_through() -> None:
    (prod,) = normalise([{**IN_S3, "storage": {"s3": S3}}], USERS)
    assert (prod["driver"], prod["directory"], prod["parameters"]) == ("s3", "", S3)


def test_what_is_no_amazon_is_asked_by_path() -> None:
    """As 2.8 does by itself, and 3.x does not."""
    minio = {**S3, "regionendpoint": "http://minio:9000"}
    (prod,) = normalise([{**IN_S3, "storage": {"s3": minio}}], USERS)
    assert prod["parameters"] == {**minio, "forcepathstyle": True}
    (prod,) = normalise([{**IN_S3, "storage": {"s3": {**minio, "forcepathstyle": False}}}], USERS)
    assert prod["parameters"]["forcepathstyle"] is False


def test_what_debian_has_not_built_in_is_refused() -> None:
    gcs, _problems = read([{**IN_S3, "storage": {"gcs": {"bucket": "images"}}}])
    assert driver_problems(gcs, "package") == [
        "registry_here: registry 'prod': storage: gcs: Debian's distribution is built without it. Write registry_runtime: container."
    ]
    assert not driver_problems(gcs, "container")
    assert not driver_problems([*read([PROD])[0], *read([{**IN_S3, "storage": {"s3": S3}}])[0]], "package")


def test_backups_mix_with_nothing() -> None:
    other = {**PROD, "name": "other", "port": 5013}
    same = "registries 'prod' and 'other' have the same backup_target, or one in the other's"
    assert any(same in line for line in problems(PROD, other))
    assert any(same in line for line in problems(PROD, {**other, "backup_target": "/mnt/backup/other"}))
    for storage, target in (("/srv/prod", "/srv/prod"), ("/srv/prod", "/srv/prod/backup"), ("/srv/backup/prod", "/srv/backup")):
        found = problems({**PROD, "storage": storage, "backup_target": target})
        assert found == [
            f"registry_here: registry 'prod': backup_target: {target}: is, or is within, or holds the storage of 'prod' ({storage}). "
            "Write a place on another disk, or s3:https://host/bucket."
        ]
    assert "holds the storage of 'play'" in problems({**PLAY, "storage": "/mnt/backup/play"}, PROD)[0]
    assert not problems({**PROD, "storage": "/srv/prod", "backup_target": "/srv/prod-backup"}, {**other, "backup_target": "s3:https://s3/prod"})


def test_registries_of_two_hosts_do_not_back_up_to_one_bucket() -> None:
    """One directory is another one on each host, unless it is a share, which the backup itself finds out."""
    def at(target: str) -> Any:
        return read([{**PROD, "backup_target": target}])[0]

    hosts = {"r1": at("s3:https://s3/b/prod"), "r2": at("s3:https://s3/b"), "r3": at("s3:https://s3/c"), "r4": at("/srv/b"), "r5": at("/srv/b")}
    assert host_clashes(hosts) == [
        "registry_here: the registries 'prod' of r1 and 'prod' of r2 have the same backup_target, or one in the other's "
        "(s3:https://s3/b/prod and s3:https://s3/b). Give each its own."
    ]


def test_registries_of_two_hosts_do_not_share_a_bucket() -> None:
    one, other = (read([{**IN_S3, "name": name, "storage": {"s3": {**S3, "rootdirectory": root}}}])[0] for name, root in (("prod", "/a"), ("copy", "/a/b")))
    apart = read([{**IN_S3, "storage": {"s3": {**S3, "rootdirectory": "/c"}}}])[0]
    local = read([PROD])[0]
    assert host_clashes({"r1": one, "r2": other, "r3": apart, "r4": local, "r5": local}) == [
        "registry_here: the registries 'prod' of r1 and 'copy' of r2 share storage (s3 images/a and /a/b). Give each its own."
    ]


@pytest.mark.parametrize(("registry", "problem"), [
    ({**PLAY, "scope": "snadbox"}, "registry 'play': scope: 'snadbox': is no scope. Write sandbox."),
    ({**PLAY, "scope": "staging"}, "registry 'play': scope: 'staging': is no scope. There are sandbox, ci_tests, ci_snapshots, prod and archive."),
    ({**PLAY, "scope": ["prod"]}, "is no scope"),
    ({"name": "play", "port": 5010}, "registry 'play': scope: is missing."),
    ({"scope": "sandbox", "port": 5010}, "registry number 1: name: is missing."),
    ({**PLAY, "name": "Play"}, "registry 'Play': name: 'Play': write lower-case letters, digits and -"),
    ({**PLAY, "port": 80}, "registry 'play': port: 80: write a port from 1024 to 65535."),
    ({**PLAY, "port": True}, "registry 'play': port: True: write a port"),
    ({**PLAY, "keep_day": 3}, "registry 'play': keep_day: is no key of a registry. Write keep_days."),
    ({**PLAY, "keep_newest": 3}, "registry 'play': keep_newest: the scope sandbox does not take it (ci_snapshots does). Take it out, or write another scope."),
    ({**PLAY, "keep_days": 0}, "registry 'play': keep_days: 0: write a whole number from 1: retention must not empty a repository."),
    ({**SNAPSHOTS, "keep_newest": 0}, "registry 'snapshots': keep_newest: 0: write a whole number from 1: retention must not empty a repository."),
    ({**SNAPSHOTS, "keep_newest": -1}, "keep_newest: -1: write a whole number"),
    ({**PLAY, "signing_key": KEY}, "signing_key: the scope sandbox does not take it (prod does)."),
    ({**PROD, "backup_target": None}, "registry 'prod': backup_target: is missing. Nothing is in prod without a backup"),
    ({**PROD, "signing_key": None}, "registry 'prod': signing_key: is missing. What comes into prod is signed"),
    ({**PROD, "backup_target": "backup"}, "backup_target: 'backup': write a directory or s3:https://host/bucket."),
    ({**PROD, "signing_key": KEY.replace("PUBLIC", "EC PRIVATE")}, "It looks like a private key, which has no place here."),
    ({**PLAY, "storage": "srv/play"}, "storage: 'srv/play': write an absolute path"),
    ({**PLAY, "storage": "/srv/../etc"}, "storage: '/srv/../etc': write an absolute path"),
    ({**PLAY, "storage": "/srv"}, "storage: '/srv': write an absolute path of at least two parts"),
    ({**PLAY, "storage": "/srv/a b"}, "write an absolute path"),
    ({**PLAY, "storage": {"s3": S3}}, "storage: s3: what the scope sandbox keeps is told by the times of files."),
    ({**PROD, "storage": {"s3": S3}}, "backup_target: is not for images in s3. Turn on the versions of its objects there, and take this out."),
    ({**PROD, "storage": {"swift": {}}}, "storage: 'swift': is no storage. Write a directory, or one of s3, azure and gcs."),
    ({**PROD, "storage": {"s3": {**S3, "buckets": "a"}}}, "storage: s3: buckets: is no parameter of it. Write bucket."),
    ({**PROD, "storage": {"s3": {"bucket": "images"}}}, "storage: s3: region: missing."),
    ({**PROD, "storage": {"s3": {**S3, "secretkey": ""}}}, "storage: s3: secretkey: write text."),
    ({**PROD, "storage": {"s3": {**S3, "chunksize": "5M"}}}, "storage: s3: chunksize: write a whole number."),
    ({**PROD, "storage": {"s3": {"bucket": "a", "region": "b", "accesskey": "AKIA"}}}, "storage: s3: accesskey, secretkey: write both or neither"),
    ({**PROD, "storage": {"gcs": {"bucket": "a", "keyfile": "/etc/key.json"}}}, "storage: gcs: keyfile: is no parameter of it. There are bucket, credentials,"),
    ({**PROD, "storage": {"gcs": {"bucket": "a", "credentials": "wander3r"}}}, "storage: gcs: credentials: write a dictionary, the service account's key file"),
    ({**PROD, "storage": {"gcs": {"bucket": "a", "credentials": {"private_key": Missing("vault")}}}}, "storage: gcs: credentials: has no value (vault)."),
    ({**PROD, "storage": {"azure": {"accountname": "a", "container": "b"}}}, "storage: azure: accountkey: missing."),
    ({**PROD, "storage": {"s3": {**S3, "secretkey": Missing("'vault_key' is undefined")}}}, "storage: s3: secretkey: has no value ('vault_key' is undefined)."),
    ("play", "item 1: is 'play'. Write a dictionary with name, scope and port."),
])
def test_what_can_not_be_meant_is_refused(registry: Any, problem: str) -> None:
    found = problems(registry)
    assert len(found) == 1 and problem in found[0], found
    assert found[0].startswith("registry_here: ") and "wander3r" not in found[0]


@pytest.mark.parametrize(("second", "problem"), [
    ({"port": 5010}, "registries 'play' and 'other' both have port 5010. Give each its own."),
    ({"name": "play"}, "2 registries have the name 'play'. Give each its own."),
    ({"storage": "/srv/registry"}, "registries 'play' and 'other' share storage (/srv/registry and /srv/registry). Give each its own."),
    ({"storage": "/srv/registry/"}, "share storage (/srv/registry and /srv/registry)"),
    ({"storage": "/srv/registry/inner"}, "share storage (/srv/registry and /srv/registry/inner)"),
    ({"storage": "/srv/registry2"}, ""),
])
def test_registries_do_not_overlap(second: dict[str, Any], problem: str) -> None:
    found = problems({**PLAY, "storage": "/srv/registry"}, {**PLAY, "name": "other", "port": 5020, "storage": "/srv/other", **second})
    assert [problem in each for each in found] == ([True] if problem else []), found


@pytest.mark.parametrize(("second", "overlaps"), [
    ({}, True), ({"bucket": "others"}, False), ({"rootdirectory": "/two"}, True), ({"accesskey": "OTHER"}, True),
    ({"regionendpoint": "http://minio:9000"}, False),
])
def test_two_registries_in_one_bucket_overlap(second: dict[str, Any], overlaps: bool) -> None:
    other = {**IN_S3, "name": "other", "port": 5020, "storage": {"s3": {**S3, **second}}}
    found = problems({**IN_S3, "storage": {"s3": S3}}, other)
    assert [each for each in found if "share storage" in each] == found and bool(found) == overlaps
    apart = [{**S3, "rootdirectory": "/one"}, {**S3, "rootdirectory": "/two"}]
    assert not problems(*(
        {**IN_S3, "name": f"r{number}", "port": 5020 + number, "storage": {"s3": each}} for number, each in enumerate(apart)
    ))


@pytest.mark.parametrize(("user", "problem"), [
    ({"name": "a b"}, "name: 'a b': write letters, digits and ._@-"),
    ({"name": "anonymous"}, "and not anonymous."),
    ({"name": "builder:x"}, "name: 'builder:x'"),
    ({"role": "root"}, "role: 'root': write reader, ci or promotion."),
    ({"hash": "wander3r"}, "hash: is no bcrypt hash. Write what `htpasswd -nB <name>` prints"),
    ({"hash": "$6$aaaaaaaa$" + "b" * 86}, "hash: is no bcrypt hash."),
    ({"hash": "CHANGE-ME"}, "hash: is still the example's CHANGE-ME."),
    ({"hash": Missing("vault")}, "hash: has no value (vault)."),
    ({"password": "wander3r"}, "password: is no key of a user. Write hash"),
])
def test_users_that_can_not_be_meant_are_refused(user: dict[str, Any], problem: str) -> None:
    _good, found = read_users([{"name": "builder", "role": "ci", "hash": HASH, **user}])
    assert len(found) == 1 and problem in found[0], found
    assert "wander3r" not in found[0]


def test_a_registry_into_which_nobody_can_write_is_refused() -> None:
    assert problems(PROD, users=USERS[:1]) == [
        "registry_users: nobody has the role promotion, so nothing can come into the registry 'prod' (prod). Add a user with it."
    ]
    assert not problems(PLAY, users=[])


def test_values_for_all_registries_are_checked() -> None:
    assert problems(PLAY, days=0, newest="many") == [
        "registry_keep_days: 0: write a whole number from 1: retention must not empty a repository.",
        "registry_keep_newest: 'many': write a whole number from 1: retention must not empty a repository.",
    ]
    assert problems() == ["registry_here: is empty. Write a list of registries, each with name, scope and port."]


def test_everything_that_is_wrong_is_said_at_once() -> None:
    with pytest.raises(RegistryFleetError) as caught:
        normalise([{**PLAY, "scope": "x", "port": 1}, {**PROD, "signing_key": "x"}], [{"name": "a"}])
    assert len(str(caught.value).splitlines()) == 5


ANYTHING = st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=20), lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
    st.sampled_from(["name", "scope", "port", "storage", "keep_days", "s3", "bucket", "hash", "role"]) | st.text(max_size=5), inner, max_size=5), max_leaves=10)


@given(ANYTHING, ANYTHING)
def test_anything_gets_a_sentence_and_no_traceback(registries: Any, users: Any) -> None:
    good, found = read(registries)
    assert good or found
    read_users(users)


@given(st.sampled_from(sorted(SCOPES)), st.integers(1, 99999), st.integers(1, 99999))
def test_nothing_that_is_right_may_empty_a_repository_that_is_pushed_to(scope: str, days: int, newest: int) -> None:
    more = {"images": ["debian:12"]} if scope == "archive" else {}
    (found,) = normalise([{**(PROD if scope == "prod" else PLAY), "scope": scope, **more}], USERS, days, newest)
    assert found["keep"] is None or found["keep"]["newest"] > 0 or found["keep"]["days"] > 0
