#!/usr/bin/env bash
# Tests under Slurm:  bash tools/slurm_test.sh PARTITION JOB_NAME CONFIG CHECKPOINT [arguments of test.py]
# Set GPUS (4), GPUS_PER_NODE (GPUS, at most 8), CPUS_PER_TASK (5) and SRUN_ARGS as needed;
# SRUN_ARGS=--gres=none is for nodes without GPUs.
. "$(dirname "${BASH_SOURCE[0]}")/_launch.sh"
need_arguments 4 $#
launch_with_slurm "$1" "$2" "$root/tools/test.py" "${@:3}"
