"""Times prompts of a few lengths by mamba1_sequence and by modules: python benchmarks/gpu_prefill.py.

24 published blocks of d_model 768, random weights, bfloat16; milliseconds until the call returns, and until
the GPU has ended. What the host takes is the difference between machines.
"""

import argparse
import time
from unittest.mock import patch

import torch

from mamba_aot import Mamba1, MambaLM, MambaLMConfig, SSMConfig

_ROUNDS = 7


@torch.inference_mode()
def prompt_ms(model: MambaLM, length: int) -> tuple[float, float]:
    """Medians of what the host and what the whole call takes."""
    ids = torch.zeros(1, length, dtype=torch.int64, device=model.device)
    state = model.allocate_state(1)
    rounds = []
    with model.fixed_decays():
        for _ in range(_ROUNDS + 2):
            begin = time.perf_counter()
            model(ids, state, last_only=True)
            returned = time.perf_counter()
            if model.device.type == "cuda":
                torch.cuda.synchronize()
            rounds.append((returned - begin, time.perf_counter() - begin))
    host, whole = (sorted(times)[_ROUNDS // 2] * 1e3 for times in zip(*rounds[2:], strict=True))
    return host, whole


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--lengths", type=int, nargs="+", default=[256, 2048, 8192])
    given = parser.parse_args()
    config = MambaLMConfig(given.layers, 50280, SSMConfig(d_model=given.width), layers="m")
    model = MambaLM(config, device=given.device, dtype=torch.bfloat16).eval()
    print("tokens  by          host ms   whole ms")
    for length in given.lengths:
        host, whole = prompt_ms(model, length)
        print(f"{length:6}  {'the op':10} {host:8.2f} {whole:10.2f}")
        with patch.object(Mamba1, "_mixes", lambda *_: False):
            host, whole = prompt_ms(model, length)
        print(f"{length:6}  {'modules':10} {host:8.2f} {whole:10.2f}")


if __name__ == "__main__":
    main()
