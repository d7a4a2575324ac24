#!/usr/bin/env bash
# Trains on several GPUs:  bash tools/dist_train.sh CONFIG GPUS [arguments of train.py]
# On several machines set NNODES, NODE_RANK, MASTER_ADDR and PORT as well.
. "$(dirname "${BASH_SOURCE[0]}")/_launch.sh"
need_arguments 2 $#
launch_with_torch "$2" "$root/tools/train.py" "$1" "${@:3}"
