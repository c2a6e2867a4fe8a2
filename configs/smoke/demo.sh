#!/usr/bin/env bash
# From text to a proven Hugging Face model, the whole way, on this machine: what `make demo` runs.
# Everything is written to .demo/ of the checkout; each command is printed before it runs.
#
#   DEMO_CORPUS=sample configs/smoke/demo.sh    # the shipped text, as without a network
#   DEMO_SET="train.steps=40" configs/smoke/demo.sh    # changes to the spec, for a shorter or another run
set -euo pipefail
cd "$(dirname "$0")/../.."
venv=$(cd "${VENV:-.venv}" && pwd)
export PATH="$venv/bin:$PATH" LLAMA_SCALE_RUNS=.demo/runs
spec=configs/smoke/pretrain.yaml
changes=()
for change in ${DEMO_SET:-}; do changes+=(--set "$change"); done

title() { printf '\n== %s\n' "$*" >&2; }
run() { printf '$ %s\n' "$*" >&2 && "$@"; }
field() { python -c 'import json, sys; value = json.load(sys.stdin)
for key in sys.argv[1].split("."): value = value.get(key) if value else None
print("" if value is None else value)' "$1"; }

rm -rf .demo
mkdir -p .demo

title "1. Text: Debian's package descriptions, or the shipped sample where apt or the network is missing"
corpus=configs/smoke/sample.jsonl.gz
if [ "${DEMO_CORPUS:-debian}" = debian ] &&
    run llama-scale data corpus debian --output .demo/debian.jsonl.gz --limit 12000; then
    corpus=.demo/debian.jsonl.gz
fi

title "2. Tokenizer and token files"
run llama-scale tokenizer train --input "$corpus" --vocab-size 4096 --output .demo/tokenizer.model >/dev/null
run llama-scale data build --input "$corpus" --tokenizer .demo/tokenizer.model --output .demo/corpus >/dev/null
run llama-scale data info .demo/corpus

title "3. The spec is checked, and planned: who computes what"
run llama-scale validate "$spec" "${changes[@]}"
run llama-scale plan "$spec" "${changes[@]}"

title "4. Training on 4 processes, one of which is killed (SIGKILL) in the middle"
run llama-scale launch "$spec" "${changes[@]}" --detach >.demo/run.txt
folder=$(tail -n 1 .demo/run.txt)
state() { llama-scale status "$folder" --json | field "$1"; }
llama-scale logs "$folder" --follow >&2 &
follower=$!
trap 'kill $follower 2>/dev/null || true; llama-scale stop "$folder" >/dev/null 2>&1 || true' EXIT
# The newest checkpoint is the proof that there is something to go on from.
until [ -n "$(state checkpoint)" ]; do
    case "$(state state)" in
        failed | stopped | succeeded | gone) echo "the run ended before its first checkpoint" >&2; exit 1 ;;
    esac
    sleep 1
done
agent=$(state agent_pid)
read -r -a ranks <"/proc/$agent/task/$agent/children" || true # the file ends without a line end
run kill -9 "${ranks[1]}"
wait "$follower" || true
until [ "$(state state)" = failed ]; do sleep 0.5; done
run llama-scale status "$folder"

title "5. The run goes on from its newest checkpoint"
run llama-scale resume "$folder" --plan
run llama-scale resume "$folder" >/dev/null

title "6. A Hugging Face model, proven equal to the sharded one"
run llama-scale convert export --from "$folder" --to .demo/model
run llama-scale convert verify --from "$folder" --hf .demo/model

title "7. Three completions by transformers"
run llama-scale generate .demo/model --max-new-tokens 24 \
    --prompt "This package provides" --prompt "A library for" --prompt "To open the"

title "8. Did it learn more than how often each token occurs?"
run python configs/smoke/compare_loss.py "$folder" .demo/corpus
