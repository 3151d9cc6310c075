"""Detects truncated media files: container formats state the lengths of their parts.

What a decoder makes of a file that was cut off looks like a shorter video. A file that ends inside of a part tells it apart
from one whose sound, edit list or header merely lasts longer than its picture.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

#: From the first bytes of a part: its length in bytes with its header; None where it does not say, or is no part.
PartLength = Callable[[bytes], int | None]

#: Bytes that hold the header of any part.
_HEADER = 32
_MOVIE_PARTS = {
    b"ftyp",
    b"moov",
    b"mdat",
    b"moof",
    b"mfra",
    b"sidx",
    b"styp",
    b"free",
    b"skip",
    b"wide",
    b"uuid",
    b"meta",
}
_EBML, _SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"
_ASF = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")


def missing_bytes(path: Path) -> int:
    """The number of bytes missing from the last part of a file; 0 if it is complete, or if the format does not tell.

    Read are ISO media (mp4, mov), Matroska and WebM, RIFF (avi), ASF (wmv) and FLV.
    """
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        at, length_of = _parts(file.read(_HEADER))
        while at < size:
            file.seek(at)
            length = length_of(file.read(_HEADER))
            if not length:
                return 0
            at += length
    return max(0, at - size)


def _parts(head: bytes) -> tuple[int, PartLength]:
    """The offset of the first part of a file that starts with `head`, and the function that reads the parts' lengths."""
    if head[4:8] in _MOVIE_PARTS:
        return 0, _movie_part
    if head.startswith(_EBML):
        return 0, _ebml_part
    if head.startswith(b"RIFF"):
        return 0, _riff_part
    if head.startswith(_ASF):
        return 0, _asf_part
    if head.startswith(b"FLV"):
        return int.from_bytes(head[5:9], "big") + 4, _flv_tag
    return 0, lambda head: None


def _movie_part(head: bytes) -> int | None:
    """ISO/IEC 14496-12, 4.2: size, type; size 1 is followed by a 64-bit size, 0 is "to the end"."""
    length = int.from_bytes(head[:4], "big")
    if head[4:8] not in _MOVIE_PARTS:
        return None
    return int.from_bytes(head[8:16], "big") if length == 1 else length


def _ebml_part(head: bytes) -> int | None:
    """RFC 8794, 4: an id, then a size whose leading zeros tell its own length; all ones is "unknown"."""
    if not head.startswith((_EBML, _SEGMENT)) or not head[4]:
        return None
    width = 9 - head[4].bit_length()
    size = int.from_bytes(head[4 : 4 + width], "big") & ((1 << 7 * width) - 1)
    return None if size == (1 << 7 * width) - 1 else 4 + width + size


def _riff_part(head: bytes) -> int | None:
    """A name and a length, little-endian, padded to even; long files have several such parts."""
    length = int.from_bytes(head[4:8], "little")
    return 8 + length + length % 2 if head.startswith(b"RIFF") and length else None


def _asf_part(head: bytes) -> int | None:
    """A 16-byte name, then the length of the whole object."""
    return int.from_bytes(head[16:24], "little")


def _flv_tag(head: bytes) -> int | None:
    """Kind, length of the body, 7 further bytes; the tag's length again after the body."""
    return 11 + int.from_bytes(head[1:4], "big") + 4 if head[0] & 0x1F in (8, 9, 18) else None
