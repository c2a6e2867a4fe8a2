#!/usr/bin/env bash
# Starts the 4 processes of a llama-scale run on 2 hosts through the `deepspeed` command.
# usage: bash launch.sh RUN_DIR
#
# RUN_DIR is a run folder made by `llama-scale launch`, or a new folder: this bundle's spec and plan are then copied
# into it. All hosts must see it under the same path. The agent adds port and script to the command, starts it and watches the ranks. It ends with 0,
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
# Unset, so that each host shares its own cores among its ranks.
unset OMP_NUM_THREADS
set -a
. "$here/env"
set +a

# -P: a file called random.py in the folder that llama-scale was called from must not be imported.
agent=(/opt/python/bin/python3 -P -m llama_scale.train.deepspeed_agent --run "$run" --env-file "$here/env"
  --world-size 4 --stop-grace-s 60
  --hostfile "$here/hostfile" --ssh-timeout-s 20 --ssh-port 2222)
# --no_ssh_check: the agent asks every host, not the first one only.
command=(/opt/python/bin/python3 -m deepspeed.launcher.runner --hostfile "$here/hostfile"
  --launcher pdsh --force_multi --no_ssh_check --ssh_port 2222
  --master_addr node1 --num_nodes 2 --num_gpus 2 --no_local_rank --log_level warning)
exec "${agent[@]}" -- "${command[@]}"
