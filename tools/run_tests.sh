#!/usr/bin/env bash
# Installs what is missing, then runs the tests in parallel; arguments go to pytest.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/_env.sh"

bash tools/install.sh
# The tests' tensors are small: processes of one thread each take half the time that threads would.
cores=$(getconf _NPROCESSORS_ONLN)
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
exec python -m pytest --numprocesses $((cores < 4 ? cores : 4)) --dist worksteal "$@"
