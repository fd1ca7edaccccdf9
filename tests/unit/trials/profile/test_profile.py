"""Profiles: what is shipped can be read, and what is wrong is named in one line."""

import json
from pathlib import Path

import pytest
import yaml
from harness.contracts.diagnosis import FailureClass
from harness.errors import HarnessError
from harness.trials.profile.base_step import stated
from harness.trials.profile.profile import (
    PROFILES,
    Profile,
    load_profile,
    parse_profile,
    schema_text,
)
from harness.trials.profile.steps import InferenceStep, LoadStep, UnloadStep
from jsonschema import Draft202012Validator


def profile(text: str) -> Profile:
    return parse_profile(Path("mine.yml"), text)


@pytest.mark.parametrize("name", sorted(path.stem for path in PROFILES.glob("*.yml")))
def test_shipped_profile_is_valid(name: str) -> None:
    assert load_profile(name)[2].trials


def test_default_asks_what_the_project_promises() -> None:
    steps = load_profile("default")[2].trials
    loads = [(s.model, s.cache) for s in steps if isinstance(s, LoadStep)]
    assert loads == [("13b-q4_0", "cold"), ("13b-q4_0", "warm"), ("70b-tq1_0", "cold")]
    asked = [
        (s.model, s.prompt_tokens, s.repeats, s.generated_tokens)
        for s in steps
        if isinstance(s, InferenceStep)
    ]
    assert asked == [("13b-q4_0", 35, 3, 32), ("13b-q4_0", 512, 1, 32), ("70b-tq1_0", 35, 2, 8)]


def test_full_asks_what_founding_asks_and_shows_what_the_report_got_wrong() -> None:
    _, text, full = load_profile("full")
    founding = load_profile("founding")[2]
    assert full.trials[: len(founding.trials)] == founding.trials
    assert full.questions == founding.questions
    added = [s for s in full.trials[len(founding.trials) :] if isinstance(s, LoadStep)]
    assert [(s.model, s.n_gpu_layers, s.expected, s.starve is not None) for s in added] == [
        ("13b-q4_0", 0, FailureClass.NOT_DISTRIBUTED, False),
        ("70b-tq1_0", None, None, True),
    ]
    assert "13b, cache: warm" in text, "the text of the profile it extends is kept with the run"


def test_unload_expects_a_clean_stop() -> None:
    step = profile("trials: [{kind: unload, model: m}]").trials[0]
    assert isinstance(step, UnloadStep)
    assert step.expected is FailureClass.STOPPED


def test_size_of_a_starved_node_is_read_like_the_inventory() -> None:
    step = profile("trials: [{kind: load, model: m, starve: {node: node1, memory: 1.5G}}]").trials[0]
    assert isinstance(step, LoadStep)
    assert step.starve is not None
    assert step.starve.memory == 1536 * 2**20


def test_own_profile_is_read_by_path(tmp_path: Path) -> None:
    path = tmp_path / "mine.yml"
    path.write_text("trials: [{kind: pool, model: smollm2}]")
    name, _, content = load_profile(str(path))
    assert (name, content.model_names) == ("mine", ["smollm2"])


def test_unknown_profile_names_the_shipped_ones() -> None:
    with pytest.raises(HarnessError, match="no profile 'nightly'; shipped ones: default, faults"):
        load_profile("nightly")


def test_profiles_that_extend_each_other_are_refused(tmp_path: Path) -> None:
    for name, other in (("a", "b"), ("b", "a")):
        (tmp_path / f"{name}.yml").write_text(
            f"extends: {tmp_path / other}.yml\ntrials: [{{kind: pool, model: m}}]"
        )
    with pytest.raises(HarnessError, match=r"a\.yml extends itself"):
        load_profile(str(tmp_path / "a.yml"))


def test_what_is_no_text_is_no_profile(tmp_path: Path) -> None:
    (tmp_path / "a.yml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(HarnessError, match=r"a\.yml is not text"):
        load_profile(str(tmp_path / "a.yml"))
    with pytest.raises(HarnessError, match=r"no profile '.*below\.yml'"):
        load_profile(str(tmp_path / "a.yml" / "below.yml"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "trials: [{kind: inference, model: m, prompt_tokens: 1, generated_tokens: 1, repeat: 3}]",
            r"mine\.yml: unknown key 'trials\[0\]\.repeat'; known keys here: kind, model, .*repeats",
        ),
        (
            "trails: []\ntrials: [{kind: pool, model: m}]",
            "unknown key 'trails'; known keys here: description",
        ),
        (
            "trials: [{kind: load, model: m, starve: {node: a, memory: 1G, swap: 2}}]",
            r"unknown key 'trials\[0\]\.starve\.swap'; known keys here: node, memory",
        ),
        (
            "trials: [{kind: pool, modell: m}]",
            r"unknown key 'trials\[0\]\.modell'; known keys here: kind, model",
        ),
        ("trials: [{kind: soaking, model: m}]", r"trials\[0\].*soaking"),
        ("trials: [{kind: load, model: m, expected: exploded}]", r"trials\[0\]\.expected"),
        ("trials: [{kind: load, model: m, deadline_s: 0}]", r"trials\[0\]\.deadline_s"),
        ("trials: []", "trials"),
        ("repeats: 0\ntrials: [{kind: pool, model: m}]", "repeats"),
        (
            "stop_when: {failed: 1}\ntrials: [{kind: pool, model: m}]",
            "unknown key 'stop_when'; known keys here: description",
        ),
        ("load: {}\ntrials: [{kind: pool, model: m}]", "unknown key 'load'; known keys here: description"),
        ("- a\n- b", "mine.yml: the file"),
        ("trials: [", "mine.yml is not YAML"),
    ],
)
def test_fault_is_named_in_one_line(text: str, message: str) -> None:
    with pytest.raises(HarnessError, match=message) as caught:
        profile(text)
    assert "\n" not in str(caught.value)


