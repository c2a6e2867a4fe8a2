#!/usr/bin/env bash
# Starts the 4 processes of a llama-scale run on 2 hosts over ssh.
# usage: bash launch.sh RUN_DIR
#
# RUN_DIR is a run folder made by `llama-scale launch`, or a new folder: this bundle's spec and plan are then copied
# into it. All hosts must see it under the same path. This becomes the head of the run: one ssh connection a host, with
# a guard at its end that starts the host's ranks and ends them when the head has gone. It ends with 0, with 75 when it
# was asked to stop and has saved a checkpoint, or with another number when a rank or a host failed.
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

# The hosts get the variables of env, and those of this shell that forward names; see both files.
# -P: a file called random.py in the folder that llama-scale was called from must not be imported.
exec /opt/python/bin/python3 -P -m llama_scale.train.ssh_agent --run "$run" \
  --hostfile "$here/hostfile" --env-file "$here/env" --forward-file "$here/forward" \
  --nproc-per-node 2 --stop-grace-s 60 --lease-s 30 --ssh-timeout-s 20
