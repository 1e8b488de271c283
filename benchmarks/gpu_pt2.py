"""Times what torch.compile, CUDA graphs and AOTInductor make of a model on one GPU, and writes a record:

python benchmarks/gpu_pt2.py --out benchmarks/results/h200/pt2.json

Cold start is that of a fresh process, beyond torch's import and its own first forward and backward.
Decoding is greedy, batch 1, bfloat16, of a model of the shape of mamba-130m over bytes, in milliseconds a
token; the prompt is not counted. The record is written again after each part, and a part that is named by
`--parts` leaves what a file holds of others.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mamba_aot import Block, MambaLM, MambaLMConfig, SSMConfig, _native
from mamba_aot.benchmark import machine
from mamba_aot.export import write_package

ROOT = Path(__file__).parent.parent
PROMPT, FIRST, TOKENS = b"The statement", 200, 2048
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


def make_model() -> MambaLM:
    torch.manual_seed(0)
    config = MambaLMConfig(24, 256, SSMConfig(d_model=768), layers="m", tie_embeddings=False)
    return MambaLM(config, device="cuda", dtype=torch.bfloat16).eval()


def pace(tokens: Iterator[Any], count: int = TOKENS, repeats: int = 3) -> float:
    """Milliseconds a token, the median of `repeats` runs of `count` tokens after the first FIRST."""
    times = []
    for _ in range(FIRST):
        next(tokens)
    for _ in range(repeats):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        for _ in range(count):
            next(tokens)
        torch.cuda.synchronize()
        times.append((time.perf_counter() - begin) * 1e3 / count)
    return sorted(times)[repeats // 2]


def decode_rows() -> dict[str, float]:
    """Decoding with `MambaLM.stream`; its graph is also what `MambaLM.generate` runs."""
    model, prompt = make_model(), torch.tensor([list(PROMPT)], device="cuda")

    def tokens(**options: Any) -> Iterator[Any]:
        return model.stream(prompt, FIRST + 3 * TOKENS, temperature=0, **options)

    return {
        "python eager": pace(tokens(cuda_graph=False), count=200),
        "python CUDA graph": pace(tokens()),
        "python CUDA graph, every token read": pace(token.ids.item() for token in tokens()),
    }


@torch.no_grad()
def compiled_decode() -> dict[str, float]:
    model = make_model()
    state = model.allocate_state(1)
    for layer in state:
        torch._dynamo.mark_static_address(layer.conv)
        torch._dynamo.mark_static_address(layer.ssm)
    step = torch.compile(model.step, fullgraph=True, mode="reduce-overhead")

    def tokens() -> Iterator[Any]:
        ids = torch.zeros(1, dtype=torch.int64, device="cuda")
        while True:
            ids = step(ids, state).argmax(-1)
            yield ids.item()

    time_per_token = pace(tokens())
    skips = torch._dynamo.utils.counters["inductor"]["cudagraph_skips"]
    if skips:
        raise RuntimeError(f"reduce-overhead skipped CUDA graphs {skips} times")
    return {"python reduce-overhead, every token read": time_per_token}


def build_program(program: Path) -> None:
    """Compiles examples/cpp_deploy as docs/deploy.md says."""
    torch_root = Path(torch.__file__).parent
    include, libraries = torch_root / "include", torch_root / "lib"
    links = ["-Wl,--no-as-needed", "-ltorch", "-ltorch_cpu", "-ltorch_cuda", "-lc10", "-ldl"]
    command = ["g++", "-std=c++20", "-O2", f"-I{include}", f"-I{include}/torch/csrc/api/include"]
    command += [str(ROOT / "examples/cpp_deploy/main.cpp"), "-o", str(program), f"-L{libraries}"]
    subprocess.run([*command, f"-Wl,-rpath,{libraries}", *links], check=True)


def cpp_rows(program: Path | None, package: Path | None) -> dict[str, float]:
    """The text of examples/cpp_deploy, timed as it arrives."""
    with tempfile.TemporaryDirectory() as folder:
        if program is None:
            program = Path(folder, "mamba_continue")
            build_program(program)
        if package is None:
            package = Path(folder, "model.pt2")
            write_package(make_model(), package, batch=1)
        command = [str(program.resolve()), str(_native.library_path()), str(package), str(FIRST + 3 * TOKENS)]
        libraries = str(Path(torch.__file__).parent / "lib")
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "bufsize": 0}
        with subprocess.Popen(command, env={**os.environ, "LD_LIBRARY_PATH": libraries}, **pipes) as process:
            process.stdin.write(PROMPT)
            process.stdin.close()
            return {"C++, every token read": pace(iter(partial(process.stdout.read, 1), b""))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--program", type=Path, help="examples/cpp_deploy, if it is built already")
    parser.add_argument("--package", type=Path, help="its model, if it is exported already")
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "cold": lambda: {"cold_start_s": cold_start()},
        "decode": lambda: {"decode_ms_per_token": decode_rows()},
        "cpp": lambda: {"decode_ms_per_token": cpp_rows(arguments.program, arguments.package)},
        "compiled": lambda: {"decode_ms_per_token": compiled_decode()},
        "blocks": lambda: {"blocks": block_rows()},
    }
    parser.add_argument("--parts", nargs="+", choices=parts, default=list(parts))
    arguments = parser.parse_args()
    record = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    record["machine"] = machine.collect(torch.device("cuda"))
    for name in arguments.parts:
        for key, found in parts[name]().items():
            record[key] = {**record.get(key, {}), **found} if isinstance(found, dict) else found
        arguments.out.write_text(json.dumps(record, indent=2) + "\n")
    print(json.dumps(record, indent=2))


if __name__ == "__main__":
    main()
