"""Finds every mistake in a table at once; each sentence names the kernel, the parameter and the fix."""

from __future__ import annotations

import keyword
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tools.aot import rules
from tools.aot.emit import rule_in_cpp
from tools.aot.spec import DTYPES, OPTIONS, POINTEES, SCALARS, Kernel, camel
from tools.aot.tree import ARCHS

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
_CONFIG_NAME = re.compile(r"[a-z0-9][a-z0-9_]*")
_TUNED_NAME = re.compile(r"[A-Z][A-Z0-9_]*")
# Words of C++ that a Python parameter may well be called.
_RESERVED = frozenset(keyword.kwlist) | {
    *(
        "auto",
        "bool",
        "case",
        "char",
        "const",
        "default",
        "delete",
        "do",
        "double",
        "enum",
        "export",
        "extern",
    ),
    *(
        "float",
        "goto",
        "inline",
        "int",
        "long",
        "namespace",
        "new",
        "operator",
        "private",
        "protected",
        "public",
    ),
    *("register", "short", "signed", "sizeof", "static", "struct", "switch", "template", "this", "typedef"),
    *("union", "unsigned", "using", "virtual", "void", "volatile"),
}


def problems(kernels: Sequence[Kernel]) -> list[str]:
    """Everything that is wrong with a table; an empty list when it can be built."""
    found = [problem for kernel in kernels for problem in _kernel_problems(kernel)]
    for name, count in Counter(kernel.op for kernel in kernels).items():
        if count > 1:
            found.append(f"{name}_kernel: is in the table {count} times; give each Kernel its own function")
    return found


def _kernel_problems(kernel: Kernel) -> Iterator[str]:
    name = kernel.function.__name__
    sound = True
    for check in (_function, _arch, _axes, _configs, _claims, _arguments):
        for problem in check(kernel):
            sound = False
            yield f"{name}: {problem}"
    # What follows from the table can only be looked at when the table itself is sound.
    if sound:
        for check in (_rules, _choices):
            for problem in check(kernel):
                yield f"{name}: {problem}"


def _function(kernel: Kernel) -> Iterator[str]:
    name = kernel.function.__name__
    if not name.endswith("_kernel") or not _NAME.fullmatch(name):
        yield "the function must be named <op>_kernel; rename it"


def _arch(kernel: Kernel) -> Iterator[str]:
    if kernel.arch is not None and kernel.arch not in ARCHS:
        yield f"arch must be one of {', '.join(map(str, ARCHS))}, or left out for all, got {kernel.arch!r}"


def _axes(kernel: Kernel) -> Iterator[str]:
    for axis, values in kernel.axes.items():
        if not _NAME.fullmatch(axis) or axis in _RESERVED:
            yield f"axis {axis} must be a name that C++ takes too; rename it"
        if not values:
            yield f"axis {axis} must have at least one value, got none"
            continue
        kinds = {type(value) for value in values}
        if len(kinds) > 1 or not kinds <= {bool, int, str}:
            yield f"axis {axis} must have values of one kind (bool, int or str), got {list(values)}"
            continue
        if len(set(values)) < len(values):
            yield f"axis {axis} must have each value once, got {list(values)}"
        if kernel.axis_kind(axis) == "str":
            bad = [v for v in values if not _NAME.fullmatch(str(v)) or v in _RESERVED]
            if bad:
                yield f"axis {axis} must have values that are names in C++, got {bad}; rename them"
            if set(values) & set(DTYPES):
                yield (
                    f"axis {axis} must hold only element types ({', '.join(DTYPES)}) or none, got "
                    f"{list(values)}"
                )
            if camel(axis) == axis:
                yield f"axis {axis} would be both a type and a member in C++; write it in capitals"
    for shared in sorted(set(kernel.axes) & set(kernel.shape)):
        yield f"{shared} is an axis and a shape name; rename one"
    for name in kernel.tuned:
        if not _TUNED_NAME.fullmatch(name) or name in {*kernel.axes, *kernel.shape}:
            yield f"tuned {name} must be in capitals, and no axis or shape name; rename it"


def _configs(kernel: Kernel) -> Iterator[str]:
    if not kernel.configs:
        yield "configs must hold at least one Config, got none; leave it out for a single one without values"
        return
    for name, count in Counter(config.name for config in kernel.configs).items():
        if count > 1:
            yield f"config {name} is there {count} times; give each its own name"
        if not _CONFIG_NAME.fullmatch(name):
            yield f"config {name!r} must be named in lower-case letters, digits and _; rename it"
    *ruled, last = kernel.configs
    for config in ruled:
        if config.when is None:
            yield (
                f"config {config.name} has no rule, so those after it are never picked; add when=..., or "
                "put it last"
            )
    if last.when is not None:
        yield (
            f"config {last.name} is the last and must have no rule; drop its when, or add a last Config "
            "without one"
        )
    for config in kernel.configs:
        for option, value in config.options.items():
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                yield f"config {config.name}: {option} must be a whole number from 1, got {value!r}"
            elif option == "num_warps" and value & (value - 1):
                yield f"config {config.name}: num_warps must be a power of two, got {value}"
        for value_name, value in config.constexprs.items():
            if not isinstance(value, bool | int | str):
                yield f"config {config.name}: {value_name} must be a bool, int or str, got {value!r}"
            elif type(value) is not type(kernel.configs[0].values.get(value_name, value)):
                yield f"config {config.name}: {value_name} must have one type in all configs, got {value!r}"


