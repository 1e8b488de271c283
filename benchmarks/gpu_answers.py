"""Times short answers with a graph of their own and with a kept one: python benchmarks/gpu_answers.py.

Published blocks, random weights, bfloat16, the most probable token; milliseconds of a whole call of
`generate`, medians. What the host takes is the difference between machines.
"""

import argparse
import functools
import json
import time
from collections.abc import Callable
from pathlib import Path

import torch

from mamba_aot import DecodingGraphs, MambaLM, MambaLMConfig, SSMConfig
from mamba_aot.benchmark.machine import collect

_ROUNDS = 7


def median_ms(call: Callable[[], object]) -> float:
    """Of some calls, until the GPU has ended; the first two do not count."""
    rounds = []
    for _ in range(_ROUNDS + 2):
        begin = time.perf_counter()
        call()
        torch.cuda.synchronize()
        rounds.append(time.perf_counter() - begin)
    return sorted(rounds[2:])[_ROUNDS // 2] * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=["24x768", "64x2560"], help="layers x d_model")
    parser.add_argument("--prompt", type=int, default=64, help="tokens")
    parser.add_argument("--answers", type=int, nargs="+", default=[32, 128], help="tokens")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    found = []
    print("model     answer   new ms   kept ms")
    for name in given.models:
        layers, width = map(int, name.split("x"))
        config = MambaLMConfig(layers, 50280, SSMConfig(d_model=width), layers="m")
        model = MambaLM(config, device="cuda", dtype=torch.bfloat16).eval()
        ids = torch.zeros(1, given.prompt, dtype=torch.int64, device="cuda")
        for tokens in given.answers:
            answer = functools.partial(model.generate, ids, tokens, temperature=0)
            new = median_ms(answer)
            kept = median_ms(functools.partial(answer, graphs=DecodingGraphs()))
            print(f"{name:9} {tokens:6} {new:8.2f} {kept:9.2f}")
            shape = {"model": name, "prompt": given.prompt, "answer": tokens}
            found.append(shape | {"new_ms": round(new, 2), "kept_ms": round(kept, 2)})
    if given.out is not None:
        record = {"what": __doc__, "machine": collect(torch.device("cuda")), "answers": found}
        given.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
