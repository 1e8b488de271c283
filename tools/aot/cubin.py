"""What a cubin says about itself: an ELF file for an NVIDIA GPU, read without any tool.

`.nv.info` is a list of records (format, attribute, size or value). EIATTR_REGCOUNT and EIATTR_FRAME_SIZE hold
a symbol index and the registers, or the bytes of local memory (spills and stack), that a thread of that
function takes.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

_EIATTR_FRAME_SIZE = 0x11
_EIATTR_REGCOUNT = 0x2F
_EIFMT_SIZED = 0x04


@dataclass(frozen=True)
class Section:
    name: str
    offset: int
    size: int


@dataclass(frozen=True)
class Facts:
    """What the one kernel in a cubin needs a thread (registers, bytes of local memory), and its SM number."""

    arch: int
    registers: int
    spill_bytes: int


def sections(cubin: bytes) -> list[Section]:
    if cubin[:6] != b"\x7fELF\x02\x01":
        raise ValueError("a cubin must be a little-endian 64-bit ELF file")
    (table,) = struct.unpack_from("<Q", cubin, 0x28)
    entry_size, count, names_index = struct.unpack_from("<HHH", cubin, 0x3A)
    rows = [struct.unpack_from("<IIQQQQIIQQ", cubin, table + i * entry_size) for i in range(count)]
    names = rows[names_index][4]

    def name(start: int) -> str:
        return cubin[names + start : cubin.index(b"\0", names + start)].decode()

    return [Section(name(row[0]), row[4], row[5]) for row in rows]


def arch_of(cubin: bytes) -> int:
    """The SM number: in the low byte of e_flags up to ELF ABI 7, in the second byte from ABI 8 on."""
    (flags,) = struct.unpack_from("<I", cubin, 0x30)
    return (flags >> 8) & 0xFF if cubin[8] >= 8 else flags & 0xFF


def facts(cubin: bytes) -> Facts:
    """Reads the resources of a cubin that holds one kernel.

    Raises:
        ValueError: this is no cubin, or a record that every cubin has is missing.
    """
    info = next((s for s in sections(cubin) if s.name == ".nv.info"), None)
    if info is None:
        raise ValueError("a cubin must have a .nv.info section, got none")
    values: dict[int, int] = {}
    at, end = info.offset, info.offset + info.size
    while at < end:
        form, attribute, size = struct.unpack_from("<BBH", cubin, at)
        at += 4
        if form != _EIFMT_SIZED:
            continue
        if attribute in (_EIATTR_FRAME_SIZE, _EIATTR_REGCOUNT):
            values[attribute] = max(values.get(attribute, 0), struct.unpack_from("<I", cubin, at + 4)[0])
        at += size
    if _EIATTR_REGCOUNT not in values or _EIATTR_FRAME_SIZE not in values:
        raise ValueError("a cubin must name its registers and frame size in .nv.info")
    return Facts(arch_of(cubin), values[_EIATTR_REGCOUNT], values[_EIATTR_FRAME_SIZE])
