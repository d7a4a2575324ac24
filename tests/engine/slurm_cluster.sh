#!/usr/bin/env bash
# Runs a command in a Slurm cluster of one node, this machine, which ends with the command:
#     bash tests/engine/slurm_cluster.sh COMMAND [arguments]
# It needs Debian's slurm-wlm and munge, but no root, systemd or cgroups. In the command's environment SLURM_CONF
# is the cluster's configuration. Jobs of the partition `high` preempt those of `low`, which Slurm requeues. Jobs can
# ask the node for two GPUs; there need not be any. All ports are those of 127.0.0.1.
set -euo pipefail
PATH=$PATH:/usr/sbin:/sbin

folder=$(mktemp -d)
export SLURM_CONF=$folder/slurm.conf
daemons=()
ready=

processes() {  # the daemons, the command, and Slurm's steps and tasks: they have this SLURM_CONF in common
    { grep -lzsxF "SLURM_CONF=$SLURM_CONF" /proc/[0-9]*/environ || true; } | cut -d / -f 3
}

end() {
    local _ pid
    trap '' TERM INT HUP
    if [ "$ready" ]; then  # slurmd does not end while a step of it runs
        scancel --user="$(id -un)" || true
        for _ in $(seq 60); do
            [ -n "$(squeue --noheader)" ] || break
            sleep 0.5
        done
    fi
    for pid in "${daemons[@]}"; do
        kill "$pid" || true
    done
    for _ in $(seq 20); do
        kill -0 "${daemons[@]}" || break
        sleep 0.5
    done
    for pid in $(processes); do
        kill -KILL "$pid" || true
    done
    wait
    rm -rf "$folder"
} 2>/dev/null
trap end EXIT
trap 'exit 143' TERM INT HUP

start() {  # NAME COMMAND...: a daemon whose output goes to NAME.log
    local name=$1
    shift
    "$@" >"$folder/$name.log" 2>&1 </dev/null &
    daemons=($! "${daemons[@]}")
}

wait_for() {  # NAME COMMAND...: until COMMAND succeeds; ends the script if the daemon ends, or after a minute
    local name=$1 _
    shift
    for _ in $(seq 120); do
        "$@" >/dev/null 2>&1 && return
        kill -0 "${daemons[0]}" 2>/dev/null || break
        sleep 0.5
    done
    echo "$name did not start:" >&2
    tail -n 20 "$folder"/*.log >&2
    exit 1
}

free_ports() {  # COUNT
    python - "$1" <<'PYTHON'
import socket
import sys

servers = [socket.socket() for _ in range(int(sys.argv[1]))]
for server in servers:
    server.bind(('127.0.0.1', 0))
print(*(server.getsockname()[1] for server in servers))
PYTHON
}

mkdir "$folder"/{munge,state,spool}
(umask 077 && head -c 1024 /dev/urandom >"$folder/munge/key")
read -r controller_port node_port < <(free_ports 2)
user=$(id -un)
cat >"$SLURM_CONF" <<CONF
ClusterName=test
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort=$controller_port
SlurmdPort=$node_port
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
SlurmUser=$user
SlurmdUser=$user
AuthType=auth/munge
CredType=cred/munge
# A requeued job starts after its old credentials have expired, here 5 seconds.
AuthInfo=socket=$folder/munge/socket,cred_expire=5
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MailProg=/bin/true
ReturnToService=2
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,bf_interval=1
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
# Processes get SIGTERM, and SIGKILL after KillWait. At a preemption they get SIGTERM GraceTime before that as well.
KillWait=5
GresTypes=gpu
NodeName=localhost NodeAddr=127.0.0.1 CPUs=2 CoresPerSocket=2 Gres=gpu:2 State=UNKNOWN
PartitionName=low Nodes=localhost Default=YES PriorityTier=1 GraceTime=4 State=UP
PartitionName=high Nodes=localhost PriorityTier=2 State=UP
CONF
touch "$folder"/gpu{0,1}
echo "Name=gpu File=$folder/gpu[0-1]" >"$folder/gres.conf"

start munged munged --foreground --force --key-file="$folder/munge/key" --socket="$folder/munge/socket" \
    --pid-file="$folder/munge/pid" --seed-file="$folder/munge/seed" --log-file="$folder/munge/log"
wait_for munged munge --socket="$folder/munge/socket" --no-input
start slurmctld slurmctld -D -i
wait_for slurmctld scontrol ping
start slurmd slurmd -D -N localhost
wait_for slurmd sh -c "sinfo --noheader --partition=low --format=%T | grep -qx idle"
ready=1

"$@" <&0 &
wait $!
