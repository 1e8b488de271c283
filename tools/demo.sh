#!/usr/bin/env bash
# Trains a small language model on real text and lets it write: bash tools/demo.sh [arguments of mamba-aot demo]
# The first start installs into .venv and builds the kernels that this machine can run.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
prepare "" "${MAMBA_AOT_ARCHS:-$(local_archs)}"
exec "$venv/bin/mamba-aot" demo "$@"
