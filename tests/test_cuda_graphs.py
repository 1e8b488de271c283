"""Models in CUDA graphs: captured by hand, for training and for decoding, and by mode="reduce-overhead"."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from mamba_aot import MambaLM, MambaLMConfig, SSMConfig

# Dynamo and Inductor warn about themselves, differently in every version of torch.
pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("default")]


def make_model() -> MambaLM:
    torch.manual_seed(0)
    return MambaLM(MambaLMConfig(n_layer=2, ssm=SSMConfig(d_model=32, d_state=4)), device="cuda")


def make_ids(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(256, shape, generator=torch.Generator().manual_seed(seed)).cuda()


def capture(call: Callable[[], None]) -> torch.cuda.CUDAGraph:
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph


def test_a_training_step_is_replayed() -> None:
    model, other = make_model(), make_model()
    ids = make_ids(2, 71)
    parameters = list(model.parameters())

    def step() -> None:
        loss = model.loss(ids[:, :-1], ids[:, 1:])
        with torch.no_grad():
            for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
                parameter.sub_(gradient, alpha=0.1)

    start = [parameter.detach().clone() for parameter in parameters]
    graph = capture(step)
    with torch.no_grad():
        for parameter, value in zip(parameters, start, strict=True):
            parameter.copy_(value)
    for seed in range(3):
        ids.copy_(make_ids(2, 71, seed=seed))
        graph.replay()
        loss = other.loss(ids[:, :-1], ids[:, 1:])
        with torch.no_grad():
            gradients = torch.autograd.grad(loss, list(other.parameters()))
            for parameter, gradient in zip(other.parameters(), gradients, strict=True):
                parameter.sub_(gradient, alpha=0.1)
    for left, right in zip(parameters, other.parameters(), strict=True):
        torch.testing.assert_close(left, right)


def test_a_step_of_decoding_is_replayed() -> None:
    model = make_model().eval()
    state, other = model.allocate_state(2), model.allocate_state(2)
    ids, logits = make_ids(2), torch.empty(2, 256, device="cuda")

    def step() -> None:
        logits.copy_(model.step(ids, state))

    graph = capture(step)
    for layer in state:
        layer.conv.zero_()
        layer.ssm.zero_()
    for seed in range(10):
        ids.copy_(make_ids(2, seed=seed))
        graph.replay()
        torch.testing.assert_close(logits, model.step(ids, other))


# One row and few; tensor cores; tensor cores between torch's products. The last number is d_model.
FUSED = pytest.mark.parametrize(("batch", "width"), [(1, 768), (3, 768), (16, 768), (48, 768), (20, 2048)])


def make_fused(width: int) -> MambaLM:
    """A model whose layers step in kernels that begin while those before them still run."""
    torch.manual_seed(0)
    config = MambaLMConfig(n_layer=6, ssm=SSMConfig(d_model=width), layers="m")
    return MambaLM(config, device="cuda", dtype=torch.bfloat16).eval()


@torch.inference_mode()
@FUSED
def test_kernels_that_overlap_read_what_was_written(batch: int, width: int) -> None:
    model, tokens = make_fused(width), make_ids(200, batch)

    def run(how: str) -> tuple[list[Tensor], list[Tensor]]:
        state = model.allocate_state(batch)
        ids, logits = tokens[0].clone(), torch.empty(batch, 256, device="cuda", dtype=torch.bfloat16)

        def step() -> None:
            logits.copy_(model.step(ids, state))

        replay = capture(step).replay if how == "graph" else step
        for layer in state:
            layer.conv.zero_()
            layer.ssm.zero_()
        found = []
        for row in tokens:
            ids.copy_(row)
            replay()
            found.append(logits.clone())
            if how == "one kernel after the other":
                torch.cuda.synchronize()
        return found, [tensor for layer in state for tensor in (layer.conv, layer.ssm)]

    slow = run("one kernel after the other")
    for how in ("graph", "call by call"):
        for found, wanted in zip(run(how), slow, strict=True):
            assert all(map(torch.equal, found, wanted)), how


@torch.inference_mode()
@FUSED
def test_weights_written_right_before_a_step_are_read(batch: int, width: int) -> None:
    model, ids = make_fused(width), make_ids(batch)
    written = [p for name, p in model.named_parameters() if name.endswith("_proj.weight")]
    versions = [[torch.randn_like(p) * 0.03 for p in written] for _ in range(2)]
    found: list[list[Tensor]] = [[], []]
    for turn in range(100):
        state = model.allocate_state(batch)
        for weight, value in zip(written, versions[turn % 2], strict=True):
            weight.copy_(value)
        found[turn % 2].append(model.step(ids, state))
    assert all(torch.equal(logits, of[0]) for of in found for logits in of)
    assert not torch.equal(found[0][0], found[1][0])


def test_reduce_overhead_replays_graphs_in_decoding() -> None:
    model = make_model().eval()
    state, other = model.allocate_state(2), model.allocate_state(2)
    for layer in state:
        torch._dynamo.mark_static_address(layer.conv)
        torch._dynamo.mark_static_address(layer.ssm)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    step = torch.compile(model.step, fullgraph=True, mode="reduce-overhead")
    for seed in range(20):
        ids = make_ids(2, seed=seed)
        torch.compiler.cudagraph_mark_step_begin()
        torch.testing.assert_close(step(ids, state).clone(), model.step(ids, other), rtol=1e-3, atol=1e-4)
    assert torch._dynamo.utils.counters["inductor"]["cudagraph_skips"] == 0
