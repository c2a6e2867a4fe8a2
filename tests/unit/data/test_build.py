from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest
from sentencepiece import SentencePieceProcessor
from tokenizers import Tokenizer, models, pre_tokenizers

from llama_scale.data.build import Progress, build_token_files
from llama_scale.data.documents import Source, find_source
from llama_scale.data.reader import TokenFile
from llama_scale.data.statistics import token_statistics, verify_digests
from llama_scale.data.writer import TokenFileWriter
from llama_scale.errors import DataError
from tests.children import in_child


@pytest.fixture
def source(text: Path) -> Source:
    return find_source([str(text)])


def test_files_hold_the_tokenizers_ids(source: Source, tokenizer: Path, tmp_path: Path) -> None:
    record = build_token_files(source, tokenizer, tmp_path / "new" / "corpus")

    model = SentencePieceProcessor(model_file=str(tokenizer))
    expected = [[*model.encode(text), model.eos_id()] for text in source.documents() if text]
    file = TokenFile(str(tmp_path / "new" / "corpus"))
    assert [file.read(i, 0, int(file.lengths[i])).tolist() for i in range(len(file))] == expected
    assert record.documents == len(expected)
    assert record.empty_documents == 1
    assert record.tokens == sum(map(len, expected))
    assert record.max_token_id == max(map(max, expected))
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["corpus.bin", "corpus.idx", "corpus.json"]
    verify_digests(str(tmp_path / "new" / "corpus"))


def test_number_of_workers_does_not_change_the_files(
    source: Source, tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llama_scale.data.build._BATCH_CHARS", 1000)
    seen: list[Progress] = []

    build_token_files(source, tokenizer, tmp_path / "one", append_eos=False, on_progress=seen.append)
    build_token_files(source, tokenizer, tmp_path / "two", append_eos=False, workers=2)

    for suffix in ("bin", "idx"):
        assert (tmp_path / f"one.{suffix}").read_bytes() == (tmp_path / f"two.{suffix}").read_bytes()
    assert len(seen) > 10
    assert seen[-1].read_bytes == seen[-1].total_bytes
    assert seen[-1].tokens == TokenFile(str(tmp_path / "one")).lengths.sum()


def make_hf_tokenizer(folder: Path, *, eos: str | dict[str, str] | None) -> Path:
    words = {"[UNK]": 0, "hello": 1, "world": 2, "</s>": 70_000}
    made = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    folder.mkdir()
    made.save(str(folder / "tokenizer.json"))
    if eos is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": eos}))
    return folder


@pytest.mark.parametrize("eos", ["</s>", {"__type": "AddedToken", "content": "</s>"}])
def test_hugging_face_tokenizer_with_large_ids(tmp_path: Path, eos: str | dict[str, str]) -> None:
    folder = make_hf_tokenizer(tmp_path / "hf", eos=eos)
    (tmp_path / "a.txt").write_text("hello world\nworld\n")

    record = build_token_files(find_source([str(tmp_path / "a.txt")]), folder, tmp_path / "corpus")

    assert (record.dtype, record.max_token_id) == ("int32", 70_000)
    assert TokenFile(str(tmp_path / "corpus")).tokens.tolist() == [1, 2, 70_000, 2, 70_000]


def test_tokenizer_without_eos_is_refused_unless_none_is_wanted(tmp_path: Path) -> None:
    folder = make_hf_tokenizer(tmp_path / "hf", eos=None)
    (tmp_path / "a.txt").write_text("hello world\n")
    source = find_source([str(tmp_path / "a.txt")])

    with pytest.raises(DataError, match=r"has no EOS token to end documents with; .* --no-append-eos"):
        build_token_files(source, folder, tmp_path / "corpus")

    build_token_files(source, folder, tmp_path / "corpus", append_eos=False)
    assert TokenFile(str(tmp_path / "corpus")).tokens.tolist() == [1, 2]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.model", None, "does not exist; `llama-scale tokenizer train` makes one"),
        ("bad.model", "no model", "is no SentencePiece model, or is damaged"),
        ("tokenizer.json", "{}", "is no Hugging Face tokenizer, or is damaged"),
    ],
)
def test_tokenizer_that_cannot_be_loaded(
    source: Source, tmp_path: Path, name: str, content: str | None, message: str
) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)

    with pytest.raises(DataError, match=message):
        build_token_files(source, tmp_path / name, tmp_path / "corpus")


