"""Writes C++ from tables: the launchers of a kernel file, the table of its images, the directory of all."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any

from tools.aot import rules
from tools.aot.image import Image
from tools.aot.spec import DEFAULT_OPTIONS, OPTIONS, SCALARS, Kernel, camel
from tools.aot.tree import Target
from tools.aot.tuned import Values

_TEMPLATES = Path(__file__).parent / "templates"


def write_if_changed(path: Path, data: bytes) -> bool:
    """Leaves a file with the same content alone, so that nothing behind it is rebuilt."""
    if path.exists() and path.read_bytes() == data:
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return True


def _fill(template: str, **holes: str) -> str:
    return Template((_TEMPLATES / template).read_text()).substitute(holes)


def _quoted(text: str) -> str:
    return json.dumps(text)


def _literal(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return _quoted(value) if isinstance(value, str) else str(value)


def _struct(name: str, members: Sequence[str]) -> str:
    body = f"\n{_indented(members, 4)}\n  " if members else ""
    return f"struct {name} {{{body}}};"


def _indented(lines: Sequence[str], spaces: int) -> str:
    return "\n".join(" " * spaces + line for line in lines)


def _wrapped(items: Sequence[str], spaces: int) -> str:
    lines = textwrap.wrap(", ".join(items) + ",", 110 - spaces, break_long_words=False)
    return _indented(lines, spaces)


def _option_names(kernel: Kernel) -> list[str]:
    named = [name for config in kernel.configs for name in config.options]
    return [name for name in OPTIONS if name == "num_warps" or name in named]


def _config_members(kernel: Kernel) -> dict[str, str]:
    """C++ type of every value of a kernel's configs."""
    types = {bool: "bool", int: "int32_t", str: "const char*"}
    constexprs = {name: types[type(value)] for name, value in kernel.configs[0].constexprs.items()}
    return {
        "index": "int32_t",
        "name": "const char*",
        **constexprs,
        **dict.fromkeys(_option_names(kernel), "int32_t"),
    }


def _axis_type(kernel: Kernel, axis: str) -> str:
    return {"dtype": "DType", "bool": "bool", "int": "int32_t", "str": camel(axis)}[kernel.axis_kind(axis)]


def _axis_literal(kernel: Kernel, axis: str, value: Any) -> str:
    if kernel.axis_kind(axis) in ("dtype", "str"):
        return f"{_axis_type(kernel, axis)}::{value}"
    return _literal(value)


def _argument(kernel: Kernel, name: str) -> str:
    declared = kernel.args[name]
    if declared.startswith("*"):
        return f"void* {name} = nullptr;  // {declared[1:]}"
    return f"{SCALARS[declared]} {name} = 0;"


def _declaration(kernel: Kernel) -> str:
    enums = [
        f"enum class {camel(axis)} {{ {', '.join(map(str, values))} }};"
        for axis, values in kernel.axes.items()
        if kernel.axis_kind(axis) == "str"
    ]
    return _fill(
        "launcher.h.in",
        struct=kernel.struct,
        kernel=kernel.function.__name__,
        arguments=_struct("Args", [_argument(kernel, name) for name in kernel.runtime_parameters]),
        enums="".join(f"  {line}\n\n" for line in enums),
        key=_struct("Key", [f"{_axis_type(kernel, axis)} {axis};" for axis in kernel.axes]),
        shape=_struct("Shape", [*(f"int64_t {name} = 0;" for name in kernel.shape), *_asked_of(kernel)]),
        tuned="".join(_tuned_declaration(name) for name in kernel.tuned),
        only=_ONLY_DECLARATION if kernel.asks_first else "",
        config=_struct("Config", [f"{kind} {name};" for name, kind in _config_members(kernel).items()]),
    )


def _asked_of(kernel: Kernel) -> list[str]:
    return ["int32_t device = 0;"] if kernel.tuned else []


def _tuned_declaration(name: str) -> str:
    return f"  // Measured: csrc/kernels/tuned.\n  static int64_t {name}(int32_t device);\n\n"


# Kernels of which some devices have no image: they take another way.
_ONLY_DECLARATION = (
    "  // Whether there is an image for a device.\n"
    "  static bool is_for(const Key& key, const Config& config, int32_t device);\n\n"
)


