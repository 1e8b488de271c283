#!/usr/bin/env bash
# Sets up .venv, builds the kernels for every architecture, and runs all checks: bash tools/test.sh [arguments of pytest]
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
prepare "[dev]" "${MAMBA_AOT_ARCHS:-}"
cd "$root"
export PATH=$venv/bin:$PATH

failed=""
# Every check runs, so that one mistake does not hide another.
check() {
  local name=$1
  shift
  if output=$("$@" 2>&1); then
    echo "$name: passed"
  else
    echo "$output"
    echo "$name: FAILED"
    failed="$failed $name"
  fi
}
check "ruff check" ruff check --quiet .
check "ruff format" ruff format --check --quiet .
check "clang-format" bash -c \
  'find . \( -name build -o -name .venv \) -prune -o \( -name "*.h" -o -name "*.cpp" \) -print0 |
    xargs -0 clang-format --dry-run -Werror'
check "import-linter" lint-imports
check "pyright" pyright
python -m pytest "$@" || failed="$failed pytest"
[ -z "$failed" ] || fail "tools/test.sh: failed:$failed"
