"""Loads the op library once, and says in one sentence what to do when that can't be."""

from __future__ import annotations

import ctypes
import functools
import json
import os
import struct
from pathlib import Path
from typing import Any

import torch

_API_VERSION = 2
_OLDEST_TORCH = (2, 10)


class _Image(ctypes.Structure):
    """`mamba_aot_image` of csrc/runtime/c_api.h."""

    _fields_ = [
        ("id", ctypes.c_char_p),
        ("variant", ctypes.c_char_p),
        ("stem", ctypes.c_char_p),
        ("entry", ctypes.c_char_p),
        ("sha256", ctypes.c_char_p),
        ("data", ctypes.POINTER(ctypes.c_ubyte)),
        ("size", ctypes.c_uint64),
        ("arch", ctypes.c_int32),
        ("ptx", ctypes.c_int32),
        ("num_warps", ctypes.c_int32),
        ("shared_bytes", ctypes.c_int32),
        ("registers", ctypes.c_int32),
        ("spill_bytes", ctypes.c_int32),
    ]


def library_path() -> Path:
    """Where the op library lies: beside this file, or where `MAMBA_AOT_LIBRARY` says."""
    chosen = os.environ.get("MAMBA_AOT_LIBRARY")
    return Path(chosen) if chosen else Path(__file__).with_name("libmamba_aot.so")


@functools.cache
def library() -> ctypes.CDLL:
    """Loads the op library; this registers `torch.ops.mamba_aot`.

    Raises:
        ImportError: torch is too old, or the file is missing, broken, from another version, or a second copy.
    """
    path = library_path()
    _require_torch()
    if not path.is_file():
        raise ImportError(
            f"mamba_aot: the op library must be at {path}, but there is no such file; "
            "build it with `pip install .` or `python -m tools.aot build`, or let MAMBA_AOT_LIBRARY name one"
        )
    if hasattr(torch.ops.mamba_aot, "selective_scan_fwd"):
        raise ImportError(
            "mamba_aot: another copy of the op library is registered in this process already; "
            f"keep one of the two installations (this one is at {path})"
        )
    try:
        complete = _is_complete(path)
    except OSError as error:
        raise ImportError(
            f"mamba_aot: the op library at {path} cannot be read ({error.strerror}); "
            "let this user read it, or reinstall mamba-aot"
        ) from error
    if not complete:
        raise ImportError(
            f"mamba_aot: the op library at {path} is incomplete ({path.stat().st_size} bytes); "
            "reinstall mamba-aot"
        )
    try:
        native = ctypes.CDLL(str(path))
    except OSError as error:
        raise ImportError(
            f"mamba_aot: the op library at {path} could not be loaded ({error}); "
            "it was built for another machine or another torch: reinstall mamba-aot"
        ) from error
    version = getattr(native, "mamba_aot_api_version", None)
    if version is None or version() != _API_VERSION:
        got = "none" if version is None else str(version())
        raise ImportError(
            f"mamba_aot: the library at {path} must have C interface version {_API_VERSION}, got {got}; "
            "it belongs to another version of the package: reinstall mamba-aot"
        )
    native.mamba_aot_build_info.restype = ctypes.c_char_p
    return native


def _is_complete(path: Path) -> bool:
    """Whether an ELF file reaches to the end of its section table; the loader dies of SIGBUS otherwise."""
    with path.open("rb") as file:
        header = file.read(64)
    if len(header) < 64 or header[:4] != b"\x7fELF":
        return False
    (table,) = struct.unpack_from("<Q", header, 0x28)
    entry_size, count = struct.unpack_from("<HH", header, 0x3A)
    return path.stat().st_size >= table + entry_size * count


def _require_torch() -> None:
    numbers = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
    if numbers < _OLDEST_TORCH:
        oldest = ".".join(map(str, _OLDEST_TORCH))
        raise ImportError(
            f"mamba_aot: needs torch {oldest} or newer, got {torch.__version__}; run: pip install "
            f"'torch>={oldest}'"
        )


def _rows() -> list[_Image]:
    native = library()
    rows = [_Image() for _ in range(native.mamba_aot_image_count())]
    for index, row in enumerate(rows):
        native.mamba_aot_get_image(index, ctypes.byref(row))
    return rows


def variants() -> list[dict[str, Any]]:
    """A row for every kernel image in the library.

    Keys: `id` (`selective_scan_fwd-sm90-bf16-few`), `variant` (the id without the architecture), `stem` (of
    the kernel file), `entry` (symbol), `arch` (90 for compute capability 9.0), `ptx` (text that the driver
    compiles), `num_warps`, `shared_bytes` a program, `registers` and `spill_bytes` a thread (0 for PTX),
    `size` in bytes, `sha256`.
    """
    names = [field[0] for field in _Image._fields_ if field[0] != "data"]
    rows = [{name: getattr(row, name) for name in names} for row in _rows()]
    for row in rows:
        row.update({name: value.decode() for name, value in row.items() if isinstance(value, bytes)})
        row["ptx"] = bool(row["ptx"])
    return rows


def image(id: str) -> bytes:
    """The bytes of an image: a cubin, or PTX with a closing zero byte.

    Raises:
        KeyError: no image has this id.
    """
    for row in _rows():
        if row.id.decode() == id:
            return ctypes.string_at(row.data, row.size)
    raise KeyError(f"image: id must be one of variants()'s, got {id}")


def build_info() -> dict[str, Any]:
    """What the library was built from: version, architectures, triton, ptxas, torch headers, compiler."""
    return json.loads(library().mamba_aot_build_info())


def set_tuned(name: str, value: int | None) -> None:
    """Sets a tuned number for the rest of the process; None gives the measured values back.

    Raises:
        KeyError: The library has no number of this name.
        ValueError: The value is negative.
    """
    if value is not None and value < 0:
        raise ValueError(f"set_tuned: value must be at least 0, got {value}")
    asked = ctypes.c_int64(-1 if value is None else value)
    if library().mamba_aot_set_tuned(name.encode(), asked):
        raise KeyError(f"set_tuned: name must be one of csrc/kernels/tuned, got {name}")


def preload(device: torch.device | str | int | None = None) -> None:
    """Loads every kernel for a CUDA device, so that no later call waits for it.

    Args:
        device: A CUDA device or its index; None is torch's current one.

    Raises:
        ValueError: `device` is not a CUDA device.
        RuntimeError: no driver, torch without CUDA, or no image for this GPU.
    """
    if not isinstance(device, int):
        device = torch.device("cuda" if device is None else device)
        if device.type != "cuda":
            raise ValueError(
                f"preload: device must be a CUDA device, got {device}; a CPU has nothing to load"
            )
        # Asking for the current device would start CUDA, for which a sentence of ours comes first.
        current = torch.cuda.current_device() if torch.cuda.is_available() else 0
        device = current if device.index is None else device.index
    message = ctypes.create_string_buffer(4096)
    if library().mamba_aot_preload(ctypes.c_int32(device), message, ctypes.c_uint64(len(message))):
        raise RuntimeError(message.value.decode())
