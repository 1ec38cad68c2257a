#!/usr/bin/env bash
# Run a command beside a SLURM of one node, this machine, with ports, keys and state of its own in a temporary folder:
#   scripts/slurm_one_node.sh balr extract CORPUS -m hydra/launcher=slurm_cpu …
# Needs slurmctld, slurmd and munged: apt-get install slurm-wlm munge. No root, no accounting (sacct only warns).
set -euo pipefail
export PATH="$PATH:/usr/sbin:/sbin"
folder=$(mktemp -d "${TMPDIR:-/tmp}/slurm-XXXXXX")
pids=()
stop() {
    scancel --quiet --user "$(id -un)" 2>/dev/null || true
    scancel --quiet --user "$(id -un)" --signal=KILL --full 2>/dev/null || true
    [ ${#pids[@]} -eq 0 ] || kill "${pids[@]}" 2>/dev/null || true
    wait
    rm -rf "$folder"
}
trap stop EXIT
trap 'exit 143' TERM

port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }
host=$(hostname -s)
memory_mb=$(awk '/MemTotal/ { print int($2 / 1024 * 0.9) }' /proc/meminfo)
chmod 711 "$folder"   # or munged refuses to put its socket there
mkdir "$folder/state" "$folder/spool"
head -c 1024 /dev/urandom > "$folder/munge.key"
chmod 600 "$folder/munge.key"
cat > "$folder/slurm.conf" <<CONF
ClusterName=one
SlurmctldHost=$host(127.0.0.1)
SlurmUser=$(id -un)
SlurmdUser=$(id -un)
SlurmctldPort=$(port)
SlurmdPort=$(port)
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
# cred_expire is also how long a requeued job waits, two minutes by default
AuthInfo=socket=$folder/munge.socket,cred_expire=5
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
KillWait=10
SchedulerParameters=sched_interval=2
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
GresTypes=gpu
NodeName=$host NodeAddr=127.0.0.1 CPUs=$(nproc) RealMemory=$memory_mb Gres=gpu:1
PartitionName=main Nodes=$host Default=YES MaxTime=INFINITE State=UP
CONF
echo "Name=gpu File=/dev/null" > "$folder/gres.conf"   # in name only: jobs can ask for one
export SLURM_CONF=$folder/slurm.conf
munged --foreground --key-file="$folder/munge.key" --socket="$folder/munge.socket" --pid-file="$folder/munge.pid" \
    --seed-file="$folder/munge.seed" --log-file="$folder/munge.log" >"$folder/munged.out" 2>&1 &
pids+=($!)
slurmctld -D -i >"$folder/slurmctld.log" 2>&1 &
pids+=($!)
slurmd -D >"$folder/slurmd.log" 2>&1 &
pids+=($!)
for _ in $(seq 60); do
    state=$(timeout 5 sinfo --noheader --format=%T 2>/dev/null || true)
    [ "$state" != idle ] && kill -0 "${pids[@]}" 2>/dev/null || break
    sleep 0.5
done
[ "$state" = idle ] || { tail -n 5 "$folder"/*.log "$folder"/*.out >&2; exit 1; }
"$@"
