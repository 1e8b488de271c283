"""`python -m tools.aot list | check | preview <kernel> | build | tune`: compiles the variant tables."""

from __future__ import annotations

import argparse
import sys

from tools.aot import tree, tuned
from tools.aot.build import BuildError, build, install
from tools.aot.emit import launchers
from tools.aot.generate import checked_kernels
from tools.aot.spec import Kernel


def _list(_: argparse.Namespace) -> int:
    """Prints the id of every image that a build would make."""
    archs = tree.chosen_archs(None)
    for stem in tree.stems(tree.ROOT):
        for kernel in checked_kernels(tree.ROOT, stem):
            for variant in kernel.variants:
                for target in tree.targets_of(variant, archs):
                    print(variant.id(target.name))
    return 0


def _check(_: argparse.Namespace) -> int:
    """Prints every mistake in every table."""
    failed = 0
    for stem in tree.stems(tree.ROOT):
        try:
            kernels = checked_kernels(tree.ROOT, stem)
            print(f"csrc/kernels/{stem}.py: {sum(len(k.variants) for k in kernels)} variants, nothing wrong")
        except (tree.TableError, ImportError) as error:
            failed = 1
            print(error, file=sys.stderr)
    return failed


def _describe(kernel: Kernel) -> None:
    print(
        f"{kernel.function.__name__}: {len(kernel.variants)} variants an architecture, struct {kernel.struct}"
    )
    for variant in kernel.variants:
        aligned = [kernel.parameters[at].name for (at,) in variant.attributes]
        print(f"  {variant.name}")
        print(
            f"    signature  {' '.join(f'{n}:{t}' for n, t in variant.signature.items() if t != 'constexpr')}"
        )
        print(f"    constexpr  {' '.join(f'{n}={v}' for n, v in variant.constexprs.items()) or 'none'}")
        print(
            f"    options    {' '.join(f'{n}={v}' for n, v in variant.config.options.items()) or 'defaults'}"
        )
        print(f"    aligned    {' '.join(aligned) or 'nothing'}")


def _preview(arguments: argparse.Namespace) -> int:
    """Prints what is derived from a table: variants and the launcher's C++."""
    for stem in tree.stems(tree.ROOT):
        kernels = checked_kernels(tree.ROOT, stem)
        chosen = [k for k in kernels if arguments.kernel in (stem, k.op, k.function.__name__)]
        if not chosen:
            continue
        for kernel in chosen:
            _describe(kernel)
        for text in launchers(stem, chosen, tree.targets(tree.chosen_archs(None)), tuned.load(tree.ROOT)):
            print(f"\n{text}", end="")
        return 0
    print(f"tools.aot: no kernel is called {arguments.kernel}; there are {_known()}", file=sys.stderr)
    return 1


def _known() -> str:
    return ", ".join(k.op for stem in tree.stems(tree.ROOT) for k in tree.kernels(tree.ROOT, stem)) or "none"


def _build(arguments: argparse.Namespace) -> int:
    """Builds the libraries and puts them into mamba_aot/."""
    libraries = build(tree.ROOT, tree.chosen_archs(arguments.archs), verbose=arguments.verbose)
    install(libraries, tree.ROOT / "mamba_aot")
    return 0


def _tune(arguments: argparse.Namespace) -> int:
    """Times what csrc/kernels/tuned decides about on this GPU and writes the best numbers there."""
    # Its ops need the built library, which all other commands do without.
    from tools.aot import tune

    return tune.run(arguments.numbers, write=not arguments.dry_run)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tools.aot", description="Compiles the kernels of csrc/kernels."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help=_list.__doc__).set_defaults(run=_list)
    commands.add_parser("check", help=_check.__doc__).set_defaults(run=_check)
    preview = commands.add_parser("preview", help=_preview.__doc__)
    preview.add_argument("kernel", help="a kernel, or the name of its file")
    preview.set_defaults(run=_preview)
    make = commands.add_parser("build", help=_build.__doc__)
    make.add_argument(
        "--archs", help='architectures, such as "80;90", or none; default: MAMBA_AOT_ARCHS, else all'
    )
    make.add_argument("--verbose", action="store_true", help="print every command")
    make.set_defaults(run=_build)
    choose = commands.add_parser("tune", help=_tune.__doc__)
    choose.add_argument("numbers", nargs="*", help="such as causal_conv1d_fwd.THREADS; default: all")
    choose.add_argument("--dry-run", action="store_true", help="write nothing")
    choose.set_defaults(run=_tune)
    arguments = parser.parse_args()
    try:
        return arguments.run(arguments)
    except (BuildError, tree.TableError) as error:
        print(f"tools.aot: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
