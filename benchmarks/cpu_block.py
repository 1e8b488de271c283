"""Times one Mamba block on the CPU beside the block of the package `mambapy`, on the same weights and input.

    pip install mambapy==1.2.0
    python benchmarks/cpu_block.py --out benchmarks/results/cpu/block.json

The block is the published one: real A, Euler, no gate on the decay. `mambapy` runs its sequential scan
forward and its parallel scan (pscan) for forward and backward.
"""

import argparse
import json
from pathlib import Path

import torch
from mambapy.mamba import MambaBlock, MambaConfig
from turns import in_turn

from mamba_aot import Mamba, SSMConfig


def same_block(peer: MambaBlock) -> Mamba:
    """Our block with the peer's weights."""
    options = {"A_real": True, "discretization": "euler", "decay_gate": False}
    block = Mamba(SSMConfig(d_model=peer.config.d_model, d_state=peer.config.d_state, **options))
    kept = ("in_proj", "conv1d", "D", "out_proj")
    weights = {name: t for name, t in peer.state_dict().items() if name.startswith(kept)}
    weights |= {"A_log_real": peer.A_log, "s_proj.x_proj.weight": peer.x_proj.weight}
    weights |= {"s_proj.dt_proj.weight": peer.dt_proj.weight, "s_proj.dt_bias": peer.dt_proj.bias}
    weights |= {name: torch.zeros(peer.config.d_state) for name in ("B_base", "C_base")}
    block.load_state_dict(weights)
    return block


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--machine", default="not said", help="what the result says it ran on")
    options = parser.parse_args()
    torch.set_num_threads(2)
    torch.manual_seed(0)
    sequential = MambaBlock(MambaConfig(d_model=512, n_layers=1, pscan=False))
    parallel = MambaBlock(MambaConfig(d_model=512, n_layers=1, pscan=True))
    parallel.load_state_dict(sequential.state_dict())
    ours = same_block(sequential)
    x = torch.randn(2, 512, 512, requires_grad=True)
    error = (ours(x) - sequential(x)).abs().max().item()
    assert error < 1e-3, f"the two blocks must compute the same, they differ by {error}"

    with torch.no_grad():
        forward = in_turn({"mamba_aot": lambda: ours(x), "mambapy": lambda: sequential(x)}, options.rounds)
    both = in_turn(
        {"mamba_aot": lambda: ours(x).sum().backward(), "mambapy": lambda: parallel(x).sum().backward()},
        options.rounds,
    )
    print(f"B2 L512 d_model 512 N16, float32, 2 threads, torch {torch.__version__}; median milliseconds")
    for name, row in (("forward", forward), ("forward + backward", both)):
        ratio = row["mambapy"] / row["mamba_aot"]
        print(f"{name:20} mamba_aot {row['mamba_aot']:7.1f}   mambapy {row['mambapy']:7.1f}   {ratio:4.1f} x")
    if options.out:
        result = dict(batch=2, length=512, d_model=512, threads=2, unit="ms", torch=torch.__version__)
        result |= dict(machine=options.machine, max_difference=error, forward=forward, forward_backward=both)
        options.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
