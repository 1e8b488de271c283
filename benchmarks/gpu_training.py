"""Times a training step of a published block: python benchmarks/gpu_training.py --out DIR.

Batch 8, length 2048, width 768 (the layers of the 130m model), bfloat16 autocast, parameters in float32.
Medians of forward and of forward with backward, of the block as it is and compiled.
"""

import argparse
import json
from pathlib import Path

import torch

from mamba_aot import Mamba1

BATCH, LENGTH, WIDTH = 8, 2048, 768


def median_us(call, repeats: int = 11, calls: int = 5) -> float:
    for _ in range(3):
        call()
    times = []
    for _ in range(repeats):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        for _ in range(calls):
            call()
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end) / calls * 1e3)
    return sorted(times)[repeats // 2]


def row_of(name: str, block: torch.nn.Module, x: torch.Tensor, dout: torch.Tensor) -> dict[str, object]:
    leaves = [x, *block.parameters()]

    def forward() -> torch.Tensor:
        with torch.autocast("cuda", dtype=torch.bfloat16):
            return block(x)

    def both() -> None:
        out = forward()
        torch.autograd.grad(out, leaves, dout.to(out.dtype))

    both()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    both()
    peak = (torch.cuda.max_memory_allocated() - before) / 2**20
    row = {"block": name, "forward_us": median_us(forward), "both_us": median_us(both), "peak_mib": peak}
    print(row)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    block = Mamba1(WIDTH, device="cuda")
    x = torch.randn(BATCH, LENGTH, WIDTH, device="cuda", requires_grad=True)
    dout = torch.randn_like(x)
    record = {
        "gpu": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "batch": BATCH,
        "length": LENGTH,
        "width": WIDTH,
        "rows": [row_of("as it is", block, x, dout), row_of("compiled", torch.compile(block), x, dout)],
    }
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "training.json").write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
