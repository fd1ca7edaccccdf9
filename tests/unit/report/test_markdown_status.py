"""The short status of a run as Markdown."""

import json
import re
from html import unescape
from pathlib import Path

import pytest
from harness.report.data import load_run
from harness.report.markdown_status import escape, render_markdown
from markdown_it import MarkdownIt
from tests.unit.report_runs import HOSTILE, RECORDED, copy_run, hostile_run


@pytest.mark.parametrize(
    "text",
    ["# a", "- a", "+ a", "1. a", "12) a", "---", "> a", "| a |", "<b>a</b>", "[a](b)", "![a](b)", "a_b_"],
)
def test_text_in_markdown_opens_nothing_wherever_it_stands(text: str) -> None:
    plain = MarkdownIt("commonmark").render(f"- {escape(text)}")
    assert re.findall(r"<[^>]*>", plain) == ["<ul>", "<li>", "</li>", "</ul>"]
    assert unescape(re.sub(r"<[^>]*>|\n", "", plain)) == text


def test_addresses_in_hostile_text_become_no_links() -> None:
    assert escape("http://a.example www.a.example") == "http\\://a.example www\\.a.example"


def test_markdown_has_the_founding_reports_parts_and_every_trial(tmp_path: Path) -> None:
    text = render_markdown(load_run(copy_run(tmp_path)))
    assert re.findall(r"^## (.*)$", text, re.MULTILINE) == [
        "Summary",
        "Test results",
        "Issues found",
        "Recommendations",
    ]
    for line in (RECORDED / "trials.jsonl").read_text().splitlines():
        assert escape(json.loads(line)["id"]) in text


def test_hostile_text_stays_text_in_markdown(tmp_path: Path) -> None:
    text = render_markdown(load_run(hostile_run(tmp_path)))
    fenced = re.compile(r"^(`{3,})\n.*?\n\1$", re.MULTILINE | re.DOTALL)
    outside = fenced.sub("", text)
    assert "<script" not in re.sub(r"\\<", "", outside)
    assert "\x1b" not in text
    assert escape(HOSTILE) in outside
    assert escape("# a *b* [c](d) `e` <f> _g_ h_i") == "\\# a \\*b\\* \\[c\\](d) \\`e\\` \\<f\\> \\_g\\_ h_i"
