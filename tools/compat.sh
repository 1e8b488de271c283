#!/usr/bin/env bash
# Runs op tests with one libmamba_aot.so under several versions of torch, and writes docs/compatibility.md:
#     bash tools/compat.sh 2.10.0 2.11.0 2.13.0 2.15.0
# Each version gets an environment of its own under $COMPAT_DIR (default: build/compat), which is kept. CUDA
# builds of torch run the tests on CPU tensors. A version that can't be installed is recorded as such.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
library=$root/mamba_aot/libmamba_aot.so
folder=${COMPAT_DIR:-$root/build/compat}
python=${PYTHON:-python3}
tests=(tests/ops/test_selective_scan.py tests/ops/test_state_update.py tests/ops/test_causal_conv1d.py
  tests/ops/test_linear_recurrence.py tests/ops/test_rms_norm.py tests/ops/test_mamba1_sequence.py
  tests/aot/test_native.py)
[ $# -gt 0 ] || set -- 2.10.0 2.11.0 2.13.0 2.15.0
[ -f "$library" ] || { echo "tools/compat.sh: there is no $library; build it: python -m tools.aot build" >&2; exit 1; }

rows=""
failed=0
for version in "$@"; do
  environment=$folder/torch-$version
  mkdir -p "$folder"
  if [ ! -e "$environment/ready" ]; then
    "$python" -m venv --clear "$environment"
    if ! "$environment/bin/python" -m pip install --quiet "torch==$version" "pytest>=8" "hypothesis>=6" numpy \
      ninja typer rich safetensors matplotlib >"$environment/install.log" 2>&1; then
      echo "tools/compat.sh: torch $version could not be installed: $(tail -n 1 "$environment/install.log")" >&2
      rows+="| $version | could not be installed here | |"$'\n'
      continue
    fi
    touch "$environment/ready"
  fi
  found=$("$environment/bin/python" -c 'import torch; print(torch.__version__)')
  if output=$(cd "$root" && PYTHONPATH=$root MAMBA_AOT_LIBRARY=$library \
    "$environment/bin/python" -m pytest -q -p no:cacheprovider -m "not gpu" "${tests[@]}" 2>&1); then
    result=passed
  else
    result=FAILED
    failed=1
    echo "$output" >&2
  fi
  summary=$(tail -n 1 <<<"$output" | sed -E 's/ in [0-9.]+s.*//; s/=//g; s/^ *//')
  # The tests that failed, each with the number of its cases.
  summary+=$(grep '^FAILED' <<<"$output" | sed -E 's/.*::([a-z_0-9]+).*/\1/' | sort | uniq -c |
    awk '{printf "; %s of `%s`", $1, $2}') || true
  echo "tools/compat.sh: torch $found: $result ($summary)" >&2
  rows+="| $version | $found, Python $("$environment/bin/python" -c 'import platform; print(platform.python_version())') | $result: $summary |"$'\n'
done

needs() {
  objdump -T "$library" | grep -oE "$1_[0-9.]+" | sort -V | tail -n 1
}
cat >"$root/docs/compatibility.md" <<MARKDOWN
# One library for every torch

\`tools/compat.sh\` wrote this page. One file, sha256 \`$(sha256sum "$library" | cut -d' ' -f1)\`, ran
\`$(printf '%s ' "${tests[@]##*/}" | sed 's/ $//; s/ /\`, \`/g')\`:

| torch | installed | result |
|---|---|---|
$rows
It needs $(needs GLIBC), $(needs GLIBCXX) and $(needs CXXABI); of torch it uses the stable interface of 2.10 alone, from
\`libtorch_cpu.so\`. Tests hold what it links, which symbols it takes and that it gives away no others.

An argument that does not fit is a \`ValueError\` under each of them. What the library throws for it, \`std::invalid_argument\`, is seen
by C++ under torch 2.13 and 2.15 alike; Python's binding of torch 2.15 makes a \`RuntimeError\` of it (of \`torch._C._jit_get_operation\` as of
\`torch.ops\`), that of torch 2.13 a \`ValueError\`. The public functions of Python translate it back. What \`torch.compile\` made calls the
ops with no Python of this package around them, so there the same sentence stays a \`RuntimeError\` under 2.15.
MARKDOWN
exit $failed
