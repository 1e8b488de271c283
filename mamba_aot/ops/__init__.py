"""The ops: in each file, in reading order, the public function, its fake and its autograd formula."""

from mamba_aot import _native
from mamba_aot.ops._compile_cache import tag_compile_cache

# The compiled library defines the ops that the files here add fakes and formulas to.
_native.library()
tag_compile_cache(_native.build_info()["version"])

from mamba_aot.ops import _transforms  # noqa: E402, F401, its rules are for ops that are defined
