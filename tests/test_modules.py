"""The Mamba block: pieces compose to the fused call, steps to the sequence, it starts as documented."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mamba_aot import Block, Mamba, RMSNorm, SSMConfig

WIDTH, LENGTH = 24, 37

KINDS = {
    "complex": {},
    "real": {"A_real": True},
    "euler": {"discretization": "euler"},
    "ungated": {"decay_gate": False},
    "published": {"A_real": True, "discretization": "euler", "decay_gate": False},
    "narrow": {"d_conv": 2, "d_state": 1, "expand": 1, "dt_rank": 3, "conv_bias": False, "bias": True},
    "wide filter": {"d_conv": 7},
}


def make(**options) -> Mamba:
    torch.manual_seed(0)
    return Mamba(SSMConfig(**{"d_model": WIDTH, "d_state": 4, **options}))


def config(**options: Any) -> SSMConfig:
    return SSMConfig(**options)


def inputs(batch: int = 2, length: int = LENGTH, **options) -> Tensor:
    return torch.randn(batch, length, WIDTH, generator=torch.Generator().manual_seed(1), **options)


def compose(mamba: Mamba, sequence: Tensor) -> Tensor:
    x, z = mamba.in_proj(sequence).chunk(2, dim=-1)
    x = mamba.conv1d(x)
    delta, A_mod, B_mod, C_mod = mamba.s_proj(x)
    A_disc, B_disc = mamba.discretization(delta, A_mod, B_mod)
    y = mamba.selective_scan(x, delta, A_disc, B_disc, mamba.C0 + C_mod)
    return mamba.out_proj(y * F.silu(z))


def steps(mamba: Mamba, sequence: Tensor, state) -> Tensor:
    return torch.stack([mamba.step(token, state) for token in sequence.unbind(1)], dim=1)


@pytest.mark.parametrize("kind", KINDS)
def test_pieces_compose_to_the_fused_forward(kind: str) -> None:
    mamba, x = make(**KINDS[kind]), inputs()
    torch.testing.assert_close(compose(mamba, x), mamba(x), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", ["complex", "real"])
def test_pieces_have_the_same_gradients_as_the_fused_forward(kind: str) -> None:
    mamba, x = make(**KINDS[kind]), inputs()
    weights = torch.randn(x.shape, generator=torch.Generator().manual_seed(2))

    def grads(y: Tensor) -> dict[str, Tensor]:
        names, parameters = zip(*mamba.named_parameters(), strict=True)
        return dict(zip(names, torch.autograd.grad(y, parameters, weights), strict=True))

    fused, composed = grads(mamba(x)), grads(compose(mamba, x))
    for name, grad in fused.items():
        scale = composed[name].abs().max().item()
        torch.testing.assert_close(
            grad, composed[name], rtol=1e-3, atol=1e-5 * scale, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("kind", KINDS)
def test_steps_equal_the_sequence(kind: str) -> None:
    mamba, x = make(**KINDS[kind]), inputs()
    torch.testing.assert_close(steps(mamba, x, mamba.allocate_state(2)), mamba(x), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", ["complex", "real"])
def test_segments_through_a_state_equal_the_whole(kind: str) -> None:
    mamba, x = make(**KINDS[kind]), inputs()
    state = mamba.allocate_state(2)
    # Segments shorter than the convolution, an empty one, and single steps at the end.
    pieces = [mamba(x[:, a:b], state) for a, b in ((0, 2), (2, 2), (2, 3), (3, 30))]
    pieces.append(steps(mamba, x[:, 30:], state))
    torch.testing.assert_close(torch.cat(pieces, dim=1), mamba(x), rtol=1e-4, atol=1e-6)


def test_training_through_segments_reaches_every_parameter() -> None:
    mamba, x = make(), inputs()
    state = mamba.allocate_state(2)
    (mamba(x[:, :20], state).square().sum() + mamba(x[:, 20:], state).square().sum()).backward()
    assert all(parameter.grad is not None for parameter in mamba.parameters())


def test_output_does_not_depend_on_what_comes_later() -> None:
    mamba, x = make(), inputs()
    changed = x.clone()
    changed[:, 20:] = 5
    torch.testing.assert_close(mamba(changed)[:, :20], mamba(x)[:, :20], rtol=0, atol=0)


def test_discretization_without_modulation_is_the_plain_system() -> None:
    mamba = make()
    delta = torch.full((1, 1, mamba.config.d_inner), 0.1)
    A_disc, B_disc = mamba.discretization(delta)
    expected = torch.exp(0.1 * mamba.A)
    torch.testing.assert_close(A_disc[0, 0], expected)
    torch.testing.assert_close(B_disc[0, 0], (expected - 1) / mamba.A * mamba.B0, rtol=1e-4, atol=1e-6)


def test_gate_only_shrinks_the_decay() -> None:
    mamba, x = make(), inputs()
    delta, A_mod, B_mod, _ = mamba.s_proj(mamba.conv1d(mamba.in_proj(x).chunk(2, dim=-1)[0]))
    gated, plain = mamba.discretization(delta, A_mod, B_mod), mamba.discretization(delta, None, B_mod)
    assert (gated[0].abs() < plain[0].abs()).all()
    torch.testing.assert_close(gated[0], plain[0] * torch.sigmoid(A_mod).unsqueeze(2))
    torch.testing.assert_close(gated[1], plain[1], rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["complex", "real"])
def test_autocast_trains_close_to_float32(kind: str, dtype: torch.dtype) -> None:
    mamba, x = make(**KINDS[kind]), inputs()
    with torch.autocast("cpu", dtype=dtype):
        y = mamba(x)
        stepped = steps(mamba, x, mamba.allocate_state(2))
    assert y.dtype == stepped.dtype == dtype
    y.float().square().sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in mamba.parameters())
    bound = 20 * torch.finfo(dtype).eps * mamba(x).abs().max().item()
    torch.testing.assert_close(y.float(), mamba(x), rtol=0, atol=bound)
    torch.testing.assert_close(stepped.float(), mamba(x), rtol=0, atol=bound)


@pytest.mark.parametrize("kind", ["complex", "real"])
def test_weights_can_be_bfloat16(kind: str) -> None:
    mamba, x = make(**KINDS[kind]), inputs()
    exact = mamba(x)
    mamba, x = mamba.bfloat16(), x.bfloat16()
    state = mamba.allocate_state(2)
    assert state.conv.dtype == torch.bfloat16
    assert state.ssm.dtype == (torch.float32 if mamba.config.A_real else torch.complex64)
    bound = 20 * torch.finfo(torch.bfloat16).eps * exact.abs().max().item()
    torch.testing.assert_close(mamba(x).float(), exact, rtol=0, atol=bound)
    torch.testing.assert_close(steps(mamba, x, state).float(), exact, rtol=0, atol=bound)


@pytest.mark.parametrize("kind", ["complex", "real"])
def test_compiles_to_one_graph(kind: str) -> None:
    mamba, x = make(**KINDS[kind]), inputs(length=5)
    compiled = torch.compile(mamba, fullgraph=True, backend="aot_eager")
    expected, got = mamba(x), compiled(x)
    torch.testing.assert_close(got, expected)
    got.sum().backward()
    assert all(parameter.grad is not None for parameter in mamba.parameters())
    state, plain_state = mamba.allocate_state(2), mamba.allocate_state(2)
    step = torch.compile(mamba.step, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(step(x[:, 0], state), mamba.step(x[:, 0], plain_state))
    torch.testing.assert_close(state.ssm, plain_state.ssm)
    torch.testing.assert_close(state.conv, plain_state.conv)


def test_nothing_of_state_size_per_step_is_kept_for_the_backward() -> None:
    mamba, x = make(d_state=16), inputs(length=256)
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        mamba(x)
    materialised = x.shape[0] * x.shape[1] * mamba.config.d_inner * mamba.config.d_state * 4
    assert sum(kept.values()) < materialised


def test_start_is_s4d_lin_with_log_uniform_steps() -> None:
    mamba = make(d_model=256, d_state=16)
    torch.testing.assert_close(mamba.A.real, torch.full_like(mamba.A.real, -0.5))
    torch.testing.assert_close(mamba.A.imag[7], math.pi * torch.arange(16.0))
    dt = F.softplus(mamba.s_proj.dt_bias).detach()
    assert dt.min() >= 1e-3 * 0.99
    assert dt.max() <= 1e-1 * 1.01
    # Log-uniform: as many below the geometric mean of the ends as above.
    assert abs((dt < 1e-2).float().mean() - 0.5) < 0.08
    for weight in (mamba.in_proj.weight, mamba.s_proj.x_proj.weight, mamba.out_proj.weight):
        xavier = math.sqrt(2 / sum(weight.shape))
        assert abs(weight.std().item() / xavier - 1) < 0.05
    kaiming = math.sqrt(2 / mamba.config.d_conv)
    assert abs(mamba.conv1d.weight.std().item() / kaiming - 1) < 0.1


def test_real_start_is_s4d_real() -> None:
    mamba = make(A_real=True)
    torch.testing.assert_close(mamba.A[3], -torch.arange(1.0, 5.0))
    assert not any(p.is_complex() for p in mamba.parameters())


def test_parameters_are_real_numbers() -> None:
    assert not any(parameter.is_complex() for parameter in make().parameters())


def test_documented_start() -> None:
    config = SSMConfig(d_model=512, d_state=16, d_conv=4, expand=2)
    assert config == SSMConfig()
    assert config.d_inner == 1024
    assert config.rank == 32
    assert make().config == Mamba(d_model=WIDTH, d_state=4).config


@pytest.mark.parametrize("shape", [(0, LENGTH), (2, 0)])
def test_empty_sequences(shape: tuple[int, int]) -> None:
    mamba = make()
    assert mamba(inputs(*shape)).shape == (*shape, WIDTH)


def test_block_adds_its_input() -> None:
    torch.manual_seed(0)
    block, x = Block(SSMConfig(d_model=WIDTH, d_state=4)), inputs()
    torch.testing.assert_close(block(x), x + block.mixer(block.norm(x)))
    state = block.allocate_state(2)
    stepped = torch.stack([block.step(token, state) for token in x.unbind(1)], dim=1)
    torch.testing.assert_close(stepped, block(x), rtol=1e-4, atol=1e-5)


def test_rms_norm() -> None:
    norm, x = RMSNorm(WIDTH), inputs()
    torch.testing.assert_close(norm(7 * x).square().mean(-1), torch.ones(x.shape[:-1]), rtol=1e-3, atol=1e-3)
    assert norm.bfloat16()(x.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (
            lambda: make()(torch.zeros(2, WIDTH)),
            r"the input must be \[batch, length, d_model = 24\], got \[2, 24\]",
        ),
        (lambda: make()(torch.zeros(2, 3, 5)), r"the input must be .* got \[2, 3, 5\]"),
        (
            lambda: make().step(torch.zeros(2, 1, WIDTH), make().allocate_state(2)),
            r"the input must be \[batch, d_model",
        ),
        (
            lambda: make()(inputs(), make().allocate_state(3)),
            r"the state must be of the batch size .* 2, got 3",
        ),
        (lambda: SSMConfig(d_conv=65), "d_conv must be 1 to 64, got 65"),
        (lambda: SSMConfig(d_state=0), "d_state must be an integer of at least 1, got 0"),
        (lambda: config(d_model=1.5), "d_model must be an integer"),
        (lambda: SSMConfig(dt_min=0.2), "0 < dt_min <= dt_max"),
        (lambda: config(discretization="bilinear"), '"zoh" or "euler", got \'bilinear\''),
    ],
)
def test_bad_input_is_a_sentence(call, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        call()


def test_bad_types_are_a_sentence() -> None:
    with pytest.raises(TypeError, match="config must be an SSMConfig, got int"):
        Mamba(512)  # pyright: ignore[reportArgumentType]


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS)
def test_cuda_equals_cpu(kind: str) -> None:
    cpu, x = make(**KINDS[kind]), inputs(length=130)
    cuda, on_gpu = make(**KINDS[kind]).cuda(), x.cuda()
    expected, got = cpu(x), cuda(on_gpu)
    torch.testing.assert_close(got.cpu(), expected, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(
        steps(cuda, on_gpu, cuda.allocate_state(2)).cpu(), expected, rtol=1e-3, atol=1e-4
    )
    expected.square().sum().backward()
    got.square().sum().backward()
    for (name, ours), theirs in zip(cuda.named_parameters(), cpu.parameters(), strict=True):
        assert ours.grad is not None, name
        assert theirs.grad is not None, name
        scale = theirs.grad.abs().max().item()
        torch.testing.assert_close(ours.grad.cpu(), theirs.grad, rtol=1e-2, atol=1e-3 * scale)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_cuda_autocast_trains_close_to_float32(dtype: torch.dtype) -> None:
    mamba, x = make().cuda(), inputs(length=130).cuda()
    with torch.autocast("cuda", dtype=dtype):
        y = mamba(x)
    assert y.dtype == dtype
    y.float().square().sum().backward()
    exact = mamba(x)
    bound = 20 * torch.finfo(dtype).eps * exact.abs().max().item()
    torch.testing.assert_close(y.float(), exact, rtol=0, atol=bound)
