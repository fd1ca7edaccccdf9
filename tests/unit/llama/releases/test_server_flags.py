"""Options of llama-server that an administrator may set: a list, by release, under every name."""

import pytest
from harness.errors import HarnessError
from harness.llama.releases.catalogue import catalogue
from harness.llama.releases.server_flags import _read, check_server_flags

BUILDS = [release.build for release in catalogue().releases]
HARMFUL = [
    # The 38 that a deny-list was tried with: other spellings, aliases, files, network, presets.
    *("--log_file", "--log-file", "--log_disable", "--log-prompts-dir", "-v", "-lv", "--log_verbosity"),
    *(
        "-mu",
        "-mmu",
        "--mmproj-url",
        "--mmproj_url",
        "-mm",
        "-hf",
        "-hff",
        "-hfd",
        "--hf_repo",
        "-hft",
        "-dr",
    ),
    *("--chat-template-file", "--chat_template_file", "--grammar-file", "-jf", "--lora", "--lora_scaled"),
    *("--control-vector", "--media-path", "--slot_save_path", "--path", "--models-preset", "--models-dir"),
    *("--host", "--port", "--threads-http", "--api_key", "--api-key-file", "--ssl_key_file", "--rpc", "-dev"),
    *(
        "-m",
        "-md",
        "--model_draft",
        "-c",
        "-np",
        "-ngl",
        "--gpu_layers",
        "-ts",
        "-ctk",
        "--cache_type_k",
        "-fit",
    ),
    *("--sleep-idle-seconds", "--sleep_idle_seconds", "--tools", "--agent", "--mcp-servers-json", "--props"),
    *(
        "--gpt-oss-20b-default",
        "--fim-qwen-7b-spec",
        "--help",
        "--no-slots",
        "--override-kv",
        "--lookup_cache_static",
    ),
    *("--no-such-flag", "--port=1", "x", "", "--", "-"),
]


@pytest.mark.parametrize("build", [*BUILDS, None])
@pytest.mark.parametrize("flag", HARMFUL)
def test_option_that_is_not_on_the_list_is_refused_by_name(flag: str, build: int | None) -> None:
    with pytest.raises(HarnessError, match="flags that are refused: ") as refusal:
        check_server_flags(["--no-warmup", flag, "/var/lib/x"], build)
    assert repr(flag) in str(refusal.value)
    assert "/var/lib/x" not in str(refusal.value)


@pytest.mark.parametrize("build", [*BUILDS, None])
def test_ordinary_tuning_is_allowed(build: int | None) -> None:
    flags = [
        "--embeddings",
        "--pooling",
        "last",
        "--no-repack",
        "-ot",
        ".*=CPU",
        "-b",
        "512",
        "--top_k",
        "40",
        "-fa",
        "on",
    ]
    check_server_flags(flags, build)


def test_value_may_look_like_an_option() -> None:
    check_server_flags(["--temp", "-1", "--chat-template", "--log-file"], 11549)


@pytest.mark.parametrize("name", ["--context-shift", "--context_shift"])
def test_issue_of_a_release_forbids_an_option(name: str) -> None:
    check_server_flags([name], 11549)
    for build in (6751, None):
        with pytest.raises(HarnessError, match="unsafe with this release: CVE-2026-21869"):
            check_server_flags([name], build)


def test_option_of_another_release_is_refused_before_anything_is_unloaded() -> None:
    check_server_flags(["--no-mmap"], 6751)
    with pytest.raises(HarnessError, match=r"'--no-mmap' \(llama\.cpp 11549 has no such option\)"):
        check_server_flags(["--no-mmap"], 11549)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--temp"], "its value is missing"),
        (["--pooling", "a\0b"], "NUL"),
        (["--temp", "x" * 40_000], "more than"),
        (["--no-warmup"] * 300, "more than"),
    ],
)
def test_flags_that_cannot_be_a_command_line_are_refused(flags: list[str], message: str) -> None:
    with pytest.raises(HarnessError, match=message):
        check_server_flags(flags, 11549)


def test_no_option_is_on_two_lists() -> None:
    names = [name for options in _read().allowed for name in options.names]
    names += [name for refused in _read().refused.values() for name in refused]
    assert sorted(names) == sorted(set(names))


def test_what_an_issue_forbids_is_an_option_of_the_list() -> None:
    allowed = {name for options in _read().allowed for name in options.names}
    assert {flag for issue in catalogue().issues for flag in issue.refused_flags} <= allowed
