"""A PNG of random samples with their captions: errors that no number shows are seen at once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from mgpt4_hpc.data.images.decode import ImageError, decode_rgb
from mgpt4_hpc.data.index.index import ShardIndex
from mgpt4_hpc.data.index.temporary_output import scratch_beside
from mgpt4_hpc.data.reading.reader import BadSampleError, SampleReader
from mgpt4_hpc.data.sources.stats import spread_choice
from mgpt4_hpc.errors import DataError
from mgpt4_hpc.output_files import PNG_INFO

NUM_SAMPLES = 24

_COLUMNS = 6
_TILE = 224
_GAP = 12
_LINES = 6
_MOST_CHARS = 200
"""A line of a tile holds far fewer characters."""
_FONT_SIZE = 13
_LINE_HEIGHT = 17
_WHITE, _GREY, _BLACK, _EMPTY = "#ffffff", "#777777", "#000000", "#dddddd"

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def write_contact_sheet(
    index: ShardIndex, out: Path, *, num_samples: int = NUM_SAMPLES, seed: int = 0
) -> list[int]:
    """Draw random samples, six in a row, into the PNG ``out``, atomically.

    A sample that cannot be read or decoded is shown by its reason.

    Returns:
        Their sample ids, from left to right and top to bottom.

    Raises:
        DataError: if the source is empty or the file cannot be written.
    """
    chosen = spread_choice(index.num_samples, num_samples, seed, "contact-sheet").tolist()
    if not chosen:
        raise DataError(f"{index.name} has no usable sample to show")
    reader = SampleReader([index], pauses_s=())
    tiles = []
    for sample_id in chosen:
        try:
            sample = reader.read(0, sample_id)
            tile = _tile(sample.images[0]) if sample.images else _empty_tile()
            text = sample.caption
        except (BadSampleError, ImageError) as error:
            reason = error.reason if isinstance(error, BadSampleError) else str(error)
            tile, text = _empty_tile(), f"({reason})"
        tiles.append((tile, index.key(sample_id), text))
    reader.close()
    _save(_draw_all(tiles), out)
    return chosen


def contact_sheet(entries: Sequence[tuple[bytes, str, str]]) -> Image.Image:
    """Pictures, six in a row, each above its name and a text; one that is none stays empty.

    Args:
        entries: compressed image, name and text of each; at least one.
    """
    tiles = []
    for data, name, text in entries:
        try:
            tiles.append((_tile(data), name, text))
        except ImageError:
            tiles.append((_empty_tile(), name, text))
    return _draw_all(tiles)


def _draw_all(tiles: Sequence[tuple[Image.Image, str, str]]) -> Image.Image:
    columns = min(_COLUMNS, len(tiles))
    rows = -(-len(tiles) // columns)
    cell = (_TILE + _GAP, _TILE + (_LINES + 1) * _LINE_HEIGHT + 2 * _GAP)
    sheet = Image.new("RGB", (columns * cell[0] + _GAP, rows * cell[1] + _GAP), _WHITE)
    font = ImageFont.load_default(_FONT_SIZE)
    for place, (tile, name, text) in enumerate(tiles):
        corner = (_GAP + place % columns * cell[0], _GAP + place // columns * cell[1])
        _draw(sheet, corner, tile, name, text, font)
    return sheet


def _tile(data: bytes) -> Image.Image:
    image = Image.fromarray(decode_rgb(data))
    image.thumbnail((_TILE, _TILE))
    return image


def _empty_tile() -> Image.Image:
    return Image.new("RGB", (_TILE, _TILE), _EMPTY)


def _draw(
    sheet: Image.Image, corner: tuple[int, int], tile: Image.Image, key: str, text: str, font: Font
) -> None:
    x, y = corner
    inset = ((_TILE - tile.width) // 2, (_TILE - tile.height) // 2)
    sheet.paste(tile, (x + inset[0], y + inset[1]))
    draw = ImageDraw.Draw(sheet)
    draw.rectangle((x - 1, y - 1, x + _TILE, y + _TILE), outline=_EMPTY)
    lines = [wrap(key, font, _TILE, 1)[0], *wrap(text, font, _TILE, _LINES)]
    for number, line in enumerate(lines):
        place = (x, y + _TILE + _GAP // 2 + number * _LINE_HEIGHT)
        draw.text(place, line, fill=_BLACK if number else _GREY, font=font)


def wrap(text: str, font: Font, width: float, most: int) -> list[str]:
    """Lines no wider than ``width`` pixels, at most ``most``; what is cut off ends in "..."."""
    # Only so much can ever be shown, however long a caption is.
    text = "".join(char if char.isprintable() else " " for char in text[: _MOST_CHARS * most])
    lines, line = [], ""
    for word in text.split():
        longer = f"{line} {word}" if line else word
        if font.getlength(longer) <= width:
            line = longer
            continue
        if line:
            lines.append(line)
        while font.getlength(word[:_MOST_CHARS]) > width:  # an address, say
            fits = 1
            while font.getlength(word[: fits + 1]) <= width:
                fits += 1
            lines.append(word[:fits])
            word = word[fits:]
        line = word
    lines.append(line)
    if len(lines) > most:
        last = lines[most - 1]
        while last and font.getlength(last + "...") > width:
            last = last[:-1]
        lines = [*lines[: most - 1], last + "..."]
    return lines


def _save(sheet: Image.Image, out: Path) -> None:
    info = PngInfo()
    for name, text in PNG_INFO.items():
        info.add_text(name, text)
    try:
        # Beside the target, so that the last step is a rename.
        with scratch_beside(out) as holder:
            made = holder / "sheet.png"
            sheet.save(made, format="PNG", optimize=True, pnginfo=info)
            made.replace(out)
    except OSError as error:
        raise DataError(f"cannot write {out}: {error.strerror or error}") from error
