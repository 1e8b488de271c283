"""Times the linear recurrence on the CPU beside `pscan` of the package `mambapy`, on the same numbers.

    pip install mambapy==1.2.0
    python benchmarks/cpu_recurrence.py --out benchmarks/results/cpu/recurrence.json

`mambapy` scans [batch, length, channels, state] along the length. Here the state is 1, or in "state in
front" the channels are the state, which is faster for it. Ours gets rows [batch, channels, length], and the
layout of `mambapy` as a transposed view.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import torch
from mambapy.pscan import pscan
from torch import Tensor
from turns import in_turn

from mamba_aot import linear_recurrence


def with_backward(scan: Callable[[Tensor, Tensor], Tensor], *values: Tensor) -> Callable[[], object]:
    """A call of forward and backward, from a gradient of the result that is there already."""
    a, b = (value.detach().requires_grad_() for value in values[:2])
    return lambda: torch.autograd.grad(scan(a, b), (a, b), values[2])


def peer_scan(a: Tensor, b: Tensor) -> Tensor:
    # The peer works in place on copies that it makes itself.
    return pscan(a, b)


def transposed_scan(a: Tensor, b: Tensor) -> Tensor:
    """Ours on the peer's layout [B, L, D, N]: along dimension 1."""
    return linear_recurrence(a.movedim(1, -1), b.movedim(1, -1)).movedim(-1, 1)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--machine", default="not said", help="what the result says it ran on")
    options = parser.parse_args()
    torch.set_num_threads(2)
    torch.manual_seed(0)
    batch, channels, length = 2, 1024, 2048
    a, b, grad = (torch.rand(batch, length, channels, 1) for _ in range(3))
    rows = [value.squeeze(-1).transpose(1, 2).contiguous() for value in (a, b, grad)]
    wide = [value.transpose(2, 3).contiguous() for value in (a, b, grad)]
    error = (linear_recurrence(*rows[:2]) - pscan(a, b).squeeze(-1).transpose(1, 2)).abs().max().item()
    assert error < 1e-3, f"the two must compute the same, they differ by {error}"

    with torch.no_grad():
        forward = in_turn(
            {
                "mamba_aot, rows": lambda: linear_recurrence(rows[0], rows[1]),
                "mamba_aot, layout of mambapy": lambda: transposed_scan(a, b),
                "mambapy": lambda: peer_scan(a, b),
                "mambapy, state in front": lambda: peer_scan(wide[0], wide[1]),
            },
            options.rounds,
        )
    both = in_turn(
        {
            "mamba_aot, rows": with_backward(linear_recurrence, *rows),
            "mamba_aot, layout of mambapy": with_backward(transposed_scan, a, b, grad),
            "mambapy": with_backward(peer_scan, a, b, grad),
            "mambapy, state in front": with_backward(peer_scan, *wide),
        },
        options.rounds,
    )
    print(
        f"B{batch} D{channels} L{length}, float32, 2 threads, torch {torch.__version__}; median milliseconds"
    )
    for title, row in (("forward", forward), ("forward + backward", both)):
        best = min(row["mambapy"], row["mambapy, state in front"])
        for name, time in row.items():
            print(f"{title:20} {name:30} {time:8.1f}   {best / time:5.1f} x the better mambapy")
    if options.out:
        result = dict(batch=batch, channels=channels, length=length, threads=2, unit="ms")
        result |= dict(torch=torch.__version__, machine=options.machine, max_difference=error)
        result |= dict(forward=forward, forward_backward=both)
        options.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
