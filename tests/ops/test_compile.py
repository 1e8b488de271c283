"""The ops as PyTorch sees them: opcheck, torch.compile without graph breaks, checkpointing, CUDA graphs."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

import mamba_aot
from mamba_aot.testing import (
    make_conv_inputs,
    make_conv_update_inputs,
    make_scan_inputs,
    make_state_update_inputs,
    results_of,
)

# Dynamo and Inductor warn about themselves, differently in every version of torch.
pytestmark = pytest.mark.filterwarnings("default")

ops = torch.ops.mamba_aot
FULL: dict[str, Any] = {"decay_gate": True, "initial_state": True, "discretization": "zoh", "groups": 2}
BRAIN: dict[str, Any] = {"dtype": torch.bfloat16}
THREE: dict[str, Any] = {"dtype": torch.bfloat16, "delta_dtype": torch.float32, "z_dtype": torch.float16}


def scan(**inputs: Any) -> tuple[Tensor, Tensor]:
    return mamba_aot.selective_scan_fn(**inputs, return_last_state=True)  # type: ignore[return-value]


def conv(**inputs: Any) -> tuple[Tensor, Tensor]:
    return mamba_aot.causal_conv1d_fn(**inputs, return_final_states=True)  # type: ignore[return-value]


def make_steps(device: str, **options: Any) -> dict[str, Any]:
    """Everything that `selective_state_update` takes beside one step."""
    inputs = make_state_update_inputs(device=device, steps=3, decay_gate=True, **options)
    return inputs | {
        "accepted_steps": torch.tensor([2, 3], dtype=torch.int32, device=device),
        "intermediate_states": inputs["state"].new_zeros(2, 3, *inputs["state"].shape[1:]),
        "out": torch.zeros_like(inputs["x"]),
    }


def make_step(steps: int, device: str) -> dict[str, Any]:
    inputs = make_state_update_inputs(device=device, steps=steps, heads=4, decay_gate=True)
    return {name: value for name, value in inputs.items() if name != "state_batch_indices"}


# Each public function with inputs of a given length; updates ignore it.
CALLS: dict[str, tuple[Callable[..., Any], Callable[[int, str], dict[str, Any]]]] = {
    "scan": (scan, lambda n, device: make_scan_inputs(length=n, device=device)),
    "scan, everything": (scan, lambda n, device: make_scan_inputs(length=n, device=device, **FULL)),
    "scan, channel-last": (
        scan,
        lambda n, device: make_scan_inputs(length=n, device=device, layout="channel"),
    ),
    "scan, rows of sequences": (
        scan,
        lambda n, device: make_scan_inputs(
            seq_idx=[[n // 3, n - n // 3], [-5, n - 5]],
            constant="B",
            heads=2,
            dim=4,
            state=2,
            initial_state=True,
            device=device,
        ),
    ),
    "scan, one row of sequences": (
        scan,
        lambda n, device: make_scan_inputs(
            cu_seqlens=[n // 3, 0, n - n // 3],
            is_complex=True,
            constant="C",
            dim=4,
            state=2,
            initial_state=True,
            device=device,
        ),
    ),
    "scan, strided": (scan, lambda n, device: make_scan_inputs(length=n, device=device, layout="strided")),
    "scan, bfloat16": (scan, lambda n, device: make_scan_inputs(length=n, device=device, **BRAIN, **FULL)),
    "scan, three dtypes": (
        scan,
        lambda n, device: make_scan_inputs(length=n, device=device, layout="channel", D=False, **THREE),
    ),
    "scan, three dtypes, strided": (
        scan,
        lambda n, device: make_scan_inputs(length=n, device=device, layout="strided", heads=2, **THREE),
    ),
    "scan, complex": (
        scan,
        lambda n, device: make_scan_inputs(length=n, device=device, is_complex=True, **FULL),
    ),
    "scan, interleaved": (
        scan,
        lambda n, device: make_scan_inputs(length=n, device=device, is_complex=True, interleaved=True),
    ),
    "conv": (conv, lambda n, device: make_conv_inputs(length=n, device=device)),
    "conv, channel-last": (
        conv,
        lambda n, device: make_conv_inputs(length=n, device=device, layout="channel", initial_states=True),
    ),
    "conv, strided": (
        conv,
        lambda n, device: make_conv_inputs(length=n, device=device, layout="strided", **BRAIN),
    ),
    "conv, packed rows": (
        conv,
        lambda n, device: make_conv_inputs(
            seq_idx=[[n // 3, n - n // 3], [-5, n - 5]], device=device, initial_states=True
        ),
    ),
    "conv, packed in one row": (
        conv,
        lambda n, device: make_conv_inputs(
            cu_seqlens=[n // 3, 0, n - n // 3], device=device, layout="channel", initial_states=True
        ),
    ),
    "conv, width 9": (conv, lambda n, device: make_conv_inputs(length=n, width=9, device=device)),
    "state update": (
        mamba_aot.selective_state_update,
        lambda n, device: make_state_update_inputs(device=device, slots=5),
    ),
    "state update, complex": (
        mamba_aot.selective_state_update,
        lambda n, device: make_state_update_inputs(device=device, is_complex=True, decay_gate=True),
    ),
    "state update, everything": (
        mamba_aot.selective_state_update,
        lambda n, device: make_steps(device, slots=5, targets=True, heads=4, groups=2),
    ),
    "state update, complex, everything": (
        mamba_aot.selective_state_update,
        lambda n, device: make_steps(device, is_complex=True),
    ),
    "state update, three dtypes": (
        mamba_aot.selective_state_update,
        lambda n, device: make_steps(device, state_dtype=torch.float16, **THREE),
    ),
    "state step": (mamba_aot.selective_state_step, make_step),
    "conv update": (
        mamba_aot.causal_conv1d_update,
        lambda n, device: make_conv_update_inputs(device=device, slots=5),
    ),
    "conv update, ring": (
        mamba_aot.causal_conv1d_update,
        lambda n, device: make_conv_update_inputs(device=device, slots=5, steps=2, kept=6, ring=True),
    ),
}
each_call = pytest.mark.parametrize(("function", "make"), CALLS.values(), ids=CALLS)


def takes_gradients(function: Callable[..., Any]) -> bool:
    return function in (scan, conv, mamba_aot.selective_state_step)


def run(call: Callable[..., Any], inputs: dict[str, Any], function: Callable[..., Any]) -> dict[str, Tensor]:
    """Results of `call`, which is `function` in some form, with gradients or with what it writes."""
    names = () if takes_gradients(function) else ("state", "conv_state", "intermediate_states", "out")
    written = [name for name in names if name in inputs]
    return results_of(call, inputs, backward=takes_gradients(function), written=written)


class Recorder(TorchDispatchMode):
    """Collects the calls of this package's ops below autograd."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple[Any, ...]]] = []

    def __torch_dispatch__(self, op: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        if op.namespace == "mamba_aot":
            self.calls.append((op, args))
        return op(*args, **(kwargs or {}))


@each_call
def test_opcheck(function: Callable[..., Any], make: Callable[..., dict[str, Any]], device: str) -> None:
    inputs = make(70, device)
    with Recorder() as recorder:
        run(function, inputs, function)
    # One finds out where sequences begin.
    packed = "seq_idx" in inputs or (function is conv and "cu_seqlens" in inputs)
    assert len(recorder.calls) == (2 + packed if takes_gradients(function) else 1)
    for op, args in recorder.calls:
        arguments = [a.detach() if isinstance(a, Tensor) else a for a in args]
        if op in (ops.selective_scan_fwd.default, ops.causal_conv1d_fwd.default):
            arguments = [
                a.requires_grad_() if isinstance(a, Tensor) and a.is_floating_point() else a
                for a in arguments
            ]
        torch.library.opcheck(op, tuple(arguments))


def test_opcheck_without_saved_states(device: str) -> None:
    with Recorder() as recorder:
        results_of(scan, make_scan_inputs(device=device), backward=False)
    ((op, args),) = recorder.calls
    assert args[-1] is False
    torch.library.opcheck(op, args)


@each_call
def test_compiles_as_one_graph_of_any_length(
    function: Callable[..., Any], make: Callable[..., dict[str, Any]], device: str
) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(function, fullgraph=True, dynamic=True, backend="aot_eager")
    for length in (70, 129, 33):
        got = run(compiled, make(length, device), function)
        wanted = run(function, make(length, device), function)
        assert got.keys() == wanted.keys()
        for name, value in got.items():
            assert torch.equal(value, wanted[name]), name
            assert value.stride() == wanted[name].stride() or name.startswith("written"), name


@pytest.mark.parametrize("name", ["scan, everything", "conv, channel-last", "state update", "conv update"])
def test_compiles_with_inductor(name: str) -> None:
    function, make = CALLS[name]
    torch._dynamo.reset()
    compiled = torch.compile(function, fullgraph=True, dynamic=True)
    got = run(compiled, make(70, "cpu"), function)
    torch.testing.assert_close(got, run(function, make(70, "cpu"), function))


def test_a_compiled_call_refuses_what_an_eager_one_does() -> None:
    torch._dynamo.reset()
    compiled = torch.compile(mamba_aot.causal_conv1d_fn, fullgraph=True, backend="aot_eager")
    # Python's binding of torch 2.15 makes a RuntimeError of the same sentence.
    with pytest.raises((ValueError, RuntimeError), match=r"causal_conv1d_fn: weight must be .* got \[7, 4\]"):
        compiled(torch.randn(2, 8, 10), torch.randn(7, 4))


class Scan(torch.nn.Module):
    """A module around the scan, whose A is a parameter."""

    def __init__(self, A: Tensor) -> None:
        super().__init__()
        self.A = torch.nn.Parameter(A)

    def forward(self, u: Tensor, delta: Tensor, B: Tensor, C: Tensor) -> Any:
        return mamba_aot.selective_scan_fn(u, delta, self.A, B, C, return_last_state=True)


@pytest.mark.parametrize("is_complex", [False, True], ids=["real", "complex"])
def test_exports_for_every_length(is_complex: bool) -> None:
    def arguments(length: int) -> tuple[Tensor, ...]:
        inputs = make_scan_inputs(length=length, is_complex=is_complex, delta_softplus=False)
        return tuple(inputs[name] for name in ("u", "delta", "B", "C"))

    module = Scan(make_scan_inputs(is_complex=is_complex)["A"])
    length = torch.export.Dim("length", min=2, max=4096)
    shapes = {name: {2: length} for name in ("u", "delta", "B", "C")}
    program = torch.export.export(module, arguments(63), dynamic_shapes=shapes)
    for many in (2, 63, 200):
        for got, wanted in zip(program.module()(*arguments(many)), module(*arguments(many)), strict=True):
            assert torch.equal(got, wanted)


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize(
    ("function", "make"), [CALLS["scan, everything"], CALLS["conv"]], ids=["scan", "conv"]
)
def test_checkpoint_recomputes(
    function: Callable[..., Any], make: Callable[..., dict[str, Any]], use_reentrant: bool, device: str
) -> None:
    def gradients(recompute: bool) -> list[Tensor]:
        inputs = make(70, device)
        leaves = [t.requires_grad_() for t in inputs.values() if isinstance(t, Tensor)]

        def positional(*values: Any) -> Any:
            return function(**dict(zip(inputs, values, strict=True)))

        values = inputs.values()
        outs = (
            checkpoint(positional, *values, use_reentrant=use_reentrant) if recompute else positional(*values)
        )
        torch.stack([out.sum() for out in outs]).sum().backward()
        return [leaf.grad for leaf in leaves if leaf.grad is not None]

    got, wanted = gradients(True), gradients(False)
    assert all(torch.equal(left, right) for left, right in zip(got, wanted, strict=True))


@pytest.mark.gpu
@each_call
def test_replays_in_a_cuda_graph(function: Callable[..., Any], make: Callable[..., dict[str, Any]]) -> None:
    inputs = make(70, "cuda")
    written = next((name for name in ("state", "conv_state") if name in inputs), None)
    if takes_gradients(function):
        written = None
    leaves = [
        t for t in inputs.values() if isinstance(t, Tensor) and (t.is_floating_point() or t.is_complex())
    ]
    for leaf in leaves:
        leaf.requires_grad_()

    def step() -> list[Tensor]:
        if written is not None:
            fresh = inputs[written].detach().clone()
            return [function(**inputs | {written: fresh}), fresh]
        outs = function(**inputs)
        weights = [torch.ones_like(out) for out in outs]
        return [*outs, *torch.autograd.grad(outs, leaves, weights, materialize_grads=True)]

    # On a side stream, and without keeping the graph of autograd, whose nodes remember their stream.
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        wanted = [value.detach() for value in step()]
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = step()
    for value in got:
        value.detach().zero_()
    graph.replay()
    assert all(torch.equal(left, right) for left, right in zip(got, wanted, strict=True))


@pytest.mark.gpu
@each_call
def test_runs_on_the_current_stream(
    function: Callable[..., Any], make: Callable[..., dict[str, Any]]
) -> None:
    inputs = make(70, "cuda")
    wanted = run(function, inputs, function)
    sequence = inputs["u"] if "u" in inputs else inputs["x"]
    values = sequence.clone()
    sequence.zero_()
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        # Work on this stream waits for the sleep and the copy behind it; work on another one would not.
        torch.cuda._sleep(20_000_000)
        sequence.copy_(values)
        got = run(function, inputs, function)
    torch.cuda.synchronize()
    assert all(torch.equal(got[name], wanted[name]) for name in wanted)
