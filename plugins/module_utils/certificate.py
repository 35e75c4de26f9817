# Copyright (c) 2026, mirrorfleet contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
# SPDX-License-Identifier: Apache-2.0
"""Who signed a certificate and how long it is valid. Python's ssl tells that only of a certificate that it trusts.

The structure is in RFC 5280, 4.1; its encoding, DER, in X.690.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Iterator, NamedTuple

_SEQUENCE, _SET, _OID, _UTC_TIME, _GENERALIZED_TIME, _VERSION = 0x30, 0x31, 0x06, 0x17, 0x18, 0xA0
# UTF8String, PrintableString, TeletexString, IA5String, BMPString
_TEXTS = {0x0C: "utf-8", 0x13: "ascii", 0x14: "latin-1", 0x16: "ascii", 0x1E: "utf-16-be"}
# commonName, organizationName, organizationalUnitName
_NAMES = (b"\x55\x04\x03", b"\x55\x04\x0a", b"\x55\x04\x0b")


@dataclass(frozen=True)
class Certificate:
    """``issuer`` is the signer's common name, or its organization where it has none. Times are seconds since the epoch."""

    issuer: str
    not_before: float
    not_after: float


class _Element(NamedTuple):
    tag: int
    content: bytes


def parse_certificate(der: bytes) -> Certificate:
    """Raises ValueError for what is no certificate."""
    try:
        (whole,) = _elements(der)
        fields = _elements(next(_elements(_content(whole, _SEQUENCE))).content)
        first = next(fields)
        if first.tag == _VERSION:
            next(fields)
        next(fields)  # the signature's algorithm, after version and serial number
        issuer, validity = next(fields), next(fields)
        not_before, not_after = (_seconds(each) for each in _elements(_content(validity, _SEQUENCE)))
        return Certificate(_name(_content(issuer, _SEQUENCE)), not_before, not_after)
    except (StopIteration, IndexError, OverflowError):
        raise ValueError("it ends too soon") from None


def _elements(data: bytes) -> Iterator[_Element]:
    at = 0
    while at < len(data):
        tag, length, at = data[at], data[at + 1], at + 2
        if length > 0x80:
            size = length & 0x7F
            length, at = int.from_bytes(data[at : at + size], "big"), at + size
        if length == 0x80 or tag & 0x1F == 0x1F or at + length > len(data):
            raise ValueError("it is not DER")
        yield _Element(tag, data[at : at + length])
        at += length


def _content(element: _Element, tag: int) -> bytes:
    if element.tag != tag:
        raise ValueError(f"there is {element.tag:#x} in the place of {tag:#x}")
    return element.content


def _name(sequence: bytes) -> str:
    found: dict[bytes, str] = {}
    for part in _elements(sequence):
        for pair in _elements(_content(part, _SET)):
            oid, value = _elements(_content(pair, _SEQUENCE))
            if value.tag in _TEXTS:
                found[_content(oid, _OID)] = value.content.decode(_TEXTS[value.tag], "replace")
    return next((found[each] for each in _NAMES if each in found), next(iter(found.values()), ""))


def _seconds(element: _Element) -> float:
    text = element.content.decode("ascii")
    if element.tag == _UTC_TIME:
        text = ("19" if text[:2] >= "50" else "20") + text
    elif element.tag != _GENERALIZED_TIME:
        raise ValueError(f"there is {element.tag:#x} in the place of a time")
    return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=timezone.utc).timestamp()
