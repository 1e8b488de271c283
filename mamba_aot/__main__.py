"""`python -m mamba_aot` is the command `mamba-aot`."""

from mamba_aot.cli import main

main()
