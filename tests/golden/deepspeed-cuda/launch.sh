#!/usr/bin/env bash
# Starts the 4 processes of a llama-scale run on this machine through the `deepspeed` command.
# usage: bash launch.sh RUN_DIR
#
# RUN_DIR is a run folder made by `llama-scale launch`, or a new folder: this bundle's spec and plan are then copied
# into it. The agent adds port and script to the command, starts it and watches the ranks. It ends with 0,
# with 75 when it was asked to stop and has saved a checkpoint, or with another number when a rank failed.
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
if ! flock -n 9; then
  printf 'launch.sh: %s is in use by another launch; one run folder has one at a time\n' "$run" >&2
  exit 5
fi

[[ $here == /* ]] || here=$PWD/${here#./}

# Set on some machines: without .pyc files every process would compile everything it imports.
unset PYTHONDONTWRITEBYTECODE
set -a
. "$here/env"
OMP_NUM_THREADS=1
set +a

# -P: a file called random.py in the folder that llama-scale was called from must not be imported.
agent=(/opt/python/bin/python3 -P -m llama_scale.train.deepspeed_agent --run "$run" --env-file "$here/env"
  --world-size 4 --stop-grace-s 30)
# /dev/null: a hostfile that happens to lie in /job is not meant.
command=(/opt/python/bin/python3 -m deepspeed.launcher.runner --hostfile /dev/null --no_local_rank --log_level warning)
# With --num_gpus, DeepSpeed would ignore CUDA_VISIBLE_DEVICES and take the first ones.
if [[ -n ${CUDA_VISIBLE_DEVICES:-} ]]; then
  command+=(--include "localhost:$CUDA_VISIBLE_DEVICES")
else
  command+=(--num_nodes 1 --num_gpus 4)
fi
exec "${agent[@]}" -- "${command[@]}"
