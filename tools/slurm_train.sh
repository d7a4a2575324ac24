#!/usr/bin/env bash
# Trains under Slurm:  bash tools/slurm_train.sh PARTITION JOB_NAME CONFIG [arguments of train.py]
# Set GPUS (4), GPUS_PER_NODE (GPUS, at most 8), CPUS_PER_TASK (5) and SRUN_ARGS as needed;
# SRUN_ARGS=--gres=none is for nodes without GPUs. In a script for `sbatch --requeue`, --resume goes on if preempted.
. "$(dirname "${BASH_SOURCE[0]}")/_launch.sh"
need_arguments 3 $#
launch_with_slurm "$1" "$2" "$root/tools/train.py" "${@:3}"
