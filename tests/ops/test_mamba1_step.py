"""mamba1_step against float64, states, errors, and a model that takes it beside one that cannot."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mamba_aot import MambaLM, MambaLMConfig, MambaState, SSMConfig
from mamba_aot.ops.mamba1_step import mamba1_step
from mamba_aot.reference import mamba1_step_ref
from mamba_aot.testing import assert_close_to_fp64, assert_matches_reference, results_of

# Dynamo warns about itself, differently in every version of torch.
pytestmark = pytest.mark.filterwarnings("default")

WRITTEN = ("conv_state", "ssm_state")


def make_inputs(
    batch: int = 2,
    width: int = 48,
    inner: int = 96,
    rank: int = 16,
    state: int = 16,
    taps: int = 4,
    kept: int = 3,
    *,
    dtype: torch.dtype = torch.bfloat16,
    residual: torch.dtype | None = torch.bfloat16,
    conv_bias: bool = True,
    half_states: bool = False,
    norms: str = "before",
    device: str = "cpu",
    **options: Any,
) -> dict[str, Any]:
    """`norms` says which there are: "before" the step, "behind" it, or "both"."""
    generator = torch.Generator().manual_seed(0)
    wide = torch.float64 if dtype == torch.float64 else torch.float32

    def normal(*shape: int, scale: float = 1.0, of: torch.dtype = dtype) -> Tensor:
        return (scale * torch.randn(shape, generator=generator, dtype=torch.float64)).to(of).to(device)

    inputs = {
        "x": normal(batch, width),
        "residual": None if residual is None else normal(batch, width, of=residual),
        "norm_weight": 1 + normal(width, scale=0.1),
        "in_proj": normal(2 * inner, width, scale=width**-0.5),
        "conv_state": normal(batch, inner, kept),
        "conv_weight": normal(inner, taps, scale=0.5),
        "conv_bias": normal(inner) if conv_bias else None,
        "x_proj": normal(rank + 2 * state, inner, scale=inner**-0.5),
        "dt_proj": normal(inner, rank, scale=max(rank, 1) ** -0.5),
        "dt_bias": normal(inner) - 2,
        "A": -torch.exp(normal(inner, state, of=wide)),
        "D": normal(inner, of=wide),
        "ssm_state": normal(batch, inner, state, of=dtype if half_states else wide),
        "out_proj": normal(width, inner, scale=inner**-0.5),
        "next_norm_weight": 1 + normal(width, scale=0.1),
    }
    if norms == "behind":
        inputs["norm_weight"] = None
    if norms == "before":
        inputs["next_norm_weight"] = None
    return inputs | options


ROWS: dict[str, dict[str, Any]] = {
    "base": {},
    "one row": {"batch": 1},
    "five rows": {"batch": 5},
    "no rows": {"batch": 0},
    "130m": {"batch": 1, "width": 768, "inner": 1536, "rank": 48},
    "d_model of 1.4b": {"width": 2048},
    "d_model of 2.8b": {"width": 2560},
    "d_model in two parts": {"width": 2576, "residual": torch.float32, "residual_in_fp32": True},
    "channels of 1.4b": {"inner": 4096},
    "channels of 2.8b": {"inner": 5120, "rank": 160},
    "channels in two parts": {"inner": 5136},
    "the most rows of a program": {"batch": 8, "inner": 4256},
    "two tiles of rank": {"rank": 80},
    "1040 channels": {"inner": 1040, "width": 272},
    "float16": {"dtype": torch.float16, "residual": torch.float16},
    "residual float32": {"residual": torch.float32},
    "wide sum": {"residual_in_fp32": True},
    "no residual": {"residual": None},
    "no residual, wide sum": {"residual": None, "residual_in_fp32": True},
    "no bias": {"conv_bias": False},
    "4 steps kept": {"kept": 4},
    "3 taps": {"taps": 3, "kept": 3},
    "2 taps": {"taps": 2, "kept": 1},
    "1 tap": {"taps": 1, "kept": 0},
    "large eps": {"eps": 0.5},
    "more rows than the CPU's own product takes": {"batch": 9},
    "tensor cores": {"batch": 12, "width": 768, "inner": 1536, "rank": 48},
    "tensor cores, float16": {"batch": 33, "width": 272, "dtype": torch.float16, "residual": torch.float16},
    "tensor cores, residual float32": {"batch": 40, "width": 256, "residual": torch.float32},
    "tensor cores, no residual": {"batch": 40, "width": 256, "residual": None, "residual_in_fp32": True},
    "tensor cores, no bias, 4 steps kept": {"batch": 40, "width": 256, "conv_bias": False, "kept": 4},
    "tensor cores, 1 tap": {"batch": 40, "width": 256, "taps": 1, "kept": 0},
    "tensor cores, 2.8b": {"batch": 17, "width": 2560, "inner": 5120, "rank": 160},
    "large matrices": {"batch": 64, "width": 2048, "inner": 4096, "rank": 128},
    "large matrices, odd sizes": {
        **{"batch": 5, "width": 1552, "inner": 3104, "rank": 112},
        **{"dtype": torch.float16, "residual": torch.float16},
    },
    "large matrices, 65 rows": {"batch": 65, "width": 1552, "inner": 3104, "rank": 112},
    "more than 64 rows": {"batch": 96, "width": 768, "inner": 1536, "rank": 48},
    "more than 64 rows, float16": {
        **{"batch": 70, "width": 528, "inner": 1040, "rank": 48},
        **{"dtype": torch.float16, "residual": torch.float16},
    },
    "tensor cores, columns in parts": {"batch": 9, "width": 1040, "inner": 2576, "rank": 80},
    "tensor cores, d_model in two parts": {"batch": 3, "width": 4112},
    "half states": {"half_states": True},
    "half states, float16": {"half_states": True, "dtype": torch.float16, "residual": torch.float16},
    "half states, tensor cores": {"half_states": True, "batch": 45, "width": 256},
    "half states, tensor cores, float16": {
        **{"half_states": True, "batch": 77, "width": 256, "inner": 208},
        **{"dtype": torch.float16, "residual": torch.float16},
    },
    "tensor cores, 130 rows": {"batch": 130, "width": 80, "inner": 176},
    "norm behind": {"norms": "behind"},
    "norms before and behind": {"norms": "both", "next_eps": 0.5},
    "norm behind, one row, residual float32": {"batch": 1, "norms": "behind", "residual": torch.float32},
    "norm behind, no rows": {"batch": 0, "norms": "behind"},
    "norm behind, wide sum": {"batch": 5, "norms": "behind", "residual_in_fp32": True, "inner": 528},
    "norm behind, columns in parts": {
        **{"norms": "behind", "batch": 40, "width": 768, "inner": 1536, "rank": 48, "residual": torch.float32}
    },
    "norm behind, many parts, float16": {
        **{"norms": "behind", "batch": 17, "width": 64, "inner": 4112, "rank": 32},
        **{"dtype": torch.float16, "residual": torch.float16, "taps": 3, "kept": 3},
    },
    "norms before and behind, no residual": {
        **{"norms": "both", "batch": 64, "width": 2576, "inner": 5136, "rank": 160, "residual": None},
    },
    "norm behind, more than 64 rows": {
        **{"norms": "behind", "batch": 97, "width": 768, "inner": 1536, "rank": 48, "half_states": True},
    },
}
# What only the CPU takes.
MORE: dict[str, dict[str, Any]] = {
    "float32": {"dtype": torch.float32, "residual": torch.float32},
    "odd sizes, half": {"width": 7, "inner": 45, "rank": 3, "state": 5, "taps": 2, "kept": 1},
    "no rank, half": {"rank": 0},
    "odd sizes": {"width": 7, "inner": 13, "rank": 3, "state": 5, "taps": 6, "kept": 5},
}


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_matches_float64(row: dict[str, Any], device: str) -> None:
    inputs = make_inputs(**row, device=device)
    assert_matches_reference(mamba1_step, mamba1_step_ref, inputs, backward=False, written=WRITTEN)


@pytest.mark.parametrize("row", MORE.values(), ids=MORE)
def test_on_a_cpu_matches_float64(row: dict[str, Any]) -> None:
    inputs = make_inputs(**row)
    assert_matches_reference(mamba1_step, mamba1_step_ref, inputs, backward=False, written=WRITTEN)


def test_float64_is_computed_as_such() -> None:
    inputs = make_inputs(dtype=torch.float64, residual=torch.float64)
    got, wanted = (
        results_of(function, inputs, backward=False, written=WRITTEN)
        for function in (mamba1_step, mamba1_step_ref)
    )
    # The truth itself is computed in float64, so that the rule has no error to compare with.
    torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("norms", ["before", "behind"])
@pytest.mark.parametrize("batch", [3, 40])
def test_two_runs_are_equal(batch: int, norms: str, device: str) -> None:
    inputs = make_inputs(batch=batch, width=768, inner=1536, rank=48, norms=norms, device=device)
    first, second = (results_of(mamba1_step, inputs, backward=False, written=WRITTEN) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("norms", ["before", "behind"])
@pytest.mark.parametrize("batch", [3, 40, 70])
def test_order_and_neighbours_do_not_matter(batch: int, norms: str, device: str) -> None:
    inputs = make_inputs(batch=batch, width=256, inner=512, rank=32, norms=norms, device=device)
    others = make_inputs(batch=batch, width=256, inner=512, rank=32, norms=norms, device=device)
    order = torch.arange(batch - 1, -1, -1, device=device)
    for name in ("x", "residual", *WRITTEN):
        others[name] = inputs[name][order].clone()
        # A neighbour that could spoil all others.
        others[name][0] = torch.nan
    first, second = (
        results_of(mamba1_step, given, backward=False, written=WRITTEN) for given in (inputs, others)
    )
    for name in first:
        assert torch.equal(first[name][:-1], second[name][order.cpu()][:-1]), name


@pytest.mark.parametrize("batch", [2, 40])
def test_kept_steps_may_begin_anywhere(batch: int, device: str) -> None:
    """Many rows are kept in words of four bytes where they begin on a boundary of those."""
    inputs = make_inputs(batch=batch, width=256, inner=208, device=device)
    shifted = torch.empty(inputs["conv_state"].numel() + 1, dtype=torch.bfloat16, device=device)[1:]
    others = inputs | {"conv_state": shifted.view_as(inputs["conv_state"]).copy_(inputs["conv_state"])}
    others["ssm_state"] = inputs["ssm_state"].clone()
    first, second = mamba1_step(**inputs), mamba1_step(**others)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert all(torch.equal(inputs[name], others[name]) for name in WRITTEN)


ALONE = """
import sys
import torch
sys.path.insert(0, sys.argv[1])
from test_mamba1_step import WRITTEN, make_inputs
from mamba_aot.ops.mamba1_step import few_rows_linear, mamba1_step
inputs = make_inputs(batch=40, width=256, inner=512, rank=32, device="cuda")
alone = {k: t[7:8].clone() if k in ("x", "residual", *WRITTEN) else t for k, t in inputs.items()}
for left, right in zip(mamba1_step(**inputs), mamba1_step(**alone)):
    assert torch.equal(left[7:8], right)
