#!/usr/bin/env bash
# Stop the cluster that start.sh has started in FOLDER: only its own processes, by their pid files.
# Returns when they are gone, so that the next cluster finds the ports free.
set -uo pipefail
folder=$(realpath "${1:?give the folder of the cluster}")
export SLURM_CONF=$folder/slurm.conf
scancel --state=RUNNING --user=root 2>/dev/null
for _ in $(seq 40); do
  [ -z "$(squeue --noheader --states=RUNNING,COMPLETING 2>/dev/null)" ] && break
  sleep 0.25
done
pids=()
for file in "$folder"/slurmd-*.pid "$folder/slurmctld.pid" "$folder/munge/pid"; do
  [ -f "$file" ] && pids+=("$(cat "$file")")
done
[ ${#pids[@]} = 0 ] && exit 0
kill "${pids[@]}" 2>/dev/null
for _ in $(seq 80); do
  kill -0 "${pids[@]}" 2>/dev/null || exit 0
  sleep 0.25
done
kill -KILL "${pids[@]}" 2>/dev/null
exit 0
