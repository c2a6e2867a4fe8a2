#!/usr/bin/env bash
# Starts one agent a host on 2 hosts through OpenMPI's mpirun; the agent forks the host's ranks.
# usage: bash launch.sh RUN_DIR
#
# RUN_DIR is a run folder made by `llama-scale launch`, or a new folder: this bundle's spec and plan are then copied
# into it. All hosts must see it under the same path. What counts is what the agents write down in it.
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
[[ $run == /* ]] || run=$PWD/$run

# The rendezvous: on the host of the first agent.
first=node1
port=$(/opt/python/bin/python3 -P -m llama_scale.train.ports "$run#${LLAMA_SCALE_ATTEMPT:-0}")

options=(-np 2 --hostfile "$here/hostfile" --map-by ppr:1:node --bind-to none --tag-output
  --mca odls_base_sigkill_timeout 30)
# Of the shell's variables only these are passed on; a value is never on the command line.
for name in $(compgen -e | grep -E '^(FI_.*|GLOO_.*|LLAMA_SCALE_.*|NCCL_.*|UCX_.*|WANDB_API_KEY)$' || true); do
  options+=(-x "$name")
done
if ((EUID == 0)); then
  options+=(--allow-run-as-root)
fi
options+=(--mca oob_tcp_if_include 10.0.0.0/24)

# -P: a file called random.py in the current folder must not be imported. mpirun passes SIGUSR1 on; at SIGTERM it kills.
exec /opt/python/bin/python3 -P -m llama_scale.train.command --run "$run" --nodes 2 --devices 2 \
  --stop-grace-s 30 --stop-signal USR1 -- mpirun "${options[@]}" bash "$here/node.sh" "$run" "$first:$port"
