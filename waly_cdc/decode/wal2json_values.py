"""The values of wal2json's messages: where they lie, by a template held against many at once."""

from __future__ import annotations

import re

import numpy as np
import pyarrow as pa

from waly_cdc.decode import values, wal2json_template
from waly_cdc.decode.jsontext import QUOTE, Scan
from waly_cdc.decode.tuples import Mask, Positions, Spans
from waly_cdc.decode.wal2json_template import Template
from waly_cdc.errors import DecodeError

_NUMBER = np.zeros(256, np.bool_)
_NUMBER[np.frombuffer(b"0123456789+-eE.NaInfity", np.uint8)] = True
_HEX = np.full(256, -1, np.int64)
_HEX[np.frombuffer(b"0123456789ABCDEF", np.uint8)] = np.arange(16)
_LSN_DIGITS = 8
_XID_DIGITS = 10


def read(
    scan: Scan, template: Template, messages: Positions, at: Positions, quote: Positions
) -> tuple[Mask, list[Spans]]:
    """Hold a template against messages that begin like it does, from there and the quote that comes
    next: which of them fit, and where each value lies."""
    fits = np.ones(len(messages), np.bool_)
    at, quote = at + len(template.literals[0]), quote + quotes(template.literals[0])
    spans: list[Spans] = []
    for kind, literal in zip(template.kinds, template.literals[1:], strict=True):
        found, value, at, quote = read_value(scan, kind, literal, at, quote)
        fits &= found & scan.matches(at, literal)
        spans.append(value)
        at, quote = at + len(literal), quote + quotes(literal)
    return fits & (at == scan.end[messages]), spans


def read_value(
    scan: Scan, kind: str, following: bytes, at: Positions, quote: Positions
) -> tuple[Mask, Spans, Positions, Positions]:
    """The values at the given positions: which of them are of the kind, where they lie, where they
    end and which quote comes next. `following` is the text after them: where it has its first quote
    tells where a value ends that is no string."""
    is_string = scan.byte(at) == QUOTE
    ends = scan.quote(quote + 1)
    fits = (scan.quote(quote) == at) & (ends > at)
    if is_string.all():
        fits &= kind != "bool" and kind != "digits"
        return fits, Spans(at + 1, ends), ends + 1, quote + 2
    plain_ends = scan.quote(quote) - following.find(b'"')
    null = ~is_string & (plain_ends - at == 4) & scan.matches(at, b"null")
    plain = ~is_string & (plain_ends > at)
    if kind in ("string", "digits"):
        fits = fits & is_string if kind == "string" else plain & _all_digits(scan, at, plain_ends)
    elif kind == "bool":
        true = (plain_ends - at == 4) & scan.matches(at, b"true")
        fits = plain & (null | true | (plain_ends - at == 5) & scan.matches(at, b"false"))
    else:
        fits = fits & is_string | null | (plain if kind == "number" else False)
    start, end = at + is_string, np.where(is_string, ends, plain_ends)
    return (
        fits,
        Spans(start, end, null if null.any() else None),
        end + is_string,
        quote + 2 * is_string,
    )


def _all_digits(scan: Scan, start: Positions, end: Positions) -> Mask:
    """Whether all bytes of each span, of ten at most, are digits."""
    length = end - start
    found = length <= _XID_DIGITS
    for offset in range(_XID_DIGITS):
        byte = scan.byte(start + offset)
        found &= (offset >= length) | (byte >= ord("0")) & (byte <= ord("9"))
    return found


def check_numbers(text: pa.StringArray) -> None:
    _, offsets, content = text.buffers()
    if content is None:
        return
    bounds = np.frombuffer(offsets, np.int32)[text.offset : text.offset + len(text) + 1]
    if not _NUMBER[np.frombuffer(content, np.uint8)[bounds[0] : bounds[-1]]].all():
        raise DecodeError("a number is not written as one")


def quotes(literal: bytes) -> int:
    """The quotes in a text that begin or end a string."""
    return re.sub(rb"\\.", b"", literal).count(b'"')


def bounds(
    scan: Scan, action: str, messages: Positions
) -> tuple[Positions, Positions, Positions, Positions]:
    """What Begin or Commit messages say: xid, commit time in microseconds since 1970, the LSN of
    the commit record, and of its end."""
    template = wal2json_template.bound(action)
    at = scan.begin[messages]
    fits, spans = read(scan, template, messages, at, scan.first_quote[messages])
    fits &= scan.matches(at, template.literals[0])
    if not fits.all():
        raise DecodeError("a Begin or Commit is not as wal2json writes it")
    if not len(messages):
        return messages, messages, messages, messages
    xid, time, lsn, end_lsn = spans
    times, unfit = values.from_text("timestamptz", time.text(scan.bytes))
    if unfit is not None:
        raise DecodeError("a commit time lies outside of the calendar")
    return (
        xid.text(scan.bytes).cast(pa.int64()).to_numpy(),
        times.cast(pa.int64()).to_numpy(),
        _lsns(scan, lsn),
        _lsns(scan, end_lsn),
    )


def _lsns(scan: Scan, spans: Spans) -> Positions:
    """LSNs from their texts: two numbers of up to eight hexadecimal digits."""
    length = spans.end - spans.start
    high = value = digits = np.zeros(len(length), np.int64)
    slashes = np.zeros(len(length), np.int64)
    for offset in range(2 * _LSN_DIGITS + 1):
        byte = scan.byte(spans.start + offset)
        inside = offset < length
        slash = inside & (byte == ord("/"))
        digit = _HEX[byte]
        high, value = np.where(slash, value, high), np.where(slash, 0, value)
        value = np.where(inside & ~slash, value << 4 | digit, value)
        good = ~inside | slash & (digits > 0) | (digit >= 0) & (digits < _LSN_DIGITS)
        if not good.all():
            raise DecodeError("an LSN cannot be read")
        digits = np.where(slash, 0, digits + (inside & ~slash))
        slashes = slashes + slash
    if ((slashes != 1) | (digits == 0) | (length > 2 * _LSN_DIGITS + 1) | (high >> 31 > 0)).any():
        raise DecodeError("an LSN cannot be read")
    return high << 32 | value
