#!/usr/bin/env bash
# Tests on several GPUs:  bash tools/dist_test.sh CONFIG CHECKPOINT GPUS [arguments of test.py]
# On several machines set NNODES, NODE_RANK, MASTER_ADDR and PORT as well.
. "$(dirname "${BASH_SOURCE[0]}")/_launch.sh"
need_arguments 3 $#
launch_with_torch "$3" "$root/tools/test.py" "$1" "$2" "${@:4}"
