#!/usr/bin/env bash
# Installs what is missing, then runs the tests; arguments go to pytest.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/_env.sh"

bash tools/install.sh
# The tests' tensors are small: on a big machine more threads than this only wait for each other.
cores=$(getconf _NPROCESSORS_ONLN)
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((cores < 4 ? cores : 4))}
exec python -m pytest "$@"
