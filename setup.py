"""Asks tools.aot to build the two libraries of the package; everything else about it is in pyproject.toml."""

import os
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
# Builds that pip isolates run this file without the checkout on the path.
sys.path.insert(0, str(ROOT))

from tools.aot import tree  # noqa: E402
from tools.aot.build import BuildError, build, install  # noqa: E402


class build_libraries(build_ext):  # noqa: N801 (setuptools names commands like this)
    """Builds `libmamba_aot.so` and `_C`, and copies them to where setuptools wants the package."""

    def run(self) -> None:
        if self.parallel:
            os.environ.setdefault("MAX_JOBS", str(self.parallel))
        try:
            libraries = build(ROOT, tree.chosen_archs(None))
        except (BuildError, tree.TableError) as error:
            raise SystemExit(f"mamba-aot: {error}") from error
        package = ROOT if self.editable_mode or self.inplace else Path(self.build_lib)
        install(libraries, package / "mamba_aot")

    def get_outputs(self) -> list[str]:
        package = Path(self.build_lib) / "mamba_aot"
        return [str(package / "libmamba_aot.so"), str(package / Path(self.get_ext_filename("_C")).name)]

    def get_output_mapping(self) -> dict[str, str]:
        return {}


# The extension is declared so that setuptools tags the wheel for this platform; its sources are tools.aot's
# business.
setup(ext_modules=[Extension("mamba_aot._C", sources=[])], cmdclass={"build_ext": build_libraries})