def _claims(kernel: Kernel) -> Iterator[str]:
    """Every parameter is claimed exactly once: at run time by args, else by an axis or the configs."""
    known = {p.name for p in kernel.parameters}
    configured = {name for config in kernel.configs for name in config.constexprs}
    for parameter in kernel.parameters:
        name = parameter.name
        claims = [
            place
            for place, holds in (
                ("args", name in kernel.args),
                ("axes", name in kernel.axes),
                ("configs", name in configured),
            )
            if holds
        ]
        if len(claims) > 1:
            yield f"parameter {name} is claimed by {' and '.join(claims)}; keep one"
        elif not claims and name not in OPTIONS:
            where = "an axis or every config" if parameter.constexpr else "args"
            yield f"parameter {name} is claimed by nobody; add it to {where}"
        if parameter.constexpr and name in kernel.args:
            yield (
                f"parameter {name} is a constexpr and can't be passed; take it out of args, or drop its "
                "constexpr"
            )
        if not parameter.constexpr and claims and claims != ["args"]:
            yield f"parameter {name} is chosen at compile time; annotate it constexpr in the kernel"
    for config in kernel.configs:
        for name in sorted(configured & known - set(config.constexprs)):
            yield f"config {config.name}: must set {name}, as the other configs do"
    for place, names in (("args", set(kernel.args)), ("configs", configured)):
        for name in sorted(names - known):
            yield (
                f"{place}: {name} is no parameter of the kernel; its parameters are "
                f"{', '.join(sorted(known))}"
            )


def _arguments(kernel: Kernel) -> Iterator[str]:
    types = [axis for axis, values in kernel.axes.items() if values and kernel.axis_kind(axis) == "dtype"]
    for name, declared in kernel.args.items():
        if name in _RESERVED:
            yield f"parameter {name} is a word of C++; rename it in the kernel"
        pointee = declared.removeprefix("*")
        if declared.startswith("*") and pointee not in POINTEES and pointee not in types:
            choices = ", ".join([*types, *POINTEES])
            yield f"parameter {name} points to {pointee}, which is no type; take one of {choices}"
        if not declared.startswith("*") and declared not in SCALARS:
            yield (
                f"parameter {name} has the type {declared}, which can't be passed; take one of "
                f"{', '.join(SCALARS)}"
            )


def _rules(kernel: Kernel) -> Iterator[str]:
    known = {*kernel.shape, *kernel.axes, *kernel.tuned}
    for config in kernel.configs:
        if config.when is None:
            continue
        try:
            for name in sorted(rules.names(config.when) - known):
                yield (
                    f"config {config.name}: the rule {config.when!r} uses {name}, "
                    "which is neither a shape name nor an axis nor tuned; "
                    f"add it to shape, or take one of {', '.join(sorted(known))}"
                )
            if rules.names(config.when) <= known:
                rules.evaluate(config.when, {})
                rule_in_cpp(kernel, config.when)
        except rules.RuleError as error:
            yield (
                f"config {config.name}: the rule {config.when!r} {error}; allowed are + - * // %, "
                "comparisons, and, or, not, in"
            )


def _choices(kernel: Kernel) -> Iterator[str]:
    """What `skip`, `aligned` and the rules make of the axes."""
    try:
        built = [key for key in kernel.combinations() if not kernel.skip(key)]
        aligned: dict[str, Mapping[str, Any]] = {name: key for key in built for name in kernel.aligned(key)}
        ids = Counter(variant.name for variant in kernel.variants)
    except Exception as error:
        yield f"skip, aligned or a rule fails: {type(error).__name__}: {error}; they get axis values by name"
        return
    if not built:
        yield "skip leaves nothing to build; drop the Kernel, or let skip be false for some values"
    for name in sorted(aligned):
        if name not in kernel.args:
            yield (
                f"aligned names {name}, which is not in args; it can promise only for what is passed at "
                "run time"
            )
        elif kernel.args[name] in ("f32", "f64"):
            yield (
                f"aligned names {name}, a {kernel.args[name]}; only pointers and integers are multiples of 16"
            )
    for name, count in ids.items():
        if count > 1:
            yield f"{count} variants have the id {name}; rename the values of an axis, or a config"
