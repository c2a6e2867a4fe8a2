#!/usr/bin/env bash
# Becomes the agent of one host of a llama-scale run, which forks the host's 2 ranks.
# usage: bash node.sh RUN_DIR HOST:PORT      (the rendezvous, on host 0); Kubernetes calls it on every host
set -euo pipefail

if [[ $# -ne 2 || -z $1 || -z $2 ]]; then
  echo "usage: bash node.sh RUN_DIR HOST:PORT" >&2
  exit 2
fi
run=$1 endpoint=$2
here=${BASH_SOURCE[0]}
[[ $here == */* ]] || here=./$here
here=${here%/*}

# The number of this host, from whoever started this.
node=${RANK:-}
if [[ ! $node =~ ^[0-9]+$ ]]; then
  echo "node.sh: nothing says which host this is; Kubernetes is to start it" >&2
  exit 5
fi

# Number of restarts of the whole set, where the controller counts them.
export LLAMA_SCALE_ATTEMPT=${LLAMA_SCALE_ATTEMPT:-0}
# The bundle is mounted, not in the run folder: put spec and plan there, each host the same, each file at once.
mkdir -p -- "$run"
for file in spec.yaml plan.json; do
  if ! cmp -s -- "$here/$file" "$run/$file"; then
    cp -- "$here/$file" "$run/.$file.$node"
    mv -f -- "$run/.$file.$node" "$run/$file"
  fi
done
# Set on some machines: without .pyc files every process would compile everything it imports.
unset PYTHONDONTWRITEBYTECODE
set -a
. "$here/env"
OMP_NUM_THREADS=4
set +a

# -P: a file called random.py in the current folder must not be imported.
exec /usr/bin/python3 -P -m llama_scale.train.agent --run "$run" --nnodes 2 --node-rank "$node" \
  --nproc-per-node 2 --rdzv-endpoint "$endpoint" --stop-grace-s 60 --tee
