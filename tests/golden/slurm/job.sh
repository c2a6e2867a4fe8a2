#!/usr/bin/env bash
#SBATCH --job-name=tiny
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=2
#SBATCH --time="04:00:00"
#SBATCH --requeue
#SBATCH --open-mode=append
# Ahead of the time limit the script below is told to save; preemption tells the agents as well.
#SBATCH --signal=B:USR1@60
#
# A llama-scale run: 2 nodes x 2 processes.
# usage: sbatch job.sh RUN_DIR       RUN_DIR is a run folder of `llama-scale launch`, seen by all nodes under this path
set -euo pipefail

if [[ -n ${SLURM_ARRAY_TASK_ID:-} ]]; then
  echo "job.sh: not as a job array: its jobs would all write into one run folder; launch one run a job" >&2
  exit 5
fi
if [[ $# -ne 1 || ! -d $1/bundle ]]; then
  printf 'job.sh: %s is no run folder that %s sees; `llama-scale launch` makes one, on a shared file system\n' \
    "${1:-(none)}" "$(hostname)" >&2
  exit 5
fi

# The supervisor, here on the first node: it starts launch.sh (srun), restarts, keeps status.json, and queues again.
export SLURM_EXPORT_ENV=ALL
unset PYTHONDONTWRITEBYTECODE
exec /opt/python/bin/python3 -P -m llama_scale.runs.slurm_job "$1"
