"""The variant table: what a kernel file declares at its end, and what follows from it.

Pure Python: importable without triton and torch, so that tables can be read, checked and tested anywhere.
"""

from __future__ import annotations

import inspect
import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from tools.aot import rules

# Names of element types in tables, ids and C++, and what Triton calls them.
# `half` is either sixteen-bit format, which the kernel tells apart at run time.
DTYPES = {"f32": "fp32", "f16": "fp16", "bf16": "bf16", "f64": "fp64", "half": "i16"}
# Scalar argument types and the C type whose address the driver is given; the sizes must match exactly.
SCALARS = {
    "i32": "int32_t",
    "i64": "int64_t",
    "u32": "uint32_t",
    "u64": "uint64_t",
    "f32": "float",
    "f64": "double",
}
POINTEES = {**DTYPES, "i32": "i32", "i64": "i64", "u8": "u8"}
# The compiler's options and what they are where a config is silent.
DEFAULT_OPTIONS = {"num_warps": 4, "num_stages": 3, "maxnreg": None}
OPTIONS = tuple(DEFAULT_OPTIONS)

AxisValue = bool | int | str


@dataclass(frozen=True)
class Parameter:
    """One parameter of a kernel's Python signature."""

    name: str
    constexpr: bool


def parameters_of(function: Any) -> list[Parameter]:
    """Reads the signature of a jit-decorated kernel, or of a plain function that stands for one."""
    if hasattr(function, "params"):
        return [Parameter(p.name, bool(p.is_constexpr)) for p in function.params]
    signature = inspect.signature(function)
    return [Parameter(p.name, "constexpr" in str(p.annotation)) for p in signature.parameters.values()]


class Config:
    """One way to run a kernel: compile-time values, and the rule that chooses it.

    Args:
        name: last part of the variant id.
        when: arithmetic over `Shape` and axis names, such as `"B * D < 4096 and T == 'bf16'"`. The first
            config whose rule holds is picked; the last one has none.
        values: constexpr parameters by name, and the compiler options `num_warps`, `num_stages`, `maxnreg`.
    """

    def __init__(self, name: str, when: str | None = None, **values: AxisValue) -> None:
        self.name = name
        self.when = when
        self.values = values

    @property
    def constexprs(self) -> dict[str, AxisValue]:
        return {name: value for name, value in self.values.items() if name not in OPTIONS}

    @property
    def options(self) -> dict[str, AxisValue]:
        return {name: value for name, value in self.values.items() if name in OPTIONS}


def _all_combinations(_: Mapping[str, Any]) -> bool:
    return False


def _used_everywhere(_: Mapping[str, Any], _arch: int) -> bool:
    return False


def _kept_as_ptx(_: Mapping[str, Any]) -> bool:
    return True


def _nothing_aligned(_: Mapping[str, Any]) -> list[str]:
    return []


