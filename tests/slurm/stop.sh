#!/usr/bin/env bash
# Stop the cluster that start.sh has started in FOLDER: only its own processes, by their pid files.
set -uo pipefail
folder=$(realpath "${1:?give the folder of the cluster}")
SLURM_CONF=$folder/slurm.conf scancel --state=RUNNING --user=root 2>/dev/null
for file in "$folder"/slurmd-*.pid "$folder/slurmctld.pid" "$folder/munge/pid"; do
  [ -f "$file" ] && kill "$(cat "$file")" 2>/dev/null
done
exit 0
