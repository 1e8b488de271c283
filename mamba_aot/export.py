"""Programs of a `MambaLM` that run without this package's Python: one reads a prompt, one takes a step.

`export_programs` gives them as graphs of torch.export, `write_package` compiles them with AOTInductor into
one file. Both call the ops of `libmamba_aot.so`, which whoever runs them loads first:
`examples/cpp_deploy` does so from C++.

    prefill(ids [B, L])         -> logits of the next token [B, vocab_size], state...
    step(ids [B], [state...])   -> logits of the next token [B, vocab_size]; moves the state on in place

ids are int64. The state is up to three tensors for every layer, in the order of the layers; complex ones are
real pairs, [..., 2]. Batch and length are free, the batch unless it is given; with attention `max_length`
bounds the tokens of a sequence.
"""

import dataclasses
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._guards import detect_fake_mode
from torch.export import Dim, ExportedProgram

from mamba_aot._real_graph import make_real
from mamba_aot.model import MambaLM


class StateLayout:
    """How the state of a model is laid out in a list of real tensors."""

    def __init__(self, model: MambaLM, max_length: int | None) -> None:
        if max_length is None and "a" in model.config.pattern:
            raise ValueError(
                "export: attention keeps keys and values of every token, so the state has a size only with a "
                "max length, the most tokens of a sequence; give one (--max-length on the command line)"
            )
        if max_length is not None and max_length < 2:
            raise ValueError(f"export: the max length must be at least 2, got {max_length}")
        example = model.allocate_state(1, device="meta", max_length=max_length)
        # For every layer its type, and of each of its tensors the shape without batch and the dtype.
        self._layers = [(type(layer), [(t.shape[1:], t.dtype) for t in _values(layer)]) for layer in example]

    def zeros(self, batch: int, device: torch.device) -> list[Tensor]:
        """The state before the first token."""
        return [
            torch.zeros(
                batch, *shape, *((2,) if dtype.is_complex else ()), dtype=dtype.to_real(), device=device
            )
            for _, layer in self._layers
            for shape, dtype in layer
        ]

    def state_of(self, tensors: list[Tensor]) -> tuple[Any, ...]:
        """The state as the model takes it, made of views: what is written there is written into `tensors`."""
        remaining = iter(tensors)
        return tuple(
            kind(*(_typed(next(remaining), dtype) for _, dtype in layer)) if layer else None
            for kind, layer in self._layers
        )


class Prefill(nn.Module):
    """Reads a prompt from the zero state on."""

    def __init__(self, model: MambaLM, layout: StateLayout) -> None:
        super().__init__()
        self.model = model
        self.layout = layout

    def forward(self, ids: Tensor) -> tuple[Tensor, ...]:
        """ids [B, L] to the logits after the last of them, [B, vocab_size], and the state."""
        state = self.layout.zeros(ids.shape[0], ids.device)
        return self.model(ids, self.layout.state_of(state), last_only=True), *state


class Step(nn.Module):
    """Takes one token more."""

    def __init__(self, model: MambaLM, layout: StateLayout) -> None:
        super().__init__()
        self.model = model
        self.layout = layout

    def forward(self, ids: Tensor, state: list[Tensor]) -> Tensor:
        """ids [B] to the logits after them, [B, vocab_size]; writes the new state into `state`."""
        return self.model.step(ids, self.layout.state_of(state))


def export_programs(
    model: MambaLM, max_length: int | None = None, batch: int | None = None
) -> dict[str, ExportedProgram]:
    """Exports `model` as the programs "prefill" and "step", for any length, on its own device.

    A model with attention needs `max_length`, the most tokens that a sequence will have, prompt included.
    Without `batch` both are for any number of sequences. For a small one that is given, the step of a
    published block is the fused one that decoding in Python uses.

    Raises:
        ValueError: `max_length` is missing, or less than 2; `batch` is less than 1.
    """
    require_batch(batch)
    layout = StateLayout(model, max_length)
    device = model.embedding.weight.device
    rows = {0: Dim("batch", min=1)} if batch is None else {}
    with torch.no_grad():
        # Sizes that differ from each other and from every small constant of the code.
        examples = 5 if batch is None else batch
        length = 37 if max_length is None else min(37, max_length)
        ids = torch.zeros(examples, length, dtype=torch.int64, device=device)
        state = layout.zeros(examples, device)
        programs = {
            "prefill": torch.export.export(
                Prefill(model, layout).eval(),
                (ids,),
                dynamic_shapes={"ids": {**rows, 1: Dim("length", min=1, max=max_length)}},
            ),
            "step": torch.export.export(
                Step(model, layout).eval(),
                (torch.zeros(examples, dtype=torch.int64, device=device), state),
                dynamic_shapes={"ids": rows, "state": [rows for _ in state]},
            ),
        }
    for program in programs.values():
        make_real(program)
    return programs


