"""A compiled variant, and how several lie in one file."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

_ALIGNMENT = 64


@dataclass(frozen=True)
class Image:
    """One compiled variant and what the launcher must know of it."""

    id: str
    variant: str
    entry: str
    data: bytes
    num_warps: int
    shared_bytes: int
    registers: int
    spill_bytes: int
    overlaps: bool

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()


def pack(images: Sequence[Image | None]) -> tuple[bytes, list[int]]:
    """Lays images one after another, each at a multiple of 64 bytes; gives the bytes and the starts."""
    packed, starts = bytearray(), []
    for image in images:
        packed += b"\0" * (-len(packed) % _ALIGNMENT)
        starts.append(len(packed))
        packed += image.data if image else b""
    return bytes(packed), starts
