"""The shipped specs of chat fine-tuning, trained small: answers are learnt, PEFT and transformers give them too."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from llama_scale.resources import data_dir
from tests.live_runs import run_cli
from tests.tiny_chat_model import write_chat_model

pytestmark = [
    pytest.mark.engines,
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
]

CONFIGS = data_dir("configs") / "finetune"
QUESTIONS = ("What does a membership cost?", "Where is the workshop?")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a tiny model and the first conversations of the sample."""
    folder = tmp_path_factory.mktemp("finetune")
    write_chat_model(folder / "model")
    lines = (CONFIGS / "sample" / "chat.jsonl").read_text().splitlines(keepends=True)
    (folder / "chat.jsonl").write_text("".join(lines[:6]))
    return folder


def launch(site: Path, spec: str, *, epochs: int, rate: str) -> Path:
    """Train a shipped spec on the tiny model and return the run's folder."""
    data = f"{{kind: split_shares, path: {site}/chat.jsonl, train: 100, validation: 0, test: 0}}"
    settings = [
        f"model={{kind: hf, path: {site}/model}}",
        f"tokenizer.path={site}/model",
        f"tasks[0].options.data={data}",
        f"train.epochs={epochs}",
        f"optimizer.lr={rate}",
        "checkpoint.every_steps=1000",
        "validation=null",
    ]
    words = [word for setting in settings for word in ("--set", setting)]
    done = run_cli("launch", CONFIGS / spec, *words, "--runs-dir", site / "runs")
    assert done.returncode == 0, done.stderr
    losses = [float(loss) for loss in re.findall(r"loss (\d+\.\d+)", done.stderr)]
    assert losses[0] > 3 and losses[-1] < 1
    (run,) = (site / "runs").glob(f"{spec.removesuffix('.yaml')}-*")
    return run


def answers(run: Path) -> list[dict[str, Any]]:
    words = [word for question in QUESTIONS for word in ("--prompt", question)]
    done = run_cli("generate", run, "--chat", *words, "--max-new-tokens", "120", "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def taught(site: Path) -> list[str]:
    """Return the answers that the questions have in the data."""
    rows = [json.loads(line)["messages"] for line in (site / "chat.jsonl").read_text().splitlines()]
    by_question = {question["content"]: answer["content"] for question, answer in rows}
    return [by_question[question] for question in QUESTIONS]


def transformers_answers(model: Any, folder: Path) -> list[tuple[str, int]]:
    """Return what plain transformers answers, and the last token's id."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    found = []
    for question in QUESTIONS:
        chat = [{"role": "user", "content": question}]
        prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        ids = model.generate(**prompt, max_new_tokens=120, do_sample=False)[0, prompt["input_ids"].shape[1] :]
        found.append((tokenizer.decode(ids, skip_special_tokens=True), int(ids[-1])))
    return found


def test_adapter_answers_here_and_under_peft(site: Path) -> None:
    run = launch(site, "smollm2-135m-chat-lora.yaml", epochs=100, rate="1e-2")

    found = answers(run)

    assert [answer["text"] for answer in found] == taught(site)
    done = run_cli("convert", "export", "--from", run, "--to", site / "adapter", "--as", "peft", "--no-verify")
    assert done.returncode == 0, done.stderr
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(str(site / "model"))
    assert [text for text, _ in transformers_answers(base, site / "model")] != taught(site)
    model = PeftModel.from_pretrained(base, str(site / "adapter"))
    end = 1  # <|im_end|>
    assert transformers_answers(model, site / "model") == [(answer, end) for answer in taught(site)]


def test_whole_model_answers_here_and_under_transformers(site: Path) -> None:
    run = launch(site, "smollm2-135m-chat-full.yaml", epochs=60, rate="3e-3")

    done = run_cli("convert", "export", "--from", run, "--to", site / "full", "--no-verify")

    assert done.returncode == 0, done.stderr
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(str(site / "full"))
    assert transformers_answers(model, site / "full") == [(answer, 1) for answer in taught(site)]
