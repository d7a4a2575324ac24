# shellcheck shell=bash
# Sourced by dist_*.sh and slurm_*.sh: starts tools/train.py or tools/test.py as many processes.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"

# The calling script's head, where fewer arguments came ($2) than it needs ($1).
need_arguments() {
    [ "$2" -ge "$1" ] && return
    sed -n '2,4s/^# //p' "$0" >&2
    exit 2
}

launch_with_torch() {  # GPUS SCRIPT [arguments]
    local gpus=$1
    shift
    exec python -m torch.distributed.run \
        --nnodes="${NNODES:-1}" \
        --node_rank="${NODE_RANK:-0}" \
        --master_addr="${MASTER_ADDR:-127.0.0.1}" \
        --master_port="${PORT:-29500}" \
        --nproc_per_node="$gpus" \
        "$@" --launcher pytorch
}

launch_with_slurm() {  # PARTITION JOB_NAME SCRIPT [arguments]
    local partition=$1 job=$2 gpus=${GPUS:-4} per_node extra status=0
    shift 2
    per_node=${GPUS_PER_NODE:-$((gpus < 8 ? gpus : 8))}
    read -r -a extra <<<"${SRUN_ARGS:-}"
    set -- srun -p "$partition" \
        --job-name="$job" \
        --gres=gpu:"$per_node" \
        --ntasks="$gpus" \
        --ntasks-per-node="$per_node" \
        --cpus-per-task="${CPUS_PER_TASK:-5}" \
        --kill-on-bad-exit=1 \
        "${extra[@]}" \
        python -u "$@" --launcher slurm
    [ -n "${SLURM_JOB_ID:-}" ] || exec "$@"
    "$@" || status=$?
    # Slurm tells the processes of a job that it preempts to end, and where the partition has a GraceTime it takes a job
    # that has ended before that is over for done: it does not requeue it.
    if [ $status -ne 0 ] && [[ $(scontrol --oneliner show job "$SLURM_JOB_ID") == *" PreemptTime="[0-9]* ]]; then
        scontrol requeue "$SLURM_JOB_ID"
    fi
    exit $status
}
