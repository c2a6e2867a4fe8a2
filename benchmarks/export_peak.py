"""Peak memory of every form of `convert export` (and of imports) on a model of 0.6 GB, over the size of the model.

    python benchmarks/export_peak.py [--layers 12] [--json]

The base is drawn at random (fp32, tensor 2 x pipeline 2); on it a LoRA, a DoRA and a prefix adapter with a posterior
mixture. Each command runs in a process of its own, unproven: a proof runs both models, whole. "Above bare" is what a
process has beyond the packages that it imports, which alone take 0.3 GB.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
from benchmarks.convert import measured  # noqa: E402 - the path comes first

HIDDEN, FFN, VOCAB = 1024, 2816, 16384
LIMIT = 0.5  # of the model's bytes


def make(folder: Path, layers: int) -> None:
    """Write the Hugging Face folder, and the checkpoint of adapters on the base that was imported from it."""
    from llama_scale.convert.import_hf import import_hf
    from llama_scale.convert.shards import Layout
    from tests.unit.convert.adapted import DORA, LORA, PREFIX, adapter_checkpoint, record
    from tests.unit.convert.tiny import Tiny

    sizes = {"hidden_size": HIDDEN, "intermediate_size": FFN, "num_hidden_layers": layers, "vocab_size": VOCAB}
    heads = {"num_attention_heads": 16, "num_key_value_heads": 16, "head_dim": 64, "tie_word_embeddings": True}
    Tiny(config=sizes | heads).write(folder / "hf")
    layout = Layout(tp_size=2, pp_size=2)
    import_hf(folder / "hf", folder / "base", layout=layout)
    extensions = record(LORA, DORA, PREFIX, mixture={"weights": "posterior"})
    adapter_checkpoint(folder / "run", base=folder / "base", extensions=extensions, layout=layout)


def run(layers: int) -> dict[str, object]:
    """Measure each form once; peaks hardly vary."""
    with tempfile.TemporaryDirectory(prefix="export-peak-") as name:
        folder = Path(name)
        # Elsewhere: Linux counts the parent's peak as its children's.
        subprocess.run([sys.executable, __file__, "--make", name, "--layers", str(layers)], check=True)
        model = (folder / "hf" / "model.safetensors").stat().st_size
        largest = 4 * max(VOCAB, 2 * FFN) * HIDDEN
        command = [sys.executable, "-m", "llama_scale", "convert"]
        export = [*command, "export", "--no-verify", "--from", str(folder / "run"), "--to"]
        imported = [*command, "import", "--no-verify", "--from", str(folder / "hf"), "--to", str(folder / "ck")]
        imported += ["--tensor", "4"]
        peft = [*command, "import", "--peft", f"x={folder / 'peft'}", "--base", str(folder / "base"), "--to"]
        commands = {
            "bare": [sys.executable, "-c", "import torch, numpy, pydantic, typer, safetensors.torch"],
            "import": imported,
            "hf": [*command, "export", "--no-verify", "--from", str(folder / "base"), "--to", str(folder / "plain")],
            "merged": [*export, str(folder / "merged"), "--as", "merged", "--adapter", "a0"],
            "merged DoRA bf16": [*export, str(folder / "bf16"), "--as", "merged", "--adapter", "a1", "--dtype", "bf16"],
            "peft": [*export, str(folder / "peft"), "--as", "peft", "--adapter", "a0"],
            "peft DoRA": [*export, str(folder / "peft-dora"), "--as", "peft", "--adapter", "a1"],
            "mixture": [*export, str(folder / "mixture"), "--as", "mixture"],
            "import --peft": [*peft, str(folder / "peft-ck")],
        }
        rows: dict[str, dict[str, float]] = {}
        for what, words in commands.items():
            seconds, _, peak = measured(words)
            above = peak - rows["bare"]["peak_bytes"] if rows else 0.0
            rows[what] = {"wall_s": round(seconds, 2), "peak_bytes": peak, "above_bare": above, "share": above / model}
    worst = max(row["share"] for row in rows.values())
    return {"model_bytes": model, "largest_tensor_bytes": largest, "rows": rows, "limit": LIMIT, "ok": worst <= LIMIT}


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--make", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.make is not None:
        make(options.make, options.layers)
        return
    result = run(options.layers)
    if options.json:
        print(json.dumps(result, indent=2))
        return
    rows = result["rows"]
    assert isinstance(rows, dict)
    print(f"model {result['model_bytes']:,} bytes, largest tensor {result['largest_tensor_bytes']:,}")
    for what, row in rows.items():
        print(
            f"{what:>17}: {row['wall_s']:6.2f} s, peak {row['peak_bytes'] / 1e6:5.0f} MB, above bare "
            f"{row['above_bare'] / 1e6:4.0f} MB = {row['share']:.2f} of the model"
        )
    print(f"limit {LIMIT}: {'kept' if result['ok'] else 'not kept'}")


if __name__ == "__main__":
    main()
