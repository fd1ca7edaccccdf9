import json
from pathlib import Path

import pytest
from harness.contracts.coordinator_state import BackendBuffers, LoadReport
from harness.contracts.plan import BackendShare, Plan
from harness.router.errors import RouterError
from harness.router.models.command_line import check_flags, contradiction, coordinator_argv, release_args


def share(node: str, port: int, layers: int) -> BackendShare:
    return BackendShare(
        node=node,
        endpoint=f"10.0.0.{port}:50052",
        available_bytes=1,
        weight=layers,
        layers=layers,
        model_bytes=layers,
        kv_bytes=0,
        compute_bytes=0,
    )


PLAN = Plan(
    model="m",
    model_path="/models/m.gguf",
    file_bytes=1,
    layers_total=31,
    shares=[share("a", 1, 20), share("b", 2, 11)],
)


def report(offloaded: int | None = 31, **model_bytes: int) -> LoadReport:
    endpoints = {s.node: s.endpoint for s in PLAN.shares}
    held = {"a": 20, "b": 11} | model_bytes
    return LoadReport(
        offloaded=offloaded,
        layers_total=31,
        buffers=[
            BackendBuffers(device=f"RPC0[{endpoints[node]}]", node=node, model_bytes=size)
            for node, size in held.items()
        ],
    )


def option(argv: list[str], name: str) -> str:
    return argv[argv.index(name) + 1]


def test_argv_names_every_backend_device_and_share_in_the_plans_order() -> None:
    argv = coordinator_argv(Path("/opt/llama-server"), PLAN, port=18080, flags=["--cache-ram", "0"])
    assert argv[0] == "/opt/llama-server"
    assert option(argv, "--rpc") == "10.0.0.1:50052,10.0.0.2:50052"
    assert option(argv, "--device") == "RPC0,RPC1"
    assert option(argv, "--tensor-split") == "20,11"
    assert option(argv, "--n-gpu-layers") == "99"
    assert option(argv, "--host") == "127.0.0.1"
    assert argv[-2:] == ["--cache-ram", "0"]


def test_plan_without_offloading_says_so_on_the_command_line() -> None:
    argv = coordinator_argv(Path("x"), PLAN.model_copy(update={"n_gpu_layers": 0}), port=1)
    assert option(argv, "--n-gpu-layers") == "0"


def test_flag_that_the_release_s_list_does_not_have_is_a_400(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(json.dumps({"build": 11549}))
    binary = tmp_path / "bin" / "llama-server"
    check_flags(binary, ["--no-warmup"])
    with pytest.raises(
        RouterError, match=r"flags that are refused: '--log_file' \(it changes the log\)"
    ) as refusal:
        check_flags(binary, ["--no-warmup", "--log_file", "/tmp/x"])
    assert (refusal.value.status, refusal.value.error_class) == (400, "bad_arguments")


def test_log_that_agrees_with_the_plan_has_nothing_against_it() -> None:
    assert contradiction(PLAN, report()) is None


@pytest.mark.parametrize(
    ("seen", "against"),
    [
        (report(offloaded=None), "the log has no 'offloaded' line"),
        (report(offloaded=30), "offloaded 30/31 layers, planned 31/31"),
        (report(offloaded=0), "offloaded 0/31 layers, planned 31/31"),
        (report(b=0), "no model buffer on b"),
    ],
)
def test_log_that_contradicts_the_plan_is_found_out(seen: LoadReport, against: str) -> None:
    assert contradiction(PLAN, seen) == against


def test_plan_that_keeps_every_layer_local_agrees_with_empty_backends() -> None:
    local = PLAN.model_copy(update={"n_gpu_layers": 0})
    assert contradiction(local, report(offloaded=0, a=0, b=0)) is None
    assert contradiction(local, report(offloaded=31)) is not None


def test_release_is_given_the_arguments_of_its_catalogue_entry(tmp_path: Path) -> None:
    binary = tmp_path / "bin" / "llama-server"
    manifest = tmp_path / "manifest.json"
    manifest.write_text(json.dumps({"build": 6666}))
    assert release_args(binary) == []
    manifest.write_text(json.dumps({"build": 11434}))
    assert release_args(binary) == [
        "--cache-ram",
        "0",
        "-fit",
        "off",
        "-lv",
        "4",
        "--sse-ping-interval",
        "-1",
    ]
    manifest.unlink()
    assert release_args(binary) == ["--cache-ram", "0"]
