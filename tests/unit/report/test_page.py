"""The page as a file: what it holds, what it asks for, and what hostile text can do in it."""

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from harness.errors import HarnessError
from harness.report.page import write_report
from tests.unit.report_runs import HOSTILE, change_manifest, copy_run, hostile_run

SECTIONS = ["verdict", "cluster", "load", "memory", "inference", "failures", "method"]


class Page(HTMLParser):
    """Elements, identifiers and references of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            self.attributes.append((tag, name, value or ""))
            if name == "id":
                self.ids.append(value or "")


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_report(copy_run(tmp_path_factory.mktemp("recorded"))).read_text()


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_report(hostile_run(tmp_path_factory.mktemp("hostile"))).read_text()


def test_seven_sections_in_order(recorded: str) -> None:
    assert re.findall(r'<section id="(\w+)"', recorded) == SECTIONS


def test_page_loads_nothing_from_the_network(recorded: str) -> None:
    loads = [(t, n, v) for t, n, v in Page(recorded).attributes if n in ("src", "href", "srcset", "data")]
    assert loads
    assert [v for _, _, v in loads if not v.startswith(("#", "./"))] == []
    assert re.findall(r"url\((?!#)", recorded) == []
    assert "@import" not in recorded
    assert "default-src 'none'" in recorded


def test_every_link_inside_the_page_leads_somewhere(recorded: str) -> None:
    page = Page(recorded)
    wanted = {v[1:] for _, n, v in page.attributes if n == "href" and v.startswith("#")}
    wanted |= set(re.findall(r"url\(#([^)]+)\)", recorded))
    assert wanted - set(page.ids) == set()


def test_identifiers_are_unique_across_inline_figures(recorded: str) -> None:
    ids = Page(recorded).ids
    assert sorted(ids) == sorted(set(ids))


def test_figures_carry_no_style_that_reaches_out_of_them(recorded: str) -> None:
    assert Page(recorded).tags.count("style") == 1


def test_each_figure_has_a_name_and_its_figures_in_words(recorded: str) -> None:
    heads = re.findall(
        r'<svg [^>]*aria-labelledby="(\S+) (\S+)"[^>]*>'
        r'<title id="(\S+)">(.+?)</title><desc id="(\S+)">(.+?)</desc>',
        recorded,
    )
    assert len(heads) == Page(recorded).tags.count("svg") >= 8
    for first, second, title_id, title, desc_id, words in heads:
        assert (first, second) == (title_id, desc_id)
        assert len(title) > 10
        assert len(words) > 20


def test_each_table_has_a_caption_and_scoped_headings(recorded: str) -> None:
    page = Page(recorded)
    assert page.tags.count("caption") == page.tags.count("table") > 5
    assert all('scope="' in heading for heading in re.findall(r"<th[ >][^>]*>", recorded))


def test_hostile_text_makes_no_element_and_no_handler(recorded: str, hostile: str) -> None:
    page = Page(hostile)
    assert page.tags.count("script") == Page(recorded).tags.count("script") == 1
    assert page.tags.count("img") == 0
    assert [n for _, n, _ in page.attributes if n.startswith("on")] == []
    assert "{{7*7}}" in hostile
    assert "\x00" not in hostile
    assert "\x1b" not in hostile


def test_hostile_log_lines_are_shown_as_text(hostile: str) -> None:
    marks = re.findall(r"<mark><i>\d+</i>(.*?)</mark>", hostile)
    assert any("&lt;script&gt;" in mark for mark in marks)


def test_evidence_cannot_name_a_file_outside_the_logs(tmp_path: Path) -> None:
    from harness.report.log_excerpt import find_excerpt

    run = copy_run(tmp_path)
    (run / "secret.txt").write_text("keep out\n")
    (run / "logs" / "link.log").symlink_to(run / "secret.txt")
    assert find_excerpt(run, "../secret.txt:1", "keep out", []) is None
    assert find_excerpt(run, "link.log:1", "keep out", []) is None


def test_the_same_run_gives_the_same_page(recorded: str, tmp_path: Path) -> None:
    assert write_report(copy_run(tmp_path)).read_text() == recorded


@pytest.fixture
def empty(tmp_path: Path) -> Path:
    """A run of which only the manifest was written."""
    run = tmp_path / "empty"
    run.mkdir()
    (run / "run.json").write_bytes((copy_run(tmp_path) / "run.json").read_bytes())
    change_manifest(run, lambda m: m.update(nodes=[], outcome=None, ended_ns=None, models={}))
    return run


def test_a_failed_report_leaves_the_earlier_one(empty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = write_report(empty).read_bytes()

    def broken(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("harness.common.files.os.fsync", broken)
    with pytest.raises(HarnessError, match=r"report\.html: No space left on device"):
        write_report(empty)
    assert (empty / "report.html").read_bytes() == before
    assert list(empty.glob(".*.tmp")) == []


def test_a_run_without_anything_but_its_manifest_is_reported(empty: Path) -> None:
    text = write_report(empty).read_text()
    assert "No trial ended in this run" in text
    assert "No node samples were recorded" in text


def test_hostile_text_is_hostile() -> None:
    assert Page(f"<pre>{HOSTILE}</pre>").tags.count("script") == 1
