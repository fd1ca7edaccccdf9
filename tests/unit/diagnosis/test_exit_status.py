"""Exit statuses as people, shells, subprocess, systemd and Windows write them."""

import pytest
from harness.diagnosis.exit_status import from_journal, from_unit, in_words, parse_exit_status, signal_of
from harness.errors import HarnessError


@pytest.mark.parametrize(
    ("text", "signal"),
    [
        ("134", 6),
        ("-6", 6),
        ("SIGABRT", 6),
        ("abrt", 6),
        ("139", 11),
        ("0xC0000005", 11),
        ("3221225477", 11),
        ("-1073741819", 11),
        ("0xc000001d", 4),
        ("0xC0000409", 6),
        ("137", 9),
        ("0", None),
        ("1", None),
        ("3", None),
        ("127", None),
        ("255", None),
    ],
)
def test_status_is_read_as_the_signal_that_it_means(text: str, signal: int | None) -> None:
    assert signal_of(parse_exit_status(text)) == signal


@pytest.mark.parametrize("text", ["", "foo", "1.5", "0x", "99999999999", "-99999999999"])
def test_nonsense_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(HarnessError, match="is no exit status"):
        parse_exit_status(text)


def test_windows_status_is_shown_as_such() -> None:
    assert (
        in_words(parse_exit_status("-1073741819")) == "exited with code 0xC0000005, as by SIGSEGV elsewhere"
    )


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("x: Main process exited, code=killed, status=9/KILL", "ended by signal 9 (SIGKILL), 137 in a shell"),
        ("x: Main process exited, code=dumped, status=6/ABRT", "ended by signal 6 (SIGABRT), 134 in a shell"),
        ("x: Main process exited, code=exited, status=1/FAILURE", "exited with code 1"),
        ("x: Started.", None),
    ],
)
def test_systemds_line_tells_the_end(line: str, words: str | None) -> None:
    status = from_journal(line)
    assert (in_words(status) if status else None) == words


def test_unit_that_still_runs_has_no_exit() -> None:
    assert from_unit({"ExecMainCode": "0", "ExecMainStatus": "0"}) is None
