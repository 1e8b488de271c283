"""Keeps torch.compile from taking a graph off the disk that was traced with another version of the ops.

AOTAutograd looks a graph up by what was called, before the backward is traced. So the key of a graph that
calls an op holds nothing of the op's formula, and after an upgrade a stored backward would call what is gone.
"""

import hashlib
from pathlib import Path

import torch.compiler.config as compiler_config


def ops_fingerprint(folder: Path) -> str:
    """A short name for the formulas and fakes in a folder; it changes with any byte of its Python files."""
    digest = hashlib.sha256()
    for file in sorted(folder.glob("*.py")):
        digest.update(file.name.encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def tag_compile_cache(version: str) -> None:
    """Adds the ops' version and fingerprint to `torch.compiler.config.cache_key_tag` beside a user's."""
    ours = f"mamba_aot-{version}-{ops_fingerprint(Path(__file__).parent)}"
    theirs = compiler_config.cache_key_tag
    compiler_config.cache_key_tag = f"{theirs};{ours}" if theirs else ours
