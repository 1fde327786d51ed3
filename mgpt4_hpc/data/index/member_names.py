"""Names of a tar's members: which sample they belong to, and which are refused."""

from __future__ import annotations

from mgpt4_hpc.data.tar.header import BLOCK, header_name, parse_size

_PLAIN_NAME = 90
"""Longest key whose members' names surely fit into a header."""


def split_name(member: bytes) -> tuple[bytes, bytes]:
    """Key and lower-case extension of a member, as webdataset splits: at the base name's first dot.

    Without an extension the key is the whole name.
    """
    if member[:2] == b"./":
        member = member[2:]
    slash = member.rfind(b"/") + 1
    dot = member.find(b".", slash)
    if dot <= slash:
        return member, b""
    return member[:dot], member[dot + 1 :].lower()


def belongs(header: bytes, key: str, length: int) -> bool:
    """Whether a tar header can be that of a sample's part of ``length`` bytes.

    Long names and those beyond ASCII are in an extension header before it; then only the size is
    compared.
    """
    if len(header) != BLOCK or parse_size(header) != length:
        return False
    plain = key.isascii() and len(key) <= _PLAIN_NAME
    return not plain or split_name(header_name(header))[0] == key.encode()


def name_fault(key: bytes) -> str:
    """Why a key is refused; empty if it is fine.

    Keys are never used as paths here, but they end up in lists that other programs read.
    """
    try:
        text = key.decode()
    except UnicodeDecodeError:
        return "its name is not UTF-8"
    if not text.isprintable():
        return "its name holds control characters"
    if text.startswith("/") or "\\" in text or ".." in text.split("/"):
        return "its name points outside the shard"
    return ""


def show(name: bytes) -> str:
    """A name for people's eyes, whatever bytes it has."""
    text = name.decode(errors="backslashreplace")
    return text if text.isprintable() else ascii(text)[1:-1]
