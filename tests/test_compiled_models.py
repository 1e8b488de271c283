"""Blocks and models under torch.compile: one graph for every batch and length, as exact as without it."""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from mamba_aot import Block, Mamba, MambaLM, MambaLMConfig, SSMConfig

# Dynamo and Inductor warn about themselves, differently in every version of torch.
pytestmark = pytest.mark.filterwarnings("default")

WIDTH = 16
ops = torch.ops.mamba_aot


@pytest.fixture(autouse=True)
def forgotten_graphs() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def make_model(device: str = "cpu", **options: Any) -> MambaLM:
    torch.manual_seed(0)
    config = MambaLMConfig(n_layer=1, vocab_size=32, ssm=SSMConfig(d_model=WIDTH, d_state=4, **options))
    return MambaLM(config, device=device)


def make_block(device: str) -> Block:
    torch.manual_seed(0)
    return Block(SSMConfig(d_model=WIDTH, d_state=4), device=device)


def make_published(device: str) -> Mamba:
    torch.manual_seed(0)
    options: dict[str, Any] = {"A_real": True, "discretization": "euler", "decay_gate": False}
    return Mamba(SSMConfig(d_model=WIDTH, d_state=4, **options), device=device)


MODULES: dict[str, Callable[[str], nn.Module]] = {
    "published Mamba": make_published,
    "MambaLM": make_model,
}


def make_ids(batch: int, length: int, device: str = "cpu") -> Tensor:
    return torch.randint(32, (batch, length), generator=torch.Generator().manual_seed(length)).to(device)


def make_inputs(module: nn.Module, batch: int, length: int, device: str) -> Tensor:
    if isinstance(module, MambaLM):
        return make_ids(batch, length, device)
    generator = torch.Generator().manual_seed(length)
    return torch.randn(batch, length, WIDTH, generator=generator).to(device)


def run(call: Callable[[Tensor], Tensor], module: nn.Module, inputs: Tensor) -> list[Tensor]:
    """The output, and the gradient of every parameter."""
    output = call(inputs)
    weights = torch.linspace(-1, 1, output.numel(), device=output.device).view_as(output)
    return [output.detach(), *torch.autograd.grad(output, list(module.parameters()), weights)]


def assert_close(got: list[Tensor], wanted: list[Tensor], rtol: float = 1e-3) -> None:
    for left, right in zip(got, wanted, strict=True):
        torch.testing.assert_close(left, right, rtol=rtol, atol=rtol / 100 * right.abs().max().item())


def assert_same(got: list[Tensor], wanted: list[Tensor], rtol: float = 1e-3) -> None:
    """Bit for bit, where the same matrix products are sure to be computed in the same way."""
    if wanted[0].is_cuda:
        assert_close(got, wanted, rtol)
    else:
        assert all(torch.equal(left, right) for left, right in zip(got, wanted, strict=True))


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.mark.parametrize("name", MODULES)
def test_no_length_is_compiled_for_again(name: str, device: str) -> None:
    module = MODULES[name](device)
    compiled = torch.compile(module, fullgraph=True, dynamic=True, backend="aot_eager")
    # Two graphs: the scan keeps a state for every 64 steps, and torch treats a single one as a case apart.
    for length in (70, 33):
        run(compiled, module, make_inputs(module, 2, length, device))
    with torch.compiler.set_stance("fail_on_recompile"):
        for index in range(50):
            inputs = make_inputs(module, 2 + index % 3, 2 + 3 * index, device)
            got = run(compiled, module, inputs)
            if index % 10 == 0:
                assert_same(got, run(module, module, inputs))


def test_prompts_and_steps_need_no_second_graph(device: str) -> None:
    model = make_model(device).eval()
    read = torch.compile(model, fullgraph=True, dynamic=True, backend="aot_eager")
    step = torch.compile(model.step, fullgraph=True, dynamic=True, backend="aot_eager")
    with torch.no_grad():
        for index, length in enumerate([70, 2, 3, 4, 33, 129, *range(5, 49)]):
            stance = "default" if index == 0 else "fail_on_recompile"
            ids = make_ids(2 + index % 3, length + 2, device)
            state = model.allocate_state(ids.shape[0])
            with torch.compiler.set_stance(stance):
                logits = [
                    read(ids[:, :length], state)[:, -1],
                    step(ids[:, -2], state),
                    step(ids[:, -1], state),
                ]
            torch.testing.assert_close(torch.stack(logits, 1), model(ids)[:, -3:], rtol=1e-4, atol=1e-5)


def test_inductor_trains_as_eager_does(device: str) -> None:
    model, ids = make_model(device), make_ids(2, 70, device)
    compiled = torch.compile(model, fullgraph=True, dynamic=True)
    assert_close(run(compiled, model, ids), run(model, model, ids))


def test_autocast_inside_keeps_its_dtypes(device: str) -> None:
    block = make_block(device)
    inputs = make_inputs(block, 2, 70, device)

    def under_autocast(x: Tensor) -> Tensor:
        with torch.autocast(device, dtype=torch.bfloat16):
            return block.mixer(block.norm(x))

    compiled = torch.compile(under_autocast, fullgraph=True, dynamic=True, backend="aot_eager")
    got, wanted = run(compiled, block, inputs), run(under_autocast, block, inputs)
    assert got[0].dtype == torch.bfloat16
    assert_same(got, wanted, rtol=2e-2)


class Counter(torch.utils._python_dispatch.TorchDispatchMode):
    """Counts the calls of an op below autograd."""

    def __init__(self, op: Any) -> None:
        super().__init__()
        self.op, self.calls = op, 0

    def __torch_dispatch__(self, op: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        self.calls += op is self.op
        return op(*args, **(kwargs or {}))


@pytest.mark.parametrize("saved", [False, True], ids=["recomputed", "saved"])
def test_checkpointing_can_name_an_op(saved: bool, device: str) -> None:
    """What the policy saves is not run again in the backward, what it does not name is."""
    block = make_block(device)
    inputs = make_inputs(block, 2, 70, device)

    def policy(context: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
        keep = saved and op is ops.selective_scan_fwd.default
        return CheckpointPolicy.MUST_SAVE if keep else CheckpointPolicy.PREFER_RECOMPUTE

    contexts = functools.partial(create_selective_checkpoint_contexts, policy)

    def selective(x: Tensor) -> Tensor:
        return checkpoint(block, x, use_reentrant=False, context_fn=contexts)  # type: ignore[return-value]

    wanted = run(block, block, inputs)
    with Counter(ops.selective_scan_fwd.default) as counter:
        got = run(selective, block, inputs)
    assert counter.calls == (1 if saved else 2)
    assert_same(got, wanted)

    graphs = []

    def count(graph: torch.fx.GraphModule, example: Any) -> torch.fx.GraphModule:
        graphs.append(sum(node.target is ops.selective_scan_fwd.default for node in graph.graph.nodes))
        return graph

    backend = torch._dynamo.backends.common.aot_autograd(
        fw_compiler=count, partition_fn=torch._functorch.partitioners.min_cut_rematerialization_partition
    )
    got = run(torch.compile(selective, fullgraph=True, backend=backend), block, inputs)
    assert graphs == [1, 0 if saved else 1]
    assert_same(got, wanted)