def test_folder_without_tokenizer(source: Source, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds neither tokenizer.json nor tokenizer.model"):
        build_token_files(source, tmp_path, tmp_path / "corpus")


def test_broken_tokenizer_config(source: Source, tmp_path: Path) -> None:
    folder = make_hf_tokenizer(tmp_path / "hf", eos=None)
    (folder / "tokenizer_config.json").write_text("{")

    with pytest.raises(DataError, match=r"tokenizer_config.json is not JSON"):
        build_token_files(source, folder, tmp_path / "corpus")


@pytest.mark.parametrize("suffix", ["bin", "idx", "json"])
def test_existing_files_are_kept_without_force(source: Source, tokenizer: Path, tmp_path: Path, suffix: str) -> None:
    (tmp_path / f"corpus.{suffix}").write_text("precious")

    with pytest.raises(DataError, match=rf"corpus.{suffix} exist; choose another --output, or replace them with --f"):
        build_token_files(source, tokenizer, tmp_path / "corpus")

    assert (tmp_path / f"corpus.{suffix}").read_text() == "precious"
    build_token_files(source, tokenizer, tmp_path / "corpus", force=True)
    verify_digests(str(tmp_path / "corpus"))


@pytest.mark.parametrize(("name", "message"), [("corpus.bin", "give the prefix, .*corpus;"), ("", "is a folder")])
def test_output_must_be_a_prefix(source: Source, tokenizer: Path, tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        build_token_files(source, tokenizer, tmp_path / name)


def test_fault_in_the_text_leaves_nothing_behind(tokenizer: Path, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "good"}\n' * 9 + "nonsense\n")

    with pytest.raises(DataError, match=r"a.jsonl:10:1: no JSON"):
        build_token_files(find_source([str(tmp_path / "a.jsonl")]), tokenizer, tmp_path / "out" / "corpus")

    assert list((tmp_path / "out").iterdir()) == []


def test_text_without_words_is_refused(tokenizer: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\n\n")

    with pytest.raises(DataError, match="the input holds no text: every document is empty; nothing was written"):
        build_token_files(find_source([str(tmp_path / "a.txt")]), tokenizer, tmp_path / "out" / "corpus")

    assert list((tmp_path / "out").iterdir()) == []


def test_full_disk_leaves_nothing_behind(source: Source, tokenizer: Path, tmp_path: Path) -> None:
    def build() -> None:
        with pytest.raises(DataError, match=rf"cannot write .*corpus.bin: {os.strerror(errno.EFBIG)}; free space or"):
            build_token_files(source, tokenizer, tmp_path / "out" / "corpus")

    in_child(build, largest_file=4096)  # EFBIG stands for ENOSPC

    assert list((tmp_path / "out").iterdir()) == []


def test_output_folder_that_cannot_be_made(source: Source, tokenizer: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(DataError, match=r"cannot write .*: (Not a directory|File exists); free space or choose"):
        build_token_files(source, tokenizer, tmp_path / "file" / "corpus")


def test_statistics_count_what_is_there(tmp_path: Path) -> None:
    with TokenFileWriter(tmp_path / "c", vocab_size=10) as writer:
        writer.add(np.array([1, 1, 7, 2]), [3, 1])
        writer.commit()

    found = token_statistics(str(tmp_path / "c"))

    assert (found.documents, found.tokens, found.max_token_id, found.distinct_tokens) == (2, 4, 7, 3)
    assert (found.shortest_tokens, found.longest_tokens) == (1, 3)
    assert found.unigram_entropy_nats == pytest.approx(1.5 * np.log(2))


def test_negative_ids_are_refused(tmp_path: Path) -> None:
    with TokenFileWriter(tmp_path / "c", vocab_size=70_000) as writer:
        writer.add(np.array([1, 2]), [2])
        writer.commit()
    (tmp_path / "c.bin").write_bytes(np.array([1, -5], np.int32).tobytes())

    with pytest.raises(DataError, match=r"c.bin holds the negative id -5"):
        token_statistics(str(tmp_path / "c"))


def test_damage_is_found_by_digest(source: Source, tokenizer: Path, tmp_path: Path) -> None:
    prefix = str(tmp_path / "c")
    with pytest.raises(DataError, match=r"c.json does not exist, so there is nothing to compare with"):
        verify_digests(prefix)
    build_token_files(source, tokenizer, tmp_path / "c")
    content = bytearray((tmp_path / "c.bin").read_bytes())
    content[7] ^= 1
    (tmp_path / "c.bin").write_bytes(content)

    with pytest.raises(DataError, match=r"c.bin has SHA-256 \w+, but \w+ was built; it is damaged"):
        verify_digests(prefix)

    (tmp_path / "c.json").write_text("[]")
    with pytest.raises(DataError, match=r"c.json is no record of `llama-scale data build`"):
        verify_digests(prefix)