@dataclass(frozen=True, eq=False)
class Kernel:
    """A kernel and everything that is built from it.

    Attributes:
        function: the `@triton.jit` or `@gluon.jit` function, named `<op>_kernel`.
        args: type of every run-time parameter: a scalar (`i32 i64 u32 u64 f32 f64`), or a pointer (`*f32`,
            `*i64`, or `*T` for the type that axis T takes).
        axes: values that are enumerated. An axis of element types gives pointers their type; bool, int and
            str axes become the constexpr parameter of that name if the kernel has one.
        skip: takes axis values by name, true for a combination that is not built.
        aligned: takes axis values by name, gives the arguments promised to be multiples of 16 (bytes for
            pointers).
        configs: the ways to run it, tried in order.
        shape: the names that the rules of `configs` may use.
        tuned: names of numbers that rules and C++ may use, whose values lie in `csrc/kernels/tuned`.
        arch: the only architecture that has the instructions it uses; None for all.
        unused: takes axis values by name and an architecture, true where no device that takes its images asks
            for that combination.
        portable: takes axis values by name, false for a combination that is not kept as PTX: a device without
            an image of its own takes another.
    """

    function: Any
    args: Mapping[str, str]
    axes: Mapping[str, Sequence[AxisValue]] = field(default_factory=dict)
    skip: Callable[[Mapping[str, Any]], bool] = _all_combinations
    aligned: Callable[[Mapping[str, Any]], Sequence[str]] = _nothing_aligned
    configs: Sequence[Config] = (Config("only"),)
    shape: Sequence[str] = ()
    tuned: Sequence[str] = ()
    arch: int | None = None
    unused: Callable[[Mapping[str, Any], int], bool] = _used_everywhere
    portable: Callable[[Mapping[str, Any]], bool] = _kept_as_ptx

    @cached_property
    def op(self) -> str:
        return self.function.__name__.removesuffix("_kernel")

    @cached_property
    def struct(self) -> str:
        return camel(self.op)

    @cached_property
    def parameters(self) -> list[Parameter]:
        return parameters_of(self.function)

    @property
    def runtime_parameters(self) -> list[str]:
        return [p.name for p in self.parameters if not p.constexpr]

    @property
    def asks_first(self) -> bool:
        """Whether a device that the library is for may have no image of it."""
        return self.arch is not None or self.portable is not _kept_as_ptx

    def axis_kind(self, axis: str) -> str:
        """Kind of an axis: `dtype`, `bool`, `int` or `str`."""
        values = self.axes[axis]
        if all(isinstance(v, str) and v in DTYPES for v in values):
            return "dtype"
        return type(values[0]).__name__

    def combinations(self) -> Iterator[dict[str, AxisValue]]:
        """Every combination of axis values, skipped ones too, in the order of the table."""
        for values in itertools.product(*self.axes.values()):
            yield dict(zip(self.axes, values, strict=True))

    def reachable(self, key: Mapping[str, AxisValue]) -> list[int]:
        """Indices of the configs that `pick` may return for these axis values, whatever the shape."""
        found = []
        for index, config in enumerate(self.configs):
            verdict = True if config.when is None else rules.evaluate(config.when, key)
            if verdict is not False:
                found.append(index)
            if verdict is True:
                break
        return found

    @cached_property
    def variants(self) -> list[Variant]:
        """What is compiled, in the order in which images are stored."""
        built = [key for key in self.combinations() if not self.skip(key)]
        return [
            Variant(self, key, self.configs[index], index) for key in built for index in self.reachable(key)
        ]


@dataclass(frozen=True, eq=False)
class Variant:
    """A kernel with every compile-time choice made, except the architecture."""

    kernel: Kernel
    key: Mapping[str, AxisValue]
    config: Config
    config_index: int

    @property
    def name(self) -> str:
        """The id without the architecture: `selective_scan_fwd-bf16-complex-seq-few`."""
        return "-".join([self.kernel.op, *self._suffix()])

    def id(self, target: str) -> str:
        """The readable id: `selective_scan_fwd-sm90-bf16-complex-seq-few`; `target` is `sm90` or `ptx80`."""
        return "-".join([self.kernel.op, target, *self._suffix()])

    def _suffix(self) -> list[str]:
        parts = []
        for axis, value in self.key.items():
            if isinstance(value, bool):
                parts += [axis.lower()] if value else []
            elif isinstance(value, int):
                parts.append(f"{axis.lower()}{value}")
            else:
                parts.append(value)
        return [*parts, self.config.name]

    @property
    def constexprs(self) -> dict[str, AxisValue]:
        # Gluon kernels lay tiles out by the number of warps, so an option may be a parameter too.
        chosen = {**self.key, **DEFAULT_OPTIONS, **self.config.values}
        return {p.name: chosen[p.name] for p in self.kernel.parameters if p.constexpr}

    @property
    def signature(self) -> dict[str, str]:
        """Triton's type of every parameter, in the kernel's order."""
        return {
            p.name: "constexpr" if p.constexpr else self._triton_type(p.name) for p in self.kernel.parameters
        }

    def _triton_type(self, argument: str) -> str:
        declared = self.kernel.args[argument]
        if not declared.startswith("*"):
            return DTYPES.get(declared, declared)
        pointee = declared[1:]
        return "*" + POINTEES[str(self.key.get(pointee, pointee))]

    @property
    def attributes(self) -> dict[tuple[int], list[list[Any]]]:
        """Divisibility promises by parameter position, in the form that Triton takes."""
        promised = set(self.kernel.aligned(self.key))
        names = [p.name for p in self.kernel.parameters]
        return {(names.index(name),): [["tt.divisibility", 16]] for name in names if name in promised}


def camel(name: str) -> str:
    """`selective_scan_fwd` -> `SelectiveScanFwd`, `LAYOUT` -> `Layout`."""
    return "".join(part.capitalize() for part in re.split(r"_+", name.lower()))
