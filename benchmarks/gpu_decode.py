"""Times decoding and prefill of published sizes, random weights: python benchmarks/gpu_decode.py --out DIR.

Decoding: a CUDA graph of one greedy step, its draw included, replayed; prefill: one call with the head on the
last token only. Medians; bfloat16. And the memory of a small model early and late in a long stream.
"""

import argparse
import json
from pathlib import Path

import torch

from mamba_aot import MambaLM, MambaLMConfig, SSMConfig
from mamba_aot.decoder import Decoder
from mamba_aot.decoding_graph import capture_step
from mamba_aot.sampling import Sampling

# Layers and width; batch sizes to decode; lengths to read.
SIZES = {"130m": (24, 768), "1.4b": (48, 2048), "2.8b": (64, 2560)}
BATCHES = {"130m": (1, 64), "1.4b": (1, 64), "2.8b": (1, 64)}
PREFILL = {"130m": 8192, "2.8b": 8192}


def median_ms(call, repeats: int = 11, calls: int = 1) -> float:
    call()
    times = []
    for _ in range(repeats):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        for _ in range(calls):
            call()
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end) / calls)
    return sorted(times)[repeats // 2]


@torch.inference_mode()
def decode_us(model: MambaLM, batch: int) -> float:
    rows = [torch.zeros(1, dtype=torch.int64, device="cuda")] * batch
    with model.fixed_decays() as _decays:
        decoder = Decoder(model, model.allocate_state(batch), rows, Sampling(temperature=0), ())
        return median_ms(capture_step(decoder), calls=20) * 1e3


@torch.inference_mode()
def prefill_ms(model: MambaLM, length: int) -> float:
    ids = torch.zeros(1, length, dtype=torch.int64, device="cuda")
    return median_ms(lambda: model(ids, model.allocate_state(1), last_only=True))


@torch.inference_mode()
def memory_of_a_stream(tokens: int) -> dict[str, int]:
    """Bytes allocated and reserved after 100 tokens and after all of them."""
    config = MambaLMConfig(2, 256, SSMConfig(d_model=256), layers="m")
    model = MambaLM(config, device="cuda", dtype=torch.bfloat16).eval()
    prompt = torch.zeros(16, dtype=torch.int64, device="cuda")
    row = {"tokens": tokens}
    for token in model.stream(prompt, tokens, seed=0):
        if token.index in (100, tokens - 1):
            when = "early" if token.index == 100 else "late"
            row[f"allocated_{when}"] = torch.cuda.memory_allocated()
            row[f"reserved_{when}"] = torch.cuda.memory_reserved()
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--sizes", nargs="+", default=list(SIZES), choices=SIZES)
    arguments = parser.parse_args()
    record = {
        "gpu": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "dtype": "bfloat16",
        "rows": [],
    }
    for name in arguments.sizes:
        n_layer, width = SIZES[name]
        config = MambaLMConfig(n_layer, 50280, SSMConfig(d_model=width), layers="m")
        model = MambaLM(config, device="cuda", dtype=torch.bfloat16).eval()
        weights = sum(p.numel() * p.element_size() for p in model.parameters())
        for batch in BATCHES[name]:
            us = decode_us(model, batch)
            row = {"model": name, "batch": batch, "decode_us": us, "weights_tb_per_s": weights / us / 1e6}
            record["rows"].append(row)
            print(row)
        if name in PREFILL:
            row = {"model": name, "length": PREFILL[name], "prefill_ms": prefill_ms(model, PREFILL[name])}
            record["rows"].append(row)
            print(row)
        del model
        torch.cuda.empty_cache()
    record["stream"] = memory_of_a_stream(100_000)
    print(record["stream"])
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "decode.json").write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
