#!/usr/bin/env bash
# Proves the operator on a GPU in at most 8 minutes: tests, precision, times against floors, RepLKNet-31B against stock.
# Needs torch, Triton, pytest and numpy, and no OpenMMLab package. Arguments go to tools/gpu_check.py.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} exec timeout --kill-after=5 478 "${PYTHON:-python3}" -u tools/gpu_check.py "$@"
