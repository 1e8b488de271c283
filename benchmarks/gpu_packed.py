"""Times the scan of packed sequences beside that of rows without packing on one GPU, and writes a record:

python benchmarks/gpu_packed.py --out benchmarks/results/h200/packed.json

bf16 in, N = 16, with z, D, delta_bias and softplus; CUDA graphs between events, arguments not in the cache,
medians, microseconds of the whole op. The same steps make one row, sequences by cu_seqlens, or sequences by
seq_idx; the time to find out where these begin is in it. Every kind is compared with the sequences one by one
first.
"""

import argparse
import itertools
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mamba_aot import selective_scan_fn
from mamba_aot.benchmark import cases, machine, timing
from mamba_aot.benchmark.runner import timed_calls
from mamba_aot.benchmark.shapes import make_work

# Channels, and lengths of the sequences of the only row.
SHAPES = [
    (2048, [1024] * 16),
    (2048, [200, 1800, 700, 1300, 96] * 4),
    (5120, [2048] * 8),
    (1024, [4096]),
    (1536, [300, 5000, 92, 2800]),
]
ALONG_TIME = ("u", "delta", "B", "C", "z")


def kinds(lengths: list[int], device: torch.device) -> dict[str, dict[str, Tensor]]:
    """The ways to say where the sequences begin, as arguments of the op."""
    ends = torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32, device=device)
    number = torch.arange(len(lengths), dtype=torch.int32, device=device)
    index = number.repeat_interleave(torch.tensor(lengths, device=device))[None]
    return {"row": {}, "cu_seqlens": {"cu_seqlens": ends}, "seq_idx": {"seq_idx": index}}


def check(inputs: dict[str, Any], packing: dict[str, Tensor], lengths: list[int]) -> None:
    """Compares outputs with those of the sequences one by one, to a rounding of bfloat16."""
    begin, whole = 0, selective_scan_fn(**inputs, **packing)
    for length in lengths:
        steps = slice(begin, begin + length)
        alone = selective_scan_fn(
            **{k: v[..., steps].contiguous() if k in ALONG_TIME else v for k, v in inputs.items()}
        )
        torch.testing.assert_close(whole[..., steps], alone, rtol=2**-7, atol=2**-7)
        begin += length


def rows(device: torch.device) -> list[dict[str, Any]]:
    found = []
    for channels, lengths in SHAPES:
        work = make_work("selective_scan", f"B1 D{channels} L{sum(lengths)}", "bfloat16")
        with torch.no_grad():
            inputs = cases.enlarge(work, cases.sample(work), device)
        for kind, packing in kinds(lengths, device).items():
            if packing:
                with torch.no_grad():
                    check(inputs, packing, lengths)

            def scan(packing: dict[str, Tensor] = packing, **tensors: Any) -> Tensor:
                return selective_scan_fn(**tensors, **packing)

            times = {}
            for direction in ("forward", "backward"):
                calls = timed_calls(scan, inputs, direction == "backward", device)
                times[f"{direction}_us"] = timing.time_interleaved({"": calls}, device)[""] * 1e3
            found.append({"channels": channels, "lengths": lengths, "kind": kind, **times})
            print(f"D{channels} {len(lengths)} sequences {kind}: {times}", flush=True)
            torch.cuda.empty_cache()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    out = parser.parse_args().out
    device = torch.device("cuda", torch.cuda.current_device())
    with torch.cuda.stream(torch.cuda.Stream()):
        record = {"machine": machine.collect(device), "rows": rows(device)}
    out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
