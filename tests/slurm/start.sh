#!/usr/bin/env bash
# A Slurm cluster of two nodes on this one machine, for tests: needs root and the Debian packages
# slurm-wlm and munge; no systemd, no accounting.
#   tests/slurm/start.sh FOLDER     then export SLURM_CONF=FOLDER/slurm.conf
#   tests/slurm/stop.sh FOLDER
set -euo pipefail
folder=$(realpath -m "${1:?give a folder for the state of the cluster}")
port=${SLURM_TEST_PORT:-16817}
mkdir -p "$folder"/{munge,state,log,spool/node1,spool/node2}
chmod 755 "$folder" "$folder/munge"
host=$(hostname -s)

# Munge proves who a message is from; its key is made for this cluster alone.
head -c 128 /dev/urandom > "$folder/munge/key"
chmod 600 "$folder/munge/key"
munged --force --num-threads=1 --key-file="$folder/munge/key" --socket="$folder/munge/socket" \
  --pid-file="$folder/munge/pid" --log-file="$folder/munge/log" --seed-file="$folder/munge/seed"

cat > "$folder/slurm.conf" <<END
ClusterName=test
SlurmctldHost=$host
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$folder/munge/socket
CredType=cred/munge
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool/%n
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd-%n.pid
SlurmctldLogFile=$folder/log/slurmctld
SlurmdLogFile=$folder/log/slurmd-%n
SlurmctldPort=$port
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SwitchType=switch/none
TopologyPlugin=topology/none
MpiDefault=none
ReturnToService=2
# More processors than there may be: the tests share them.
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=1,batch_sched_delay=0,sched_min_interval=0
JobRequeue=1
KillWait=30
NodeName=node1 NodeHostname=$host NodeAddr=127.0.0.1 Port=$((port + 101)) CPUs=2 State=UNKNOWN
NodeName=node2 NodeHostname=$host NodeAddr=127.0.0.1 Port=$((port + 102)) CPUs=2 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
END
export SLURM_CONF=$folder/slurm.conf
slurmctld -c
slurmd -N node1
slurmd -N node2
for _ in $(seq 100); do
  if [ "$(sinfo --noheader --Node --format=%T 2>/dev/null | grep -c '^idle$')" = 2 ]; then
    sinfo --Node --long
    exit 0
  fi
  sleep 0.2
done
echo "the two nodes did not come up; see $folder/log" >&2
exit 1
