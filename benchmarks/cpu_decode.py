"""Times a token of a 130m-shaped model on the CPU beside reading its weights, in float32 and bfloat16.

    python benchmarks/cpu_decode.py --out benchmarks/results/cpu/decode.json

Weights are random. Reading them is adding up as many bytes of float32 numbers, on all threads; it takes turns
with tokens, whose A is computed once, as in `generate`.
"""

import argparse
import json
from pathlib import Path

import torch
from turns import in_turn

from mamba_aot import MambaLM, MambaLMConfig, SSMConfig


def measure(dtype: torch.dtype, rounds: int) -> dict[str, float]:
    """Median milliseconds of a token, its layers and reading the weights; and the share of the bandwidth."""
    config = MambaLMConfig(24, 50280, SSMConfig(d_model=768), layers="m")
    model = MambaLM(config, dtype=dtype).eval()
    # The head's weight is the embedding's.
    size = sum(parameter.nbytes for parameter in model.parameters())
    weights, ids, state = torch.ones(size // 4), torch.tensor([5]), model.allocate_state(1)
    head = torch.nn.Linear(768, 1, bias=False, dtype=dtype)

    def layers() -> None:
        whole, model.lm_head = model.lm_head, head
        model.step(ids, state)
        model.lm_head = whole

    calls = {"token": lambda: model.step(ids, state), "layers": layers, "reading": weights.sum}
    with torch.inference_mode(), model.fixed_decays() as _decays:
        found = in_turn(calls, rounds)
    return {**found, "megabytes": size / 1e6, "share_of_bandwidth": found["reading"] / found["token"]}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--machine", default="not said", help="what the result says it ran on")
    options = parser.parse_args()
    torch.set_num_threads(2)
    torch.manual_seed(0)
    result = {"model": "24 layers of 768", "threads": 2, "unit": "ms", "torch": torch.__version__}
    result |= {"machine": options.machine}
    for dtype in (torch.float32, torch.bfloat16):
        result[str(dtype).removeprefix("torch.")] = measure(dtype, options.rounds)
    text = json.dumps(result, indent=2)
    print(text)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
