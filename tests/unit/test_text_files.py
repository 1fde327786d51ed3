"""UTF-8 with and without a mark; other encodings are named."""

from __future__ import annotations

import pytest

from mgpt4_hpc.text_files import NotUtf8, decode_utf8, parse_json


def test_a_byte_order_mark_is_no_text() -> None:
    assert decode_utf8("\ufeffé".encode()) == "é" == decode_utf8("é".encode())


@pytest.mark.parametrize(
    ("data", "message", "byte"),
    [
        ("é".encode("utf-16"), "UTF-16, not UTF-8", 0),
        ("é".encode("utf-32"), "UTF-32, not UTF-8", 0),
        ("caption".encode("utf-16-le"), "UTF-16 without a mark", 1),
        ("café".encode("latin-1"), "perhaps Latin-1", 3),
    ],
)
def test_another_encoding_is_named(data: bytes, message: str, byte: int) -> None:
    with pytest.raises(NotUtf8, match=message) as caught:
        decode_utf8(data)
    assert caught.value.byte == byte


def test_json_that_is_nested_too_deeply_is_a_value_error() -> None:
    assert parse_json(b"[1]") == [1]
    with pytest.raises(ValueError, match="nested too deeply"):
        parse_json("[" * 100_000)