def test_profile_keeps_what_it_extends_says_and_it_does_not(tmp_path: Path) -> None:
    (tmp_path / "base.yml").write_text("repeats: 3\norder: shuffled\ntrials: [{kind: pool, model: m}]")
    (tmp_path / "mine.yml").write_text(
        f"extends: {tmp_path}/base.yml\nrepeats: 2\ntrials: [{{kind: pool, model: n}}]"
    )
    mine = load_profile(str(tmp_path / "mine.yml"))[2]
    assert (mine.repeats, mine.order, mine.model_names) == (2, "shuffled", ["m", "n"])


def _validator() -> Draft202012Validator:
    schema = json.loads(schema_text())
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema)


@pytest.mark.parametrize("path", sorted(PROFILES.glob("*.yml")), ids=lambda path: path.stem)
def test_schema_admits_the_shipped_profiles(path: Path) -> None:
    _validator().validate(yaml.safe_load(path.read_text()))


@pytest.mark.parametrize(
    ("text", "admitted"),
    [
        ("trials: [{kind: load, model: m, nodes: small, starve: {node: a, memory: 1.5G}}]", True),
        ("trials: [{kind: load, model: m, nodes: [a, b]}]", True),
        ("trials: [{kind: load, model: m, nodes: 0}]", False),
        ("trials: [{kind: load, model: m, repeat: 2}]", False),
        ("order: random\ntrials: [{kind: pool, model: m}]", False),
        ("node_sets: {small: [a]}\ntrials: [{kind: pool, model: m}]", False),
    ],
)
def test_schema_and_reader_agree(text: str, *, admitted: bool) -> None:
    assert _validator().is_valid(yaml.safe_load(text)) is admitted
    if admitted:
        profile(text)
    else:
        with pytest.raises(HarnessError):
            profile(text)


def test_lists_of_counts_are_a_trial_for_each_combination() -> None:
    text = """
    trials:
      - {kind: load, model: m}
      - {kind: inference, model: m, prompt_tokens: [35, 512], generated_tokens: 8, concurrency: [1, 2],
         repeats: 2}
      - {kind: unload, model: m}
    """
    asked = [step for step in profile(text).trials if isinstance(step, InferenceStep)]
    assert [(one.prompt_tokens, one.concurrency) for one in asked] == [(35, 1), (35, 2), (512, 1), (512, 2)]
    assert {one.generated_tokens for one in asked} == {8}
    assert not list(Draft202012Validator(json.loads(schema_text())).iter_errors(yaml.safe_load(text)))


def test_fault_behind_a_list_is_named_where_the_file_has_it() -> None:
    lists = "{kind: inference, model: m, prompt_tokens: [1, 2], generated_tokens: [1, 2]}"
    with pytest.raises(HarnessError, match=r"trials\[1\]\.context"):
        profile(f"trials: [{lists}, {{kind: load, model: m, context: 1}}]")


def test_limits_of_goodput_are_seconds_of_known_figures() -> None:
    step = "{kind: inference, model: m, prompt_tokens: 1, generated_tokens: 1, limits: {%s}}"
    found = profile(f"trials: [{step % 'ttft_s: 2, tpot_s: 0.5'}]").trials[0]
    assert isinstance(found, InferenceStep)
    assert stated(found.limits) == {"ttft_s": 2.0, "tpot_s": 0.5}
    assert stated(None) == {}
    with pytest.raises(HarnessError, match="state one at least: ttft_s, tpot_s, e2e_s"):
        profile(f"trials: [{step % ''}]")
    with pytest.raises(HarnessError, match=r"'trials\[0\]\.limits\.itl_s'; known keys here: ttft_s, tpot_s"):
        profile(f"trials: [{step % 'itl_s: 1'}]")


@pytest.mark.parametrize("counts", ["[]", "[0]", "[1, two]"])
def test_list_of_counts_with_something_wrong_in_it_is_refused(counts: str) -> None:
    text = f"trials: [{{kind: inference, model: m, prompt_tokens: {counts}, generated_tokens: 1}}]"
    with pytest.raises(HarnessError, match="prompt_tokens"):
        profile(text)


def test_soak_without_an_end_is_refused() -> None:
    with pytest.raises(HarnessError, match="duration_s, requests, or both"):
        profile("trials: [{kind: soak, model: m}]")


def test_more_in_flight_than_requests_in_all_is_refused() -> None:
    asked = "{kind: inference, model: m, prompt_tokens: 35, generated_tokens: 1, concurrency: 4, repeats: 2}"
    with pytest.raises(HarnessError, match="2 repeats are never 4 in flight"):
        profile(f"trials: [{asked}]")


@pytest.mark.parametrize(
    ("text", "title"),
    [
        ("{kind: load, model: 13b-q4_0}", "13b-q4_0-cold-load"),
        ("{kind: load, model: m, nodes: 3}", "m-cold-load-3-nodes"),
        ("{kind: load, model: m, n_gpu_layers: 0}", "m-cold-load-ngl0"),
        ("{kind: load, model: m, starve: {node: a, memory: 1G}}", "m-cold-load-starved"),
        (
            "{kind: inference, model: m, prompt_tokens: 35, generated_tokens: 1, repeats: 3}",
            "m-inference-35x3",
        ),
        ("{kind: unload, model: m}", "m-unload"),
    ],
)
def test_trial_is_named_after_what_it_does(text: str, title: str) -> None:
    assert profile(f"trials: [{text}]").trials[0].title == title
