#!/usr/bin/env bash
# Becomes the agent of one host of a llama-scale run, which forks the host's 2 ranks.
# usage: bash node.sh RUN_DIR HOST:PORT      (the rendezvous, on host 0); srun calls it on every host
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
node=${SLURM_NODEID:-}
if [[ ! $node =~ ^[0-9]+$ ]]; then
  echo "node.sh: nothing says which host this is; srun is to start it" >&2
  exit 5
fi

# Set on some machines: without .pyc files every process would compile everything it imports.
unset PYTHONDONTWRITEBYTECODE
set -a
. "$here/env"
# Cores that this process may use, over its ranks; nproc itself would listen to OMP_NUM_THREADS.
cores=$(env -u OMP_NUM_THREADS -u OMP_THREAD_LIMIT nproc)
OMP_NUM_THREADS=$((cores > 2 ? cores / 2 : 1))
set +a

# -P: a file called random.py in the current folder must not be imported.
exec /opt/python/bin/python3 -P -m llama_scale.train.agent --run "$run" --nnodes 2 --node-rank "$node" \
  --nproc-per-node 2 --rdzv-endpoint "$endpoint" --stop-grace-s 30 --part