def write_package(
    model: MambaLM,
    out: str | os.PathLike[str],
    max_length: int | None = None,
    batch: int | None = None,
) -> None:
    """Compiles both programs for the device of `model` into the file `out`; needs a C++ compiler.

    The file appears whole or not at all. `max_length` and `batch` as in `export_programs`.

    Raises:
        ValueError: `out` does not end in .pt2, its directory is not there, `max_length` is missing, or
            `batch` is less than 1.
    """
    from torch._inductor import aot_compile
    from torch._inductor.package.package import package_aoti

    out = Path(out)
    require_out(out)
    metadata = {
        "vocab_size": str(model.config.vocab_size),
        "device": model.embedding.weight.device.type,
    }
    for name, value in (("max_length", max_length), ("batch", batch)):
        if value is not None:
            metadata[name] = str(value)
    options = {
        "aot_inductor.package": True,
        "aot_inductor.metadata": metadata,
        # What follows from the weights alone, such as A, is computed when the package is loaded.
        "aot_inductor.use_runtime_constant_folding": True,
    }
    files = {}
    # In this order: Inductor of torch before 2.13 spells out the arguments of an op that it meets first. For
    # the norm behind the layers of a step they are all of them, in a text that doubles with each.
    for name, program in export_programs(model, max_length, batch).items():
        assert program.example_inputs is not None, "torch.export keeps the inputs it was given"
        with _own_ranges(program):
            files[name] = aot_compile(program.module(), *program.example_inputs, options=options)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".mamba-aot-") as folder:
        partial = Path(folder) / "partial.pt2"
        package_aoti(str(partial), files)
        partial.replace(out)


@contextmanager
def _own_ranges(program: ExportedProgram) -> Iterator[None]:
    """Within it Inductor takes for the ranges of free sizes, which its checks of inputs name, the program's.

    While a program is traced they count as 2 at least, and what Inductor decides for the example inputs would
    narrow them further.
    """
    mode = detect_fake_mode([node.meta.get("val") for node in program.graph.nodes])
    assert mode is not None, "torch.export traces with fake tensors"
    assert mode.shape_env is not None
    mode.shape_env.var_to_range.update(program.range_constraints)
    with mode.shape_env.suppress_guards():
        yield


def require_batch(batch: int | None) -> None:
    """Raises ValueError unless a program can be for so many sequences."""
    if batch is not None and batch < 1:
        raise ValueError(f"export: the batch must be at least 1, got {batch}")


def require_device(name: str) -> torch.device:
    """The device "cpu" or "cuda"; raises ValueError for any other and for a GPU that is not there."""
    if name not in ("cpu", "cuda"):
        raise ValueError(f'export: --device must be "cpu" or "cuda", got "{name}"')
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            f"export: --device cuda needs a GPU that torch can use, torch {torch.__version__} finds none; "
            "export on a machine that has one, or see what `mamba-aot doctor` says"
        )
    return torch.device(name)


def require_out(out: Path) -> None:
    """Raises ValueError unless a package can be written to `out`."""
    if out.suffix != ".pt2":
        raise ValueError(f"export: --out must end in .pt2, got {out}")
    if not out.absolute().parent.is_dir() or out.is_dir():
        raise ValueError(f"export: --out must be a file in a directory that exists, got {out}")


def _values(layer: Any) -> list[Tensor]:
    # An MLP has no state.
    return [] if layer is None else [getattr(layer, field.name) for field in dataclasses.fields(layer)]


def _typed(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.view_as_complex(tensor) if dtype.is_complex else tensor