def _only_definition(kernel: Kernel) -> str:
    return (
        f"bool {kernel.struct}::is_for(const Key& key, const Config& config, int32_t device) {{\n"
        f"  return runtime::has_image({kernel.op}_table::variant_of(key, config), device);\n}}\n\n"
    )


def _tuned_definitions(kernel: Kernel, numbers: Values) -> str:
    """A slot for each tuned number, with its value on every architecture, and the function that reads it."""
    text = ""
    for name in kernel.tuned:
        full = f"{kernel.op}.{name}"
        listed = ", ".join(f"{{{arch}, {of[full]}}}" for arch, of in sorted(numbers.items()) if full in of)
        slot = f"k{kernel.struct}{camel(name)}"
        text += (
            f"\nnamespace {{\nruntime::TunedNumber {slot}({_quoted(full)}, {{{listed}}});\n}}  // namespace\n"
        )
        text += f"\nint64_t {kernel.struct}::{name}(int32_t device) {{ return {slot}.on(device); }}\n"
    return text


def rule_in_cpp(kernel: Kernel, rule: str) -> str:
    tuned = {name: f"{name}(shape.device)" for name in kernel.tuned}
    names = {
        **tuned,
        **{n: f"shape.{n}" for n in kernel.shape},
        **{axis: f"key.{axis}" for axis in kernel.axes},
    }
    enums = {a: _axis_type(kernel, a) for a in kernel.axes if kernel.axis_kind(a) in ("dtype", "str")}
    return rules.to_cpp(rule, names, enums)


def _pick(kernel: Kernel) -> list[str]:
    lines = []
    for config in kernel.configs:
        test = "" if config.when is None else f"if ({rule_in_cpp(kernel, config.when)}) "
        lines.append(f"{test}return k{kernel.struct}Configs[{len(lines)}];  // {config.name}")
    return lines


def _config_rows(kernel: Kernel) -> list[str]:
    rows = []
    for index, config in enumerate(kernel.configs):
        options = {
            name: config.options.get(name, DEFAULT_OPTIONS[name]) or 0 for name in _option_names(kernel)
        }
        values = {**{name: config.constexprs[name] for name in kernel.configs[0].constexprs}, **options}
        rows.append(
            "{" + ", ".join([str(index), _quoted(config.name), *map(_literal, values.values())]) + "},"
        )
    return rows


def _table_rows(kernel: Kernel) -> list[str]:
    """For every key, a row with the position of each config's variant; -1 where there is none."""
    places = {(tuple(v.key.values()), v.config_index): i for i, v in enumerate(kernel.variants)}
    rows = []
    for key in kernel.combinations():
        values = tuple(key.values())
        cells = [str(places.get((values, index), -1)) for index in range(len(kernel.configs))]
        label = ", ".join(f"{axis}={value}" for axis, value in key.items()) or "the only key"
        rows.append("{" + ", ".join(cells) + f"}},  // {label}")
    return rows


def _key_text(kernel: Kernel) -> list[str]:
    lines = []
    for axis, values in kernel.axes.items():
        kind = kernel.axis_kind(axis)
        if kind == "dtype":
            text = f"name_of(key.{axis})"
        elif kind == "str":
            names = ", ".join(_quoted(str(v)) for v in values)
            text = f"std::array<const char*, {len(values)}>{{{names}}}[static_cast<size_t>(key.{axis})]"
        else:
            text = f"std::to_string(key.{axis})"
        lines.append(f'text += std::string("{" " if lines else ""}{axis}=") + {text};')
    return lines


