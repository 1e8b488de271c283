"""Times what torch.compile, CUDA graphs and AOTInductor make of a model on one GPU, and writes a record:

python benchmarks/gpu_pt2.py --out benchmarks/results/h200/pt2.json

Cold start is that of a fresh process, beyond torch's import and its own first forward and backward.
Decoding is greedy, batch 1, of a model of the shape of mamba-130m over bytes, in milliseconds a token.
"""

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from mamba_aot import Block, MambaLM, MambaLMConfig, SSMConfig, _native
from mamba_aot.export import write_package

ROOT = Path(__file__).parent.parent
PROMPT, TOKENS = b"The statement", 512
PUBLISHED = {"A_real": True, "discretization": "euler", "decay_gate": False}

COLD_START = """
import time, torch
a = torch.randn(64, 64, device="cuda", requires_grad=True)
(a @ a).sum().backward()
torch.cuda.synchronize()
begin = time.perf_counter()
import mamba_aot
block = mamba_aot.Block(mamba_aot.SSMConfig(d_model=512), device="cuda", dtype=torch.bfloat16)
block(torch.randn(2, 512, 512, device="cuda", dtype=torch.bfloat16)).sum().backward()
torch.cuda.synchronize()
print(time.perf_counter() - begin)
"""


def cold_start(repeats: int = 5) -> float:
    """Median seconds."""
    command = [sys.executable, "-c", COLD_START]
    runs = [
        subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True) for _ in range(repeats)
    ]
    return sorted(float(run.stdout) for run in runs)[repeats // 2]


def milliseconds(call: Callable[[], object], repeats: int = 20) -> float:
    """Median of single calls, the device waited for."""
    for _ in range(5):
        call()
    times = []
    for _ in range(repeats):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        call()
        torch.cuda.synchronize()
        times.append((time.perf_counter() - begin) * 1e3)
    return sorted(times)[repeats // 2]


def train(block: Callable[[Tensor], Tensor], x: Tensor, weight: Tensor) -> None:
    block(x).backward(weight)


def block_rows() -> list[dict]:
    """Forward and backward of a block, eager and compiled."""
    rows = []
    for kind, options in (("default", {}), ("published", PUBLISHED)):
        block = Block(SSMConfig(d_model=1024, **options), device="cuda", dtype=torch.bfloat16)
        x = torch.randn(8, 2048, 1024, device="cuda", dtype=torch.bfloat16, requires_grad=True)
        weight = torch.randn_like(x)
        compiled = torch.compile(block, fullgraph=True)
        row = {"block": kind, "shape": "B8 L2048 d_model 1024 bf16"}
        for name, call in (("eager", block), ("compiled", compiled)):
            row[f"{name}_ms"] = milliseconds(partial(train, call, x, weight))
        rows.append(row)
    return rows


def greedy(step: Callable[[Tensor], Tensor], first: Tensor) -> float:
    """Milliseconds a token of a loop that reads every token, as a program that prints it does."""
    ids = first
    for _ in range(20):
        ids = step(ids).argmax(-1)
    torch.cuda.synchronize()
    begin = time.perf_counter()
    for _ in range(TOKENS):
        ids = step(ids).argmax(-1)
        ids.item()
    return (time.perf_counter() - begin) * 1e3 / TOKENS


@torch.inference_mode()
def decode_rows(model: MambaLM) -> dict[str, float]:
    """Milliseconds a token of decoding in Python."""
    first = torch.zeros(1, dtype=torch.int64, device="cuda")
    state = model.allocate_state(1)
    rows = {"python eager": greedy(lambda ids: model.step(ids, state), first)}

    given, logits = first.clone(), torch.empty(1, 256, device="cuda")
    logits.copy_(model.step(given, state))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        logits.copy_(model.step(given, state))

    def replay(ids: Tensor) -> Tensor:
        given.copy_(ids)
        graph.replay()
        return logits

    return rows | {"python CUDA graph": greedy(replay, first)}


@torch.no_grad()
def compiled_decode(model: MambaLM) -> float:
    state = model.allocate_state(1)
    for layer in state:
        torch._dynamo.mark_static_address(layer.conv)
        torch._dynamo.mark_static_address(layer.ssm)
    step = torch.compile(model.step, fullgraph=True, mode="reduce-overhead")
    time_per_token = greedy(lambda ids: step(ids, state), torch.zeros(1, dtype=torch.int64, device="cuda"))
    skips = torch._dynamo.utils.counters["inductor"]["cudagraph_skips"]
    if skips:
        raise RuntimeError(f"reduce-overhead skipped CUDA graphs {skips} times")
    return time_per_token


def cpp_decode(model: MambaLM) -> float:
    """Milliseconds a token of examples/cpp_deploy: the difference of two runs, without loading."""
    libraries = Path(torch.__file__).parent / "lib"
    include = Path(torch.__file__).parent / "include"
    with tempfile.TemporaryDirectory() as folder:
        program, package = f"{folder}/mamba_continue", f"{folder}/model.pt2"
        write_package(model, package)
        links = ["-Wl,--no-as-needed", "-ltorch", "-ltorch_cpu", "-ltorch_cuda", "-lc10", "-ldl"]
        command = ["g++", "-std=c++20", "-O2", f"-I{include}", f"-I{include}/torch/csrc/api/include"]
        command += [str(ROOT / "examples/cpp_deploy/main.cpp"), "-o", program, f"-L{libraries}"]
        subprocess.run([*command, f"-Wl,-rpath,{libraries}", *links], check=True)

        def seconds(count: int) -> float:
            begin = time.perf_counter()
            arguments = [program, str(_native.library_path()), package, str(count)]
            subprocess.run(arguments, input=PROMPT, capture_output=True, check=True)
            return time.perf_counter() - begin

        seconds(1)
        short, long = (sorted(seconds(count) for _ in range(3))[1] for count in (20, 20 + TOKENS))
    return (long - short) * 1e3 / TOKENS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    out = parser.parse_args().out
    torch.manual_seed(0)
    model = MambaLM(MambaLMConfig(n_layer=24, ssm=SSMConfig(d_model=768, **PUBLISHED)), device="cuda").eval()
    decode = {**decode_rows(model), "python reduce-overhead": compiled_decode(model)}
    decode["C++"] = cpp_decode(model)
    record = {
        "gpu": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "library": _native.build_info(),
        "cold_start_s": cold_start(),
        "blocks": block_rows(),
        "decode_ms_per_token": decode,
    }
    out.write_text(json.dumps(record, indent=2) + "\n")
    print(json.dumps(record, indent=2))


if __name__ == "__main__":
    main()
