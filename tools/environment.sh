# Sourced by demo.sh and test.sh: makes .venv in the checkout and brings what is installed there up to date.
# Needs Python 3.10 or newer with its venv module, and a C++17 compiler. Nothing is done twice.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=$root/.venv
export PIP_DISABLE_PIP_VERSION_CHECK=1
# Threads that wait leave their core to others: on shared cores spinning costs more than waking up.
export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-passive}

fail() {
  echo "$1" >&2
  exit 1
}

find_python() {
  for name in python3 python3.13 python3.12 python3.11 python3.10; do
    if "$name" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
      echo "$name"
      return
    fi
  done
  fail "tools: needs Python 3.10 or newer with venv, found none; on Debian: apt install python3 python3-venv"
}

# prepare EXTRAS ARCHS: installs the package for development with its extras ("" or "[dev]"), kernels for ARCHS.
prepare() {
  local extras=$1 python
  export MAMBA_AOT_ARCHS=$2
  command -v "${CXX:-g++}" >/dev/null || fail "tools: needs a C++17 compiler, found none; install g++ or set CXX"
  if ! "$venv/bin/python" -c '' 2>/dev/null; then
    python=$(find_python)
    echo "tools: making .venv with $("$python" --version)" >&2
    "$python" -m venv --clear "$venv"
  fi
  # The stamp holds what the installation was made from; another checkout's .venv has another root.
  local stamp=$venv/installed.$extras wanted
  wanted="$root $(cat "$root/pyproject.toml" "$root/setup.py" | sha256sum)"
  if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
    echo "tools: installing into .venv; the first time, torch and triton are fetched" >&2
    local requirements
    requirements=$("$venv/bin/python" - "$root/pyproject.toml" <<'PYTHON'
import ast, re, sys
print("\n".join(ast.literal_eval(re.search(r"^requires = (\[.*\])$", open(sys.argv[1]).read(), re.M).group(1))))
PYTHON
)
    "$venv/bin/python" -m pip install --quiet --requirement /dev/stdin <<<"$requirements"
    # What pyproject.toml pins for the build is kept when the package's own dependencies are resolved.
    "$venv/bin/python" -m pip install --quiet --no-build-isolation --editable "$root$extras" \
      --constraint /dev/stdin <<<"$requirements"
    echo "$wanted" >"$stamp"
  fi
  (cd "$root" && "$venv/bin/python" -m tools.aot build) >&2
}

# What a build for this machine alone needs: its GPU's architecture, else the oldest, whose PTX every newer GPU takes.
local_archs() {
  local capability
  capability=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | sort -u | tr -d '.\r') || true
  case $capability in
    '') echo none ;;
    80 | 86 | 89 | 90 | 100 | 120) echo "$capability" ;;
    *) echo 80 ;;
  esac
}
