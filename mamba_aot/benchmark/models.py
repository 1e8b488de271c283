"""A published block, decoding and prefill of published sizes, with random weights."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mamba_aot.benchmark.shapes import Work
from mamba_aot.benchmark.timing import Call
from mamba_aot.config import MambaLMConfig, SSMConfig
from mamba_aot.decoder import Decoder
from mamba_aot.decoding_graph import capture_step
from mamba_aot.mamba1 import Mamba1
from mamba_aot.model import MambaLM
from mamba_aot.sampling import Sampling
from mamba_aot.testing import measure_against_fp64

_VOCABULARY = 50280
# Sizes that the check runs at, in float64 on the CPU; widths are those that are timed.
_CHECKED_STEPS, _CHECKED_LAYERS, _CHECKED_VOCABULARY = 32, 2, 512


class Prepared(NamedTuple):
    """Something to time: its call, a graph if it decodes on a GPU, and what its weights take."""

    call: Call
    weight_bytes: int


def check_block(work: Work, device: torch.device) -> float:
    """Largest error of a block's output as a share of its largest value.

    Raises:
        AssertionError: It is further from float64 than twice what the same precision costs on the CPU.
    """
    block, x = _block(work, torch.device("cpu"), steps=_CHECKED_STEPS, rows=2)
    truth = copy.deepcopy(block).double()(x.double())
    with _precision(work, torch.device("cpu")):
        eager = block(x)
    with _precision(work, device):
        out = block.to(device)(x.detach().to(device)).cpu()
    return _require_close(work, out, eager, truth)


def check_model(work: Work, device: torch.device) -> float:
    """As `check_block`, of the logits of a model of few layers: after a prompt, or a step after it."""
    torch.manual_seed(0)
    model = _model(work, _CHECKED_LAYERS, _CHECKED_VOCABULARY, torch.device("cpu"))
    ids = torch.randint(_CHECKED_VOCABULARY, (2, _CHECKED_STEPS))
    truth = _logits(work, copy.deepcopy(model).double(), ids)
    eager = _logits(work, model, ids)
    out = _logits(work, model.to(device), ids.to(device)).cpu()
    return _require_close(work, out, eager, truth)


def block_calls(work: Work, device: torch.device, make: Callable[..., Any] = Mamba1) -> dict[str, Call]:
    """Calls of "forward" and "forward + backward" of `make`'s block, under autocast below float32."""
    block, x = _block(work, device, steps=work.dims["L"], rows=work.dims["B"], make=make)
    dout = torch.randn_like(x)
    leaves = [x, *block.parameters()]

    def forward() -> Tensor:
        with _precision(work, device):
            return block(x)

    def both() -> tuple[Tensor, ...]:
        out = forward()
        return torch.autograd.grad(out, leaves, dout.to(out.dtype))

    return {"forward": forward, "forward + backward": both}


@contextmanager
def prepared_model(work: Work, device: torch.device) -> Iterator[Prepared]:
    """A model ready to decode one token a call, its draw included, or to read a prompt a call."""
    dims = work.dims
    with torch.inference_mode():
        model = _model(work, dims["layers"], _VOCABULARY, device)
        weights = sum(p.numel() * p.element_size() for p in model.parameters())
        if work.op == "prefill":
            ids = torch.zeros(dims["B"], dims["L"], dtype=torch.int64, device=device)
            state = model.allocate_state(dims["B"])
            with model.fixed_decays():
                yield Prepared(lambda: model(ids, state, last_only=True), weights)
            return
        prompts = [torch.zeros(1, dtype=torch.int64, device=device)] * dims["B"]
        with model.fixed_decays():
            decoder = Decoder(model, _state(work, model, dims["B"]), prompts, Sampling(temperature=0), ())
            on_gpu = device.type == "cuda"
            yield Prepared(capture_step(decoder) if on_gpu else decoder.advance, weights)


def _block(
    work: Work, device: torch.device, *, steps: int, rows: int, make: Callable[..., Any] = Mamba1
) -> tuple[Any, Tensor]:
    torch.manual_seed(0)
    width = work.dims["M"]
    block = make(d_model=width).to(device)
    return block, torch.randn(rows, steps, width).to(device).requires_grad_()


def _model(work: Work, layers: int, vocabulary: int, device: torch.device) -> MambaLM:
    config = MambaLMConfig(layers, vocabulary, SSMConfig(d_model=work.dims["M"]), layers="m")
    return MambaLM(config, device=device, dtype=getattr(torch, work.dtype)).eval()


def _state(work: Work, model: MambaLM, batch: int) -> Any:
    """An empty state; what the others are compared with in float64 has no half ones."""
    is_half = work.half_states and next(model.parameters()).dtype != torch.float64
    return model.allocate_state(batch, ssm_dtype=getattr(torch, work.dtype) if is_half else None)


@torch.inference_mode()
def _logits(work: Work, model: MambaLM, ids: Tensor) -> Tensor:
    state = _state(work, model, len(ids))
    if work.op == "prefill":
        return model(ids, state, last_only=True)
    model(ids[:, :-1], state)
    return model.step(ids[:, -1], state)


def _precision(work: Work, device: torch.device) -> torch.autocast:
    dtype = getattr(torch, work.dtype)
    enabled = dtype != torch.float32
    return torch.autocast(device.type, dtype=dtype if enabled else None, enabled=enabled, cache_enabled=False)


def _require_close(work: Work, out: Tensor, eager: Tensor, truth: Tensor) -> float:
    found = measure_against_fp64(out, eager, truth)
    if not found.error <= found.limit:
        raise AssertionError(
            f"{work.op} {work.label}: error against float64 must be at most {found.limit:.3g}, "
            f"got {found.error:.3g}"
        )
    return found.error / truth.abs().max().item()
