from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from llama_scale.errors import LaunchError, ReportError
from tests.recorded_runs import record_run
from tests.unit.cli.calling import call


class Page(HTMLParser):
    """Collects a page's tags, links and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.tags: set[str] = set()
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            if name in ("href", "src", "srcset", "data", "action"):
                self.links.append(value or "")

    def handle_data(self, data: str) -> None:
        self.text += data


def report(*arguments: str | Path) -> Page:
    folder = Path(str(arguments[0]))
    assert call("report", *arguments) == 0
    return Page((folder / "report.html").read_text(encoding="utf-8"))


def test_page_needs_nothing_from_elsewhere(tmp_path: Path) -> None:
    page = report(record_run(tmp_path, failed=1).path)

    assert "script" not in page.tags
    assert all(link.startswith("#") and link[1:] in page.ids for link in page.links)
    assert len(page.ids) == len(set(page.ids))


def test_page_shows_what_the_run_did(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = record_run(tmp_path, failed=2)

    page = report(run.path)

    assert capsys.readouterr().out == f"{run.path / 'report.html'}\n"
    for words in (run.name, "succeeded", "20 of 4", "2 restarts in all", "rank 1 failed first", "step-00000020"):
        assert words in page.text, words
    assert "RuntimeError: <script>alert(1)</script>" in page.text  # shown, not run
    assert "Responsibilities" not in page.text


def test_measured_stands_beside_predicted(tmp_path: Path) -> None:
    page = report(record_run(tmp_path).path, "--gpu", "h100")

    assert re.search(r"predicted tokens/s\s*[\d,]+ on h100", page.text)
    assert "40 KiB resident" in page.text
    assert "measured" in page.text


def test_responsibilities_of_adapters_are_shown_where_there_are_any(tmp_path: Path) -> None:
    page = report(record_run(tmp_path, adapters=("math", "code")).path)

    assert "Responsibilities of the adapters" in page.text
    assert re.search(r"code\s*66\.7%", page.text)
    assert "task-math" in page.text


def test_what_became_of_examples_is_shown_where_there_are_any(tmp_path: Path) -> None:
    run = record_run(tmp_path)
    assert "What became of" not in report(run.path).text
    record = {"examples": 1234, "features": 5, "unread": ["<id>", "source"], "notes": ["1 answers end without"]}
    for folder, text in (("chat-0123456789ab/train", json.dumps(record)), ("chat-0123456789ab/validation", "{")):
        (run.examples / folder).mkdir(parents=True)
        (run.examples / folder / "record.json").write_text(text)

    page = report(run.path)

    assert re.search(r"chat, train\s*1,234\s*5\s*<id>, source\s*1 answers end without", page.text)
    assert "chat, validation" not in page.text


def test_several_runs_are_compared(tmp_path: Path) -> None:
    one = record_run(tmp_path / "a")
    other = record_run(tmp_path / "b", "parallel.data=2", "parallel.pipeline=1", "optimizer.lr=0.0005", name="other")

    page = report(one.path, other.path, one.path)

    assert "2 runs" in page.text
    assert "Where the specs differ" in page.text
    assert "optimizer.lr" in page.text
    assert "model.hidden_size" not in page.text.split("Where the specs differ")[1].split("Loss")[0]
    assert page.text.count("Pipeline timeline") >= 2


def test_runs_of_one_name_are_told_apart(tmp_path: Path) -> None:
    one = record_run(tmp_path / "a")
    twin = tmp_path / "b" / one.name
    twin.parent.mkdir()
    one.path.rename(twin)
    other = record_run(tmp_path / "a")
    other.path.rename(tmp_path / "a" / one.name)

    page = report(tmp_path / "a" / one.name, twin)

    assert str(twin) in page.text
    assert str(tmp_path / "a" / one.name) in page.text


def test_run_without_a_step_has_a_page(tmp_path: Path) -> None:
    page = report(record_run(tmp_path, steps=0).path)

    assert "Nothing is recorded." in page.text
    assert "none recorded" in page.text


def test_spec_that_cannot_be_read_any_more_leaves_the_rest(tmp_path: Path) -> None:
    run = record_run(tmp_path)
    run.spec.write_text("version: 9\nname: \x01\n")

    page = report(run.path)

    assert "Its spec cannot be read any more" in page.text
    assert "training loss" in page.text


def test_damaged_plan_is_refused(tmp_path: Path) -> None:
    run = record_run(tmp_path)
    run.plan.write_text("{}")

    with pytest.raises(ReportError, match=r"cannot be reported: plan\.json is damaged"):
        call("report", run.path)


def test_run_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(LaunchError, match=r"no run in .* is called 'none'"):
        call("report", "none", "--runs-dir", tmp_path)


def test_only_a_report_is_overwritten(tmp_path: Path) -> None:
    run = record_run(tmp_path)
    own = tmp_path / "notes.html"
    own.write_text("mine")

    with pytest.raises(ReportError, match="is no report; it is not overwritten"):
        call("report", run.path, "--output", own)
    assert own.read_text() == "mine"

    assert call("report", run.path, "-o", own, "--force") == 0
    first = own.read_text()
    assert call("report", run.path, "-o", own) == 0
    assert own.read_text() == first


def test_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    run = record_run(tmp_path)

    with pytest.raises(ReportError, match=r"cannot write .*none/report\.html: No such file or directory; .*--output"):
        call("report", run.path, "--output", tmp_path / "none" / "report.html")
    with pytest.raises(ReportError, match=r"cannot write .*runs: Is a directory"):
        call("report", run.path, "--output", tmp_path / "runs")


def test_memory_of_another_layout_is_not_shown(tmp_path: Path) -> None:
    run = record_run(tmp_path)
    for path in run.attempt(0).glob("memory-*"):
        path.write_text(path.read_text().replace('"spec_digest":"', '"spec_digest":"other'))

    assert "KiB resident" not in report(run.path).text
