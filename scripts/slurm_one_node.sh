#!/usr/bin/env bash
# A SLURM cluster of this one machine, for tests: scripts/slurm_one_node.sh start|stop FOLDER
# Needs Debian's slurm-wlm and munge, and root. Ports, state and logs are of the folder; `start` prints what to export.
set -euo pipefail

action=$1
mkdir -p "$2"
folder=$(cd "$2" && pwd)
export SLURM_CONF=$folder/slurm.conf

stop() {
    for name in slurmd slurmctld munged; do
        [ -f "$folder/$name.pid" ] && kill "$(cat "$folder/$name.pid")" 2>/dev/null || true
        rm -f "$folder/$name.pid"
    done
}

free_port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }

start() {
    host=$(hostname -s)
    mkdir -p "$folder"/{state,spool,munge}
    [ -f "$folder/munge/key" ] || head -c 1024 /dev/urandom > "$folder/munge/key"
    chown -R munge: "$folder/munge" && chmod 700 "$folder/munge" && chmod 400 "$folder/munge/key"
    chmod 755 "$folder"
    socket=/run/munge-$(basename "$folder").socket
    runuser -u munge -- true 2>/dev/null || { echo "no user munge: install munge" >&2; exit 1; }
    munged --force --key-file "$folder/munge/key" --socket "$socket" --pid-file "$folder/munged.pid" \
        --log-file "$folder/munged.log" --seed-file "$folder/munge/seed"
    cat > "$SLURM_CONF" <<CONF
ClusterName=one
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
SlurmctldPort=$(free_port)
SlurmdPort=$(free_port)
AuthType=auth/munge
AuthInfo=cred_expire=10,socket=$socket
CredType=cred/munge
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
ReturnToService=2
MpiDefault=none
JobRequeue=1
KillWait=10
MinJobAge=300
SchedulerParameters=bf_interval=2,sched_interval=2,batch_sched_delay=0
NodeName=$host NodeAddr=127.0.0.1 CPUs=2 RealMemory=8000 State=UNKNOWN
PartitionName=main Nodes=$host Default=YES MaxTime=INFINITE State=UP
CONF
    slurmctld -c
    slurmd -c
    for _ in $(seq 60); do
        sinfo --noheader --format=%t 2>/dev/null | grep -q idle && break
        sleep 0.5
    done
    sinfo --noheader --format=%t | grep -q idle || { echo "no node came up: see $folder/*.log" >&2; stop; exit 1; }
    echo "export SLURM_CONF=$SLURM_CONF"
}

"$action"
