"""What the figures were measured on."""

import hashlib
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

from mamba_aot import _native

_ASKED = ("driver_version", "clocks.max.sm", "clocks.sm", "clocks.mem", "power.limit")


def collect(device: torch.device) -> dict[str, Any]:
    """Device, clocks, versions, and the library by its hash and by what it was built from, ready for JSON."""
    library = Path(_native.library_path()).read_bytes()
    facts: dict[str, Any] = {
        "device": _processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "library_sha256": hashlib.sha256(library).hexdigest(),
        "library_build": _native.build_info(),
        "commit": commit(),
    }
    if device.type == "cuda":
        facts |= {"device": torch.cuda.get_device_name(device), "driver": None, "max_clock_mhz": None}
        found = _nvidia_smi(device)
        if found:
            facts |= {"driver": found[0], "max_clock_mhz": _number(found[1]), "clock_mhz": _number(found[2])}
            facts |= {"memory_clock_mhz": _number(found[3]), "power_limit_w": _number(found[4])}
    return facts


def line(facts: dict[str, Any], bandwidth: float) -> str:
    """The facts in one line."""
    parts = [facts["device"]]
    if "driver" in facts:
        clocks = "unknown" if not facts["max_clock_mhz"] else f"up to {facts['max_clock_mhz']:.0f} MHz"
        parts += [f"driver {facts['driver'] or 'unknown'}", f"clocks {clocks}"]
    else:
        parts.append(f"{facts['threads']} threads")
    parts += [f"copy {bandwidth / 1e9:.0f} GB/s", f"torch {facts['torch']}"]
    parts += [f"library {facts['library_sha256'][:12]}", f"commit {facts['commit'][:12]}"]
    return "   ".join(parts)


def commit() -> str:
    """Of the checkout that this package lies in, or what `MAMBA_AOT_COMMIT` names where there is none."""
    named = os.environ.get("MAMBA_AOT_COMMIT")
    if named:
        return named
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return "unknown"
    return _command("git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40") or "unknown"


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    names = (
        [row for row in info.read_text().splitlines() if row.startswith("model name")]
        if info.is_file()
        else []
    )
    return names[0].partition(":")[2].strip() if names else platform.machine()


def _nvidia_smi(device: torch.device) -> list[str]:
    identity = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
    told = _command(
        "nvidia-smi", f"--id={identity}", f"--query-gpu={','.join(_ASKED)}", "--format=csv,noheader,nounits"
    )
    values = [value.strip() for value in told.split(",")]
    return values if len(values) == len(_ASKED) else []


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _command(*words: str) -> str:
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