def _definition(kernel: Kernel, stem: str, first: int, numbers: Values) -> str:
    steps = []
    for axis, values in kernel.axes.items():
        listed = ", ".join(_axis_literal(kernel, axis, value) for value in values)
        steps.append(f"row.add<{_axis_type(kernel, axis)}>(key.{axis}, {{{listed}}});")
    enums = [axis for axis in kernel.axes if kernel.axis_kind(axis) == "str"]
    pick = _pick(kernel)
    uses = " ".join(pick)
    return _fill(
        "launcher.cpp.in",
        struct=kernel.struct,
        op=kernel.op,
        stem=camel(stem),
        file=stem,
        first=str(first),
        usings="".join(f"using {camel(axis)} = {kernel.struct}::{camel(axis)};\n" for axis in enums),
        configs=_indented(_config_rows(kernel), 4),
        columns=str(len(kernel.configs)),
        table=_indented(_table_rows(kernel), 4),
        row="".join(f"  {line}\n" for line in steps),
        text="".join(f"  {line}\n" for line in _key_text(kernel)),
        key="key" if "key." in uses else "/*key*/",
        shape="shape" if "shape." in uses else "/*shape*/",
        pick=_indented(pick, 2),
        tuned=_tuned_definitions(kernel, numbers),
        only=_only_definition(kernel) if kernel.asks_first else "",
        addresses=_wrapped([f"&arguments.{n}" for n in kernel.runtime_parameters] + ["&kNoScratch"] * 2, 6),
    )


def launchers(
    stem: str, kernels: Sequence[Kernel], targets: Sequence[Target], numbers: Values
) -> tuple[str, str]:
    """The header and the source of the launchers, for images of `targets`; `numbers` are the tuned ones."""
    header = _fill("stem.h.in", stem=stem, structs="\n".join(map(_declaration, kernels)))
    definitions, first = [], 0
    for kernel in kernels:
        definitions.append(_definition(kernel, stem, first, numbers))
        first += len(kernel.variants)
    name = camel(stem)
    sets = [f"{{{t.arch}, {_literal(t.ptx)}, k{name}_{t.name}}}," for t in targets]
    built = [variant for kernel in kernels for variant in kernel.variants]
    variants = [
        f"{{{_quoted(v.name)}, &k{name}Family, {i}, k{name}Loaded[{i}]}}," for i, v in enumerate(built)
    ]
    source = _fill(
        "stem.cpp.in",
        stem=stem,
        name=name,
        images="".join(f"extern const runtime::Image k{name}_{target.name}[];\n" for target in targets),
        sets=_indented(sets, 4) or "    {},",
        set_count=str(len(targets)),
        variants=_indented(variants, 4),
        variant_count=str(len(variants)),
        definitions="\n".join(definitions),
    )
    return header, source


def images_source(
    stem: str, targets: Sequence[Target], binary: str, images: Sequence[tuple[Image | None, int]]
) -> str:
    """The C++ file that embeds one file of images and says what each is.

    `images` come with their offsets, the first variant's for every target, then the second's; None where a
    kernel is not for the target.
    """
    names = ", ".join(target.name for target in targets)
    symbol = f"mamba_aot_{stem}_{targets[0].name}"
    tables = []
    for position, target in enumerate(targets):
        rows = [
            f"{{{_quoted(i.id)}, {_quoted(i.entry)}, {symbol} + {start}, {len(i.data)}, "
            f"{i.num_warps}, {i.shared_bytes}, {i.registers}, {i.spill_bytes}, "
            f"{_literal(i.overlaps)},\n     {_quoted(i.sha256)}}},"
            if i
            else "{},"
            for i, start in images[position :: len(targets)]
        ]
        name = f"k{camel(stem)}_{target.name}"
        tables.append(
            f"extern const runtime::Image {name}[];\n"
            f"const runtime::Image {name}[] = {{\n{_indented(rows, 4)}\n}};\n"
        )
    return _fill(
        "images.cpp.in",
        stem=stem,
        targets=names,
        symbol=symbol,
        binary=binary,
        tables="\n".join(tables),
    )


def directory(stems: Sequence[str], build_info: Mapping[str, Any]) -> str:
    """The C++ file that lists every kernel file's family and what the library was built from."""
    names = [f"k{camel(stem)}Family" for stem in stems]
    return _fill(
        "library.cpp.in",
        declarations="".join(f"extern const runtime::Family {name};\n" for name in names),
        families=", ".join(f"&generated::{name}" for name in names) or "nullptr",
        count=str(len(names)),
        build_info=f'R"json({json.dumps(build_info, indent=2, sort_keys=True)})json"',
    )
