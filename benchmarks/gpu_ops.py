"""Times the ops on one GPU and writes a record: python benchmarks/gpu_ops.py --out benchmarks/results/h200.

Device time: CUDA events around repeated calls behind a sleeping kernel, so that the host is ahead; medians.
"""

import argparse
import json
import platform
import subprocess
import time
from pathlib import Path

import torch

from mamba_aot import causal_conv1d_fn, causal_conv1d_update, selective_scan_fn, selective_state_update

# [batch, channels, length], and what mamba_ssm's scan forward and backward take there on an H200, in us.
SHAPES = {(8, 1024, 2048): (304, 1184), (1, 2048, 2048): (87, 370), (8, 5120, 2048): (1447, 5648)}
STATE = 16


def device_time(call, calls: int = 10, repeats: int = 9) -> float:
    """Median microseconds a call."""
    call()
    call()
    times = []
    for _ in range(repeats):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda._sleep(int(4e6))
        begin.record()
        for _ in range(calls):
            call()
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end) * 1e3 / calls)
    return sorted(times)[repeats // 2]


def host_time(call, calls: int = 100) -> float:
    """Microseconds that a call keeps the host busy."""
    call()
    torch.cuda.synchronize()
    begin = time.perf_counter()
    for _ in range(calls):
        call()
    spent = (time.perf_counter() - begin) / calls
    torch.cuda.synchronize()
    return spent * 1e6


def operand(
    batch: int, channels: int, length: int, channel_last: bool, scale: float = 1.0, shift: float = 0.0
):
    rows = (batch, length, channels) if channel_last else (batch, channels, length)
    x = (torch.randn(rows, device="cuda") * scale + shift).bfloat16()
    return x.transpose(1, 2) if channel_last else x


def scan_rows(batch: int, channels: int, length: int, channel_last: bool) -> list[dict]:
    u, z, dout = (operand(batch, channels, length, channel_last) for _ in range(3))
    delta = operand(batch, channels, length, channel_last, 0.5, -3.0)
    A = -torch.rand(channels, STATE, device="cuda") * STATE
    B, C = (torch.randn(batch, STATE, length, device="cuda").bfloat16() for _ in range(2))
    D, bias = torch.randn(channels, device="cuda"), torch.zeros(channels, device="cuda")
    forward = device_time(lambda: selective_scan_fn(u, delta, A, B, C, D, z, bias, True))
    host = host_time(lambda: selective_scan_fn(u, delta, A, B, C, D, z, bias, True))
    op = torch.ops.mamba_aot
    B4, C4 = B.unsqueeze(1), C.unsqueeze(1)
    absent = (None, None, None)
    saved = op.selective_scan_fwd(u, delta, A, B4, C4, D, z, bias, None, *absent, True, False, True)[2]
    backward = device_time(
        lambda: op.selective_scan_bwd(
            dout, None, u, delta, A, B4, C4, D, z, bias, *absent, saved, True, False
        ),
        4,
    )
    saved = None
    leaves = [t.requires_grad_() for t in (u, delta, A, B, C, D, z, bias)]
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    selective_scan_fn(*leaves, True).backward(dout)
    torch.cuda.synchronize()
    peak = (torch.cuda.max_memory_allocated() - before) / (u.numel() * u.element_size())
    elements = batch * channels * length
    peer = SHAPES[batch, channels, length]
    common = {"shape": [batch, channels, length], "layout": "channel-last" if channel_last else "seq-last"}
    return [
        {"op": "selective_scan forward", **common, "us": forward, "ps_per_element": forward / elements * 1e6}
        | {"host_us": host, "mamba_ssm_us": peer[0]},
        {
            "op": "selective_scan backward",
            **common,
            "us": backward,
            "ps_per_element": backward / elements * 1e6,
        }
        | {"peak_memory_of_u": peak, "mamba_ssm_us": peer[1]},
    ]


def conv_rows(batch: int, channels: int, length: int, channel_last: bool) -> list[dict]:
    x, dout = (operand(batch, channels, length, channel_last) for _ in range(2))
    weight, bias = torch.randn(channels, 4, device="cuda"), torch.randn(channels, device="cuda")
    op = torch.ops.mamba_aot
    forward = device_time(lambda: causal_conv1d_fn(x, weight, bias, activation="silu"))
    backward = device_time(lambda: op.causal_conv1d_bwd(dout, x, weight, bias, None, None, True), 4)
    common = {"shape": [batch, channels, length], "layout": "channel-last" if channel_last else "seq-last"}
    return [
        {"op": "causal_conv1d forward", **common, "us": forward},
        {"op": "causal_conv1d backward", **common, "us": backward},
    ]


def step_rows(batch: int, channels: int) -> list[dict]:
    x, dt, z = (torch.randn(batch, channels, device="cuda").bfloat16() for _ in range(3))
    A = -torch.rand(channels, STATE, device="cuda")
    B, C = (torch.randn(batch, STATE, device="cuda").bfloat16() for _ in range(2))
    state = torch.zeros(batch, channels, STATE, device="cuda")
    window = torch.zeros(batch, channels, 4, device="cuda", dtype=torch.bfloat16)
    weight, bias = torch.randn(channels, 4, device="cuda"), torch.randn(channels, device="cuda")
    steps = {
        "state_update": lambda: selective_state_update(state, x, dt, A, B, C, bias, z, bias, True),
        "causal_conv1d_update": lambda: causal_conv1d_update(x, window, weight, bias, "silu"),
    }
    shape = {"shape": [batch, channels]}
    return [
        {"op": name, **shape, "us": device_time(call, 50), "host_us": host_time(call)}
        for name, call in steps.items()
    ]


def command(*words: str) -> str:
    result = subprocess.run(words, capture_output=True, text=True)
    return result.stdout.strip() if result.returncode == 0 else ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--commit", default=command("git", "rev-parse", "HEAD"))
    arguments = parser.parse_args()
    torch.manual_seed(0)
    rows = []
    for shape in SHAPES:
        for channel_last in (False, True):
            rows += scan_rows(*shape, channel_last) + conv_rows(*shape, channel_last)
    rows += step_rows(64, 5120) + step_rows(1, 1536)
    for row in rows:
        print("  ".join(f"{k} {v:.1f}" if isinstance(v, float) else f"{v}" for k, v in row.items()))
    record = {
        "commit": arguments.commit,
        "gpu": torch.cuda.get_device_name(),
        "driver": command("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "dtype": "bfloat16",
        "state": STATE,
        "rows": rows,
    }
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "ops.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
