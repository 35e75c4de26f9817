# Copyright (c) 2026, mirrorfleet contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0
"""Reading certificates, against the library that makes them."""

from __future__ import annotations

import contextlib
import datetime

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.mirrorfleet.registry.plugins.module_utils.certificate import Certificate, parse_certificate

KEY = ec.generate_private_key(ec.SECP256R1())
OIDS = {"cn": x509.NameOID.COMMON_NAME, "o": x509.NameOID.ORGANIZATION_NAME, "c": x509.NameOID.COUNTRY_NAME}
words = st.text(st.characters(blacklist_categories=("Cs", "Cc")), min_size=1, max_size=16)  # 64 bytes at most
times = st.datetimes(datetime.datetime(1950, 1, 2), datetime.datetime(2200, 1, 1)).map(lambda time: time.replace(microsecond=0, tzinfo=datetime.timezone.utc))


def der_of(issuer: list[tuple[str, str]], not_before: datetime.datetime, not_after: datetime.datetime) -> bytes:
    name = x509.Name([x509.NameAttribute(OIDS[key], value) for key, value in issuer])
    builder = x509.CertificateBuilder(name, x509.Name([]), KEY.public_key(), x509.random_serial_number(), not_before, not_after)
    return builder.sign(KEY, hashes.SHA256()).public_bytes(serialization.Encoding.DER)


@given(st.dictionaries(st.sampled_from(["cn", "o"]), words), st.booleans(), st.lists(times, min_size=2, max_size=2).map(sorted))
def test_issuer_and_times_are_those_of_the_certificate(issuer: dict[str, str], country: bool, moments: list[datetime.datetime]) -> None:
    der = der_of([("c", "HR")] * country + list(issuer.items()), *moments)
    expected = issuer.get("cn") or issuer.get("o") or ("HR" if country else "")
    assert parse_certificate(der) == Certificate(expected, moments[0].timestamp(), moments[1].timestamp())


@given(st.binary(), st.integers(0, 400), st.integers(0, 255))
def test_anything_else_is_refused_or_read(noise: bytes, at: int, byte: int) -> None:
    now = datetime.datetime(2026, 1, 1, tzinfo=datetime.timezone.utc)
    changed = bytearray(der_of([("cn", "ca")], now, now))
    changed[at % len(changed)] = byte
    for der in (noise, bytes(changed)):
        with contextlib.suppress(ValueError):
            parse_certificate(der)


@pytest.mark.parametrize("der", [b"", b"\x30", b"\x30\x80\x00\x00", b"<html>", b"\x30\x02\x30\x00"])
def test_what_is_no_certificate(der: bytes) -> None:
    with pytest.raises(ValueError, match="it|there is|values"):
        parse_certificate(der)
