# Shared by the .sbatch files of this folder, which set the array `sidrec` (the command) and, where
# srun needs options of its own, `srun_options`; their arguments are those of `sidrec fit`.
# Not to be run by itself.
#
# Environment: MACHINE       configuration of the hardware (configs/machines/ddp.yaml)
#              MAX_REQUEUES  how often at most (100)
set -uo pipefail
cd "$SLURM_SUBMIT_DIR" || exit 1
export MASTER_ADDR MASTER_PORT
MASTER_ADDR=${MASTER_ADDR:-$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)}
MASTER_PORT=${MASTER_PORT:-$((20000 + SLURM_JOB_ID % 20000))}
export OMP_NUM_THREADS=${SLURM_CPUS_PER_TASK:-1} TOKENIZERS_PARALLELISM=false PYTHONUNBUFFERED=1

# The signals are meant for the training processes; this script lives on to requeue the job.
trap : TERM USR1
srun --kill-on-bad-exit=1 "${srun_options[@]}" "${sidrec[@]}" fit "$@" \
  --config "${MACHINE:-configs/machines/ddp.yaml}" \
  --trainer.num_nodes "$SLURM_JOB_NUM_NODES" \
  --trainer.devices "$SLURM_NTASKS_PER_NODE"
code=$?

# 85: stopped at the end of a step, all is saved. 138 and 143: SIGUSR1 or SIGTERM came before
# Python had started. A job that somebody cancels is no longer RUNNING, and stays cancelled.
case $code in
  85 | 138 | 143)
    state=$(squeue --noheader --jobs="$SLURM_JOB_ID" --format=%T)
    if [ "$state" != RUNNING ]; then
      echo "not requeued: the job is $state" >&2
    elif [ "${SLURM_RESTART_COUNT:-0}" -ge "${MAX_REQUEUES:-100}" ]; then
      echo "not requeued: that was done $SLURM_RESTART_COUNT times; see MAX_REQUEUES" >&2
    elif scontrol requeue "$SLURM_JOB_ID"; then
      echo "requeued after exit code $code" >&2
    fi
    ;;
esac
exit "$code"
