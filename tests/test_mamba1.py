"""Mamba1: the published block. Steps, pieces and padded rows equal whole sequences; linears are called."""

import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mamba_aot import Mamba1, MambaState

WIDTH, LENGTH = 24, 37

KINDS = {
    "published": {},
    "normed": {"mixer_rms_eps": 1e-6},
    "narrow": {"d_conv": 2, "d_state": 1, "expand": 1, "dt_rank": 3, "conv_bias": False, "bias": True},
    "constant": {"dt_init": "constant", "d_state": 8},
}


def make(**options) -> Mamba1:
    torch.manual_seed(0)
    return Mamba1(WIDTH, **{"d_state": 4, "layer_idx": 0, **options})


def inputs(batch: int = 2, length: int = LENGTH) -> Tensor:
    return torch.randn(batch, length, WIDTH, generator=torch.Generator().manual_seed(1))


def eager(mamba: Mamba1, sequence: Tensor) -> Tensor:
    """The block in plain tensor algebra, one step after the other."""
    x, z = mamba.in_proj(sequence).transpose(1, 2).chunk(2, dim=1)
    width = mamba.d_conv
    x = F.conv1d(F.pad(x, (width - 1, 0)), mamba.conv1d.weight, mamba.conv1d.bias, groups=x.shape[1])
    x = F.silu(x).transpose(1, 2)
    parts = mamba.x_proj(x).split([mamba.dt_rank, mamba.d_state, mamba.d_state], dim=-1)
    if mamba.mixer_rms_eps is not None:
        parts = [p * torch.rsqrt(p.square().mean(-1, keepdim=True) + mamba.mixer_rms_eps) for p in parts]
    low, B, C = parts
    dt = F.softplus(mamba.dt_proj(low))
    A = -torch.exp(mamba.A_log)
    h, ys = torch.zeros(x.shape[0], x.shape[2], mamba.d_state), []
    for t in range(x.shape[1]):
        h = torch.exp(dt[:, t, :, None] * A) * h + dt[:, t, :, None] * B[:, t, None] * x[:, t, :, None]
        ys.append((h * C[:, t, None]).sum(-1) + mamba.D * x[:, t])
    return mamba.out_proj(torch.stack(ys, dim=1) * F.silu(z.transpose(1, 2)))


def steps(mamba: Mamba1, sequence: Tensor, state: MambaState) -> Tensor:
    return torch.cat(
        [mamba.step(token.unsqueeze(1), state.conv, state.ssm)[0] for token in sequence.unbind(1)], dim=1
    )


def inference_params(offset: int = 0) -> SimpleNamespace:
    return SimpleNamespace(key_value_memory_dict={}, seqlen_offset=offset)


@pytest.mark.parametrize("kind", KINDS)
def test_is_the_published_recurrence_with_its_gradients(kind: str) -> None:
    mamba, x = make(**KINDS[kind]), inputs()
    got, expected = mamba(x), eager(mamba, x)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-6)
    weights = torch.randn(x.shape, generator=torch.Generator().manual_seed(2))
    names, parameters = zip(*mamba.named_parameters(), strict=True)
    ours = torch.autograd.grad(got, parameters, weights)
    theirs = torch.autograd.grad(expected, parameters, weights)
    for name, a, b in zip(names, ours, theirs, strict=True):
        scale = b.abs().max().item()
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5 * scale, msg=lambda m, n=name: f"{n}: {m}")


def test_parameters_are_those_of_mamba_ssm() -> None:
    shapes = {name: list(p.shape) for name, p in Mamba1(64, bias=True).named_parameters()}
    assert shapes == {
        "A_log": [128, 16],
        "D": [128],
        "in_proj.weight": [256, 64],
        "in_proj.bias": [256],
        "conv1d.weight": [128, 1, 4],
        "conv1d.bias": [128],
        "x_proj.weight": [4 + 32, 128],
        "dt_proj.weight": [128, 4],
        "dt_proj.bias": [128],
        "out_proj.weight": [64, 128],
        "out_proj.bias": [64],
    }
    assert Mamba1(64, dtype=torch.bfloat16).A_log.dtype == torch.float32


