"""The headers of a large window of a tar, all at once.

Where data is read anyway (to verify it, or because small reads are slow) the headers need not be
walked one by one: NumPy finds the candidates by their magic and checks that the sizes chain them.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mgpt4_hpc.data.tar.crc import Crcs
from mgpt4_hpc.data.tar.header import BLOCK, Headers, Int64

_MAGIC_AT = 257
_MAGIC_WORD = int.from_bytes(b"usta", "little")
_TWO_TENS = np.asarray([10, 1])
_ELEVEN_EIGHTS = 8 ** np.arange(10, -1, -1, dtype=np.int64)


def collect_headers(
    headers: Headers, buffer: bytes | bytearray, base: int, crcs: Crcs | None = None
) -> int:
    """Collect at once all the ordinary headers that lead from a buffer's begin to its end.

    Ordinary are plain files and pax headers that hold only a time, as far as each one's size
    leads exactly to the next; the first that is not, or whose data reaches out of the buffer, is
    left to the caller.

    Args:
        headers: to add to.
        buffer: begins with a header.
        base: offset of the buffer, which is the file's present window.
        crcs: collects the members' checksums.

    Returns:
        Where in the buffer the next header begins.
    """
    blocks = np.frombuffer(buffer, np.uint8, len(buffer) // BLOCK * BLOCK).reshape(-1, BLOCK)
    magic = np.ascontiguousarray(blocks[:, _MAGIC_AT : _MAGIC_AT + 4]).view("<u4")[:, 0]
    rows = np.flatnonzero(magic == _MAGIC_WORD)
    tar_headers = blocks[rows]
    digits = tar_headers[:, 124:135] - np.uint8(ord("0"))
    sizes = digits.astype(np.int64) @ _ELEVEN_EIGHTS
    following = rows + 1 + (sizes + BLOCK - 1) // BLOCK
    pax = tar_headers[:, 156] == ord("x")
    good = (digits < 8).all(axis=1) & (
        (tar_headers[:, 135] == 0) | (tar_headers[:, 135] == ord(" "))
    )
    good &= (tar_headers[:, 156] == ord("0")) | pax
    good &= rows == np.concatenate([[0], following[:-1]])
    good &= following <= len(blocks)
    if pax.any():
        times = np.flatnonzero(pax & good & (sizes <= BLOCK))
        good &= ~pax
        good[times] = _only_times(blocks[rows[times] + 1], sizes[times])
    count = len(good) if good.all() else int(np.argmin(good))
    while count and pax[count - 1]:  # what it announces must be there
        count -= 1
    if count == 0:
        return 0
    sizes[pax] = -1
    positions = base + rows[:count] * BLOCK
    headers.add_many(tar_headers[:count], positions, sizes[:count])
    if crcs is not None:
        crcs.add_window(positions, sizes[:count])
    return int(following[count - 1]) * BLOCK


def _only_times(blocks: NDArray[np.uint8], sizes: Int64) -> NDArray[np.bool_]:
    """Which pax data, of one block each, uint8[n, 512], is one record ``NN mtime=...``: bool[n]."""
    lengths = blocks[:, :2].astype(np.int64) @ _TWO_TENS - 11 * ord("0")
    begins = (blocks[:, 2:9] == np.frombuffer(b" mtime=", np.uint8)).all(axis=1)
    newlines = (blocks == ord("\n")).argmax(axis=1)
    result: NDArray[np.bool_] = begins & (lengths == sizes) & (newlines == sizes - 1)
    return result
