"""DeepSpeed's own checkpoints are told apart from ours, with what to do."""

from __future__ import annotations

from pathlib import Path

import pytest

from llama_scale.convert.folders import find_checkpoint
from llama_scale.errors import ConvertError


@pytest.mark.parametrize(
    "name",
    [
        "global_step5/mp_rank_00_model_states.pt",
        "global_step5/zero_pp_rank_0_mp_rank_00_model_states.pt",
        "global_step5/bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt",
        "global_step5/layer_00-model_00-model_states.pt",
        "universal/zero/embedding.weight/fp32.pt",
    ],
)
def test_folders_of_deepspeed_are_named(tmp_path: Path, name: str) -> None:
    file = tmp_path / "saved" / name
    file.parent.mkdir(parents=True)
    file.touch()

    for folder in (tmp_path / "saved", tmp_path / "saved" / name.split("/", maxsplit=1)[0]):
        with pytest.raises(ConvertError, match="is a checkpoint in DeepSpeed's own format") as caught:
            find_checkpoint(folder)
        assert str(tmp_path / "saved" / name.split("/", maxsplit=1)[0]) in str(caught.value)
        assert "--spec SPEC --to CHECKPOINT` reads it" in str(caught.value)