assert all(torch.equal(inputs[name][7:8], alone[name]) for name in WRITTEN)
rest = inputs["in_proj"], inputs["norm_weight"]
logits = few_rows_linear(inputs["x"], *rest, inputs["residual"])
assert torch.equal(logits[7:8], few_rows_linear(alone["x"], *rest, alone["residual"]))
try:
    mamba1_step(**inputs | {"next_norm_weight": inputs["norm_weight"]})
except ValueError as error:
    assert "MAMBA_AOT_BATCH_INVARIANT=1" in str(error)
else:
    raise AssertionError("rows that depend on the batch")
"""


@pytest.mark.gpu
def test_a_gpu_takes_rows_one_by_one_if_asked_to() -> None:
    """As many as tensor cores take otherwise, which round between the products."""
    command = [sys.executable, "-c", ALONE, str(Path(__file__).parent)]
    environment = {**os.environ, "MAMBA_AOT_BATCH_INVARIANT": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "row",
    [{}, {"residual": None, "residual_in_fp32": True}, {"norms": "behind"}],
    ids=["base", "wide sum", "norm behind"],
)
def test_opcheck(row: dict[str, Any], device: str) -> None:
    inputs = make_inputs(**row, device=device)
    wide_sum, eps = inputs.pop("residual_in_fp32", False), inputs.pop("eps", 1e-5)
    op = torch.ops.mamba_aot.mamba1_step.default
    tests = ("test_schema", "test_faketensor")
    torch.library.opcheck(op, (*inputs.values(), eps, eps, wide_sum), test_utils=tests)


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"in_proj": torch.zeros(3, 48, dtype=torch.bfloat16)}, r"in_proj must be \[2 channels, d_model\]"),
        ({"A": torch.zeros(96, 16, dtype=torch.bfloat16)}, r"A must be float32 \(the arithmetic of x\)"),
        ({"out_proj": torch.zeros(96, 48, dtype=torch.bfloat16).T}, "out_proj must be contiguous"),
        ({"conv_state": torch.zeros(2, 96, 5, dtype=torch.bfloat16)}, "must keep taps - 1 or taps steps"),
        ({"residual": torch.zeros(2, 48, dtype=torch.float64)}, "residual must not be wider"),
        ({"norm_weight": None}, "norm_weight or next_norm_weight must be given"),
        (
            {"norm_weight": None, "residual": None, "next_norm_weight": torch.ones(48, dtype=torch.bfloat16)},
            "residual must be given where there is no norm_weight",
        ),
        ({"next_norm_weight": torch.ones(47, dtype=torch.bfloat16)}, r"next_norm_weight must be \[d_model\]"),
    ],
    ids=["shape", "dtype", "layout", "kept", "residual", "no norm", "no sum", "next norm"],
)
def test_errors(changed: dict[str, Any], sentence: str) -> None:
    inputs = make_inputs() | changed
    before = inputs["ssm_state"].clone()
    with pytest.raises(ValueError, match=f"^mamba1_step: .*{sentence}"):
        mamba1_step(**inputs)
    assert torch.equal(inputs["ssm_state"], before)


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"dtype": torch.float32, "residual": None}, "x must be float16 or bfloat16 on CUDA"),
        ({"state": 8}, "A must have 16 states"),
        ({"rank": 8}, "must be multiples of 16"),
        ({"taps": 5, "kept": 5}, "at most 4 taps"),
    ],
    ids=["dtype", "state", "rank", "taps"],
)
def test_limits_on_cuda(changed: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        mamba1_step(**make_inputs(**changed, device="cuda"))


def make_model(device: str, in_fp32: bool = False) -> MambaLM:
    torch.manual_seed(0)
    config = MambaLMConfig(3, 256, SSMConfig(d_model=256), layers="m", residual_in_fp32=in_fp32)
    return MambaLM(config, device=device, dtype=torch.bfloat16).eval()


def logits_of(
    model: MambaLM, steps: int = 6, rows: int = 2, ssm_dtype: torch.dtype | None = None
) -> tuple[Tensor, set[str]]:
    """Of some steps, and the names of the ops of this package that took them."""
    ids = torch.arange(rows * steps, device=model.device).view(rows, steps) % 256
    state = model.allocate_state(rows, ssm_dtype=ssm_dtype)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        logits = torch.stack([model.step(column, state) for column in ids.unbind(1)], dim=1)
    return logits, {e.key for e in profile.key_averages() if e.key.startswith("mamba_aot::")}


@pytest.mark.parametrize("in_fp32", [False, True])
def test_a_model_steps_as_its_modules_do(in_fp32: bool, device: str) -> None:
    check_steps(make_model(device, in_fp32), device)


def test_a_model_of_half_states_steps_as_its_modules_do(device: str) -> None:
    check_steps(make_model(device), device, ssm_dtype=torch.bfloat16)


def test_a_model_of_float32_steps_on_a_cpu_as_its_modules_do() -> None:
    check_steps(make_model("cpu").float(), "cpu")


@pytest.mark.gpu
@pytest.mark.parametrize("in_fp32", [False, True])
def test_a_model_of_many_rows_norms_behind_its_steps(in_fp32: bool) -> None:
    check_steps(make_model("cuda", in_fp32), "cuda", rows=42)


@pytest.mark.gpu
def test_norms_of_another_kind_are_called_behind_the_steps_of_many_rows() -> None:
    """That of attention is taken by the layer before it; the last norm, which has a hook, calls itself."""
    config = MambaLMConfig(4, 256, SSMConfig(d_model=256), layers="mamm")
    model = MambaLM(config, device="cuda", dtype=torch.bfloat16).eval()
    ids = torch.randint(256, (42,), device="cuda")
    wanted = model.step(ids, model.allocate_state(42, max_length=4))
    seen = []
    model.norm_f.register_forward_hook(lambda *_: seen.append(1))
    got = model.step(ids, model.allocate_state(42, max_length=4))
    assert seen == [1]
    torch.testing.assert_close(got, wanted, rtol=3e-2, atol=3e-2)


def check_steps(
    model: MambaLM, device: str, ssm_dtype: torch.dtype | None = None, rows: int | None = None
) -> None:
    fused, ops = logits_of(model, rows=rows or 2, ssm_dtype=ssm_dtype)
    # Few rows have the last norm in the head's product, many behind the last step.
    of_the_head = {"mamba_aot::few_rows_linear"} if rows is None else set()
    assert ops == {"mamba_aot::mamba1_step"} | of_the_head
    for layer in model.layers:
        layer.mixer.in_proj.register_forward_hook(lambda *_: None)
    plain, ops = logits_of(model, rows=rows or 2, ssm_dtype=ssm_dtype)
    assert "mamba_aot::mamba1_step" not in ops
    # The same weights in float64, by whole sequences, on the CPU.
    ids = torch.arange(6 * (rows or 2)).view(-1, 6) % 256
    truth = model.cpu().double()(ids).detach()
    assert_close_to_fp64(fused.cpu(), plain.cpu(), truth, "logits")


def test_a_projection_of_another_kind_is_called(device: str) -> None:
    class Doubled(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            return 2 * super().forward(input)

    model, other = make_model(device), make_model(device)
    for layer in other.layers:
        linear = layer.mixer.out_proj
        layer.mixer.out_proj = Doubled(512, 256, bias=False, device=device, dtype=torch.bfloat16)
        layer.mixer.out_proj.weight = linear.weight
    logits, ops = logits_of(other)
    assert "mamba_aot::mamba1_step" not in ops
    assert not torch.equal(logits, logits_of(model)[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_steps_that_are_mapped_over_call_the_modules(dtype: torch.dtype) -> None:
    """Which have rules of torch.vmap; mamba1_step, which writes states, has none and would be refused."""
    model = make_model("cpu").float() if dtype == torch.float32 else make_model("cpu")
    ids = torch.tensor([[1], [200]])
    alone = torch.stack([model.step(row, model.allocate_state(1)) for row in ids])

    def step(row: Tensor, convs: list[Tensor], ssms: list[Tensor]) -> Tensor:
        return model.step(row, tuple(map(MambaState, convs, ssms)))

    states = [model.allocate_state(1) for _ in ids]
    convs = [torch.stack([state.conv for state in layer]) for layer in zip(*states, strict=True)]
    ssms = [torch.stack([state.ssm for state in layer]) for layer in zip(*states, strict=True)]
    tolerance = 1e-4 if dtype == torch.float32 else 3e-2
    torch.testing.assert_close(torch.vmap(step)(ids, convs, ssms), alone, rtol=tolerance, atol=tolerance)


def test_a_head_of_another_kind_is_called() -> None:
    model = make_model("cpu")
    logits, _ = logits_of(model)
    model.lm_head.register_forward_hook(lambda _module, _inputs, output: 2 * output)
    doubled, ops = logits_of(model)
    assert "mamba_aot::few_rows_linear" not in ops
    torch.testing.assert_close(doubled, 2 * logits)
