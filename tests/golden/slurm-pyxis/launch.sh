#!/usr/bin/env bash
# Starts one agent a node of a Slurm allocation, 2 nodes, through srun.
# usage: bash launch.sh RUN_DIR      inside an allocation (salloc, or the job of job.sh)
#
# RUN_DIR is a run folder made by `llama-scale launch`, or a new folder: this bundle's spec and plan are then copied
# into it. All nodes must see it under the same path. What counts is what the agents write down in it: srun's exit
# status is 0 also when a task could not be started.
set -euo pipefail

if [[ $# -ne 1 || -z $1 ]]; then
  echo "usage: bash launch.sh RUN_DIR" >&2
  exit 2
fi
run=$1
here=${BASH_SOURCE[0]}
[[ $here == */* ]] || here=./$here
here=${here%/*}

for file in spec.yaml plan.json; do
  if [[ ! -e $run/$file ]]; then
    mkdir -p -- "$run"
    cp -- "$here/$file" "$run/$file"
  elif ! cmp -s -- "$here/$file" "$run/$file"; then
    printf 'launch.sh: %s is not the one of this bundle; use the bundle in the run folder, or a new folder\n' \
      "$run/$file" >&2
    exit 5
  fi
done

# Held by the agent and its ranks through the open file, for as long as one of them lives.
exec 9>>"$run/agent.lock"
if ! flock -w 120 9; then
  printf 'launch.sh: %s is in use by another launch; one run folder has one at a time\n' "$run" >&2
  exit 5
fi

[[ $here == /* ]] || here=$PWD/${here#./}
[[ $run == /* ]] || run=$PWD/$run

if [[ -z ${SLURM_JOB_NODELIST:-} ]]; then
  echo "launch.sh: not in a Slurm allocation; use sbatch job.sh RUN_DIR, or call it in salloc" >&2
  exit 5
fi
# A step whose srun was killed would go on and keep the nodes; a step of this run's earlier attempt is never wanted.
if [[ ${LLAMA_SCALE_ATTEMPT:-0} != 0 ]]; then
  for step in $(squeue --noheader --steps --jobs "$SLURM_JOB_ID" --format %i | grep -E '\.[0-9]+$' || true); do
    scancel "$step" || true
  done
fi
# The rendezvous: the first node by name, and a port from the job's number that is free here.
read -r first < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
port=$(/opt/python/bin/python3 -P -m llama_scale.train.ports "$SLURM_JOB_ID.${LLAMA_SCALE_ATTEMPT:-0}")

command=(bash "$here/node.sh" "$run" "$first:$port")
options=(--nodes=2 --ntasks=2 --ntasks-per-node=1
  --cpu-bind=none --mpi=none --input=none --export=ALL --label --wait=0 --kill-on-bad-exit=1)
if [[ $run$here == *[:,]* ]]; then
  printf 'launch.sh: %s cannot be shown in a container: its path holds : or ,\n' "$run" >&2
  exit 5
fi
# Values of the image would win over those of the shell.
names=$(compgen -e | grep -E '^(FI_.*|GLOO_.*|NCCL_.*|UCX_.*|WANDB_API_KEY)$' | paste -sd, || true)
options+=(--container-image=nvcr.io/nvidia/pytorch:25.09-py3 --no-container-mount-home
  --container-mounts=/data:/data:ro,"$run:$run,$here:$here")
[[ -z $names ]] || options+=("--container-env=$names")

# -P: a file called random.py in the current folder must not be imported.
exec /opt/python/bin/python3 -P -m llama_scale.train.command --run "$run" --nodes 2 --devices 2 \
  --stop-grace-s 60 --stop-signal USR1 -- srun "${options[@]}" "${command[@]}"