def test_start_is_that_of_mamba_ssm() -> None:
    torch.manual_seed(0)
    mamba = Mamba1(256, dt_min=1e-5, dt_init_floor=1e-3)
    torch.testing.assert_close(mamba.A[5], -torch.arange(1.0, 17.0))
    assert torch.equal(mamba.D, torch.ones(512))
    assert mamba.conv1d.weight.abs().max() <= 0.5
    assert mamba.conv1d.weight.std().item() == pytest.approx(1 / math.sqrt(12), rel=0.1)
    assert mamba.dt_proj.weight.abs().max() <= 16**-0.5
    dt = F.softplus(mamba.dt_proj.bias).detach()
    assert dt.min().item() == pytest.approx(1e-3, rel=1e-3)
    assert 0.05 < dt.max().item() <= 0.1001
    assert (make(dt_init="constant").dt_proj.weight == 2**-0.5).all()


@pytest.mark.parametrize("kind", KINDS)
def test_steps_equal_the_sequence(kind: str) -> None:
    mamba, x = make(**KINDS[kind]), inputs()
    torch.testing.assert_close(steps(mamba, x, mamba.allocate_state(2)), mamba(x), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_pieces_through_a_state_equal_the_whole(kind: str) -> None:
    mamba, x = make(**KINDS[kind]), inputs()
    state = mamba.allocate_state(2)
    pieces = [mamba(x[:, a:b], state=state) for a, b in ((0, 2), (2, 2), (2, 3), (3, 30))]
    pieces.append(steps(mamba, x[:, 30:], state))
    torch.testing.assert_close(torch.cat(pieces, dim=1), mamba(x), rtol=1e-4, atol=1e-6)


def test_inference_params_as_in_mamba_ssm() -> None:
    mamba, x = make(), inputs()
    params, outputs = inference_params(), []
    # A prompt, a token, several tokens, a token.
    for a, b in ((0, 20), (20, 21), (21, 36), (36, 37)):
        params.seqlen_offset = a
        outputs.append(mamba(x[:, a:b], params))
    torch.testing.assert_close(torch.cat(outputs, dim=1), mamba(x), rtol=1e-4, atol=1e-6)
    conv, ssm = params.key_value_memory_dict[0]
    assert conv.shape == (2, mamba.d_inner, mamba.d_conv)
    assert ssm.shape == (2, mamba.d_inner, mamba.d_state)
    # A new prompt starts from nothing.
    params.seqlen_offset = 0
    torch.testing.assert_close(mamba(x, params), mamba(x), rtol=0, atol=0)


def test_the_cache_may_be_given() -> None:
    mamba, x = make(), inputs()
    params = inference_params()
    params.key_value_memory_dict[0] = mamba.allocate_inference_cache(2, max_seqlen=100)
    mamba(x[:, :30], params)
    params.seqlen_offset = 30
    torch.testing.assert_close(mamba(x[:, 30:], params), mamba(x)[:, 30:], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_rows_equal_the_rows_alone(side: str) -> None:
    mamba, x = make(), inputs(4, 12)
    lengths = [12, 5, 1, 0]
    mask = torch.zeros(4, 12, dtype=torch.int64)
    rows = [slice(12 - n, 12) if side == "left" else slice(0, n) for n in lengths]
    for index, row in enumerate(rows):
        mask[index, row] = 1
    state = mamba.allocate_state(4)
    state.conv.normal_(generator=torch.Generator().manual_seed(3))
    state.ssm.normal_(generator=torch.Generator().manual_seed(4))
    alone = [MambaState(state.conv[i : i + 1].clone(), state.ssm[i : i + 1].clone()) for i in range(4)]
    x = torch.where(mask.bool().unsqueeze(-1), x, torch.nan)
    # What stands at padding must not matter, apart from NaN in the projections' own rows.
    x = x.nan_to_num(1e4)
    y = mamba(x, state=state, attention_mask=mask)
    for index, row in enumerate(rows):
        expected = mamba(x[index : index + 1, row], state=alone[index])
        torch.testing.assert_close(y[index : index + 1, row], expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(state.conv[index : index + 1], alone[index].conv, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(state.ssm[index : index + 1], alone[index].ssm, rtol=1e-5, atol=1e-6)


def test_padding_has_no_gradient() -> None:
    mamba, x = make(), inputs(2, 9).requires_grad_()
    mask = torch.ones(2, 9)
    mask[0, :4] = 0
    (mamba(x, attention_mask=mask) * mask.unsqueeze(-1)).square().sum().backward()
    assert x.grad is not None
    assert (x.grad[0, :4] == 0).all()
    assert (x.grad[0, 4:] != 0).any(-1).all()


class Adapter(nn.Module):
    """A low-rank adapter around a linear, as LoRA puts it in a linear's place."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.down = nn.Linear(base.in_features, 2, bias=False)
        self.up = nn.Linear(2, base.out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.up(self.down(x))


@pytest.mark.parametrize("name", ["in_proj", "x_proj", "dt_proj", "out_proj"])
def test_a_linear_in_place_of_a_projection_is_called(name: str) -> None:
    mamba, x = make(), inputs()
    adapter = Adapter(getattr(mamba, name))
    setattr(mamba, name, adapter)
    y = mamba(x)
    torch.testing.assert_close(y, eager(mamba, x), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(steps(mamba, x, mamba.allocate_state(2)), y, rtol=1e-4, atol=1e-6)
    y.sum().backward()
    assert adapter.up.weight.grad is not None
    assert adapter.up.weight.grad.abs().max() > 0


def test_hooks_of_dt_proj_are_called() -> None:
    mamba, x = make(), inputs()
    plain = mamba(x)
    mamba.dt_proj.register_forward_hook(lambda module, arguments, output: output + 1)
    assert not torch.allclose(mamba(x), plain)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_trains_close_to_float32(dtype: torch.dtype) -> None:
    mamba, x = make(), inputs()
    with torch.autocast("cpu", dtype=dtype):
        y = mamba(x)
        stepped = steps(mamba, x, mamba.allocate_state(2))
    assert y.dtype == stepped.dtype == dtype
    y.float().square().sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in mamba.parameters())
    bound = 20 * torch.finfo(dtype).eps * mamba(x).abs().max().item()
    torch.testing.assert_close(y.float(), mamba(x), rtol=0, atol=bound)
    torch.testing.assert_close(stepped.float(), mamba(x), rtol=0, atol=bound)


def test_weights_can_be_bfloat16() -> None:
    mamba, x = make(), inputs()
    exact = mamba(x)
    mamba, x = mamba.bfloat16(), x.bfloat16()
    state = mamba.allocate_state(2)
    assert state.conv.dtype == torch.bfloat16
    assert state.ssm.dtype == torch.float32
    bound = 20 * torch.finfo(torch.bfloat16).eps * exact.abs().max().item()
    torch.testing.assert_close(mamba(x).float(), exact, rtol=0, atol=bound)
    torch.testing.assert_close(steps(mamba, x, state).float(), exact, rtol=0, atol=bound)


def test_compiles_to_one_graph() -> None:
    mamba, x = make(), inputs(length=5)
    compiled = torch.compile(mamba, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), mamba(x))
    compiled(x).sum().backward()
    assert all(parameter.grad is not None for parameter in mamba.parameters())


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: make()(torch.zeros(2, WIDTH)), r"must be \[batch, length, d_model = 24\], got \[2, 24\]"),
        (
            lambda: make().step(inputs(), *make().allocate_inference_cache(2)),
            r"must be \[batch, 1, d_model\]",
        ),
        (lambda: make()(inputs(), attention_mask=torch.ones(2, 3)), r"= \[2, 37\], got \[2, 3\]"),
        (
            lambda: make()(inputs(1, 3), attention_mask=torch.tensor([[1, 0, 1]])),
            "a row with padding between tokens",
        ),
        (lambda: make(layer_idx=None)(inputs(), inference_params()), "give layer_idx when making the block"),
        (
            lambda: make()(inputs(), inference_params(), state=make().allocate_state(2)),
            "inference_params or state, not both",
        ),
        (
            lambda: make()(
                inputs(1), attention_mask=torch.ones(1, LENGTH), cu_seqlens=torch.tensor([0, 37]).int()
            ),
            "one of attention_mask, padding and cu_seqlens",
        ),
        (lambda: make(dt_init="zero"), 'dt_init must be "random" or "constant", got \'zero\''),
        (lambda: make(dt_min=0.2), "0 < dt_min <= dt_max"),
    ],
)
def test_bad_input_is_a_sentence(call, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        call()


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS)
def test_cuda_equals_cpu(kind: str) -> None:
    cpu, x = make(**KINDS[kind]), inputs(length=130)
    cuda, on_gpu = make(**KINDS[kind]).cuda(), x.cuda()
    expected, got = cpu(x), cuda(on_gpu)
    torch.testing.assert_close(got.cpu(), expected, rtol=1e-3, atol=1e-4)
    stepped = steps(cuda, on_gpu, cuda.allocate_state(2))
    torch.testing.assert_close(stepped.cpu(), expected, rtol=1e-3, atol=1e-4)
    expected.square().sum().backward()
    got.square().sum().backward()
    for (name, ours), theirs in zip(cuda.named_parameters(), cpu.parameters(), strict=True):
        assert ours.grad is not None, name
        assert theirs.grad is not None, name
        scale = theirs.grad.abs().max().item()
        torch.testing.assert_close(ours.grad.cpu(), theirs.grad, rtol=1e-2, atol=1e-3 * scale)


@pytest.mark.gpu
def test_padding_on_cuda_equals_cpu() -> None:
    cpu, x = make(), inputs(2, 20)
    mask = torch.ones(2, 20)
    mask[1, :13] = 0
    expected = cpu(x, attention_mask=mask)[mask.bool()]
    got = make().cuda()(x.cuda(), attention_mask=mask.cuda())[mask.bool()]
    torch.testing.assert_close(got.cpu(), expected, rtol=1e-3, atol=1e-4)


NARROW_STATES = [
    (torch.float16, torch.float16),
    (torch.bfloat16, torch.bfloat16),
    (torch.float32, torch.bfloat16),
]


@pytest.mark.parametrize(
    ("dtype", "ssm_dtype", "device"),
    [
        *((*dtypes, "cpu") for dtypes in NARROW_STATES),
        *(pytest.param(*dtypes, "cuda", marks=pytest.mark.gpu) for dtypes in NARROW_STATES),
    ],
)
def test_narrow_states_go_on_from_a_prompt(dtype: torch.dtype, ssm_dtype: torch.dtype, device: str) -> None:
    """Off by the rounding of each step from what states of the arithmetic's dtype give."""
    torch.manual_seed(0)
    mamba = Mamba1(64, device=device, dtype=dtype).eval()
    x = torch.randn(3, 12, 64, device=device).to(dtype)
    outputs = []
    for kept in (None, ssm_dtype):
        state = mamba.allocate_state(3, ssm_dtype=kept)
        prompt = mamba(x[:, :8], state=state)
        outputs.append(torch.cat([prompt, steps(mamba, x[:, 8:], state)], dim=1))
        assert state.ssm.dtype == (kept or torch.promote_types(dtype, torch.float32))
        assert state.ssm.count_nonzero() > 0
    wide, narrow = (y.double() for y in outputs)
    unit = torch.finfo(ssm_dtype).eps
    torch.testing.assert_close(narrow, wide, rtol=8 * unit, atol=8 * unit * wide.abs().max().item())


def test_states_have_a_real_dtype() -> None:
    with pytest.raises(ValueError, match=r"ssm_dtype must be a real floating dtype, got torch\.complex64"):
        Mamba1(16).allocate_state(1, ssm_dtype=torch.complex64)
    with pytest.raises(ValueError, match="float64 exactly if dtype is"):
        Mamba1(16).double().allocate_state(1, ssm_dtype=torch.float32)
