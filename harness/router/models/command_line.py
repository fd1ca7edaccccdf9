"""A plan as llama-server's command line, and the check of its log against the plan."""

from collections.abc import Sequence
from pathlib import Path

from harness.contracts.coordinator_state import LoadReport, distribution_gap
from harness.contracts.plan import Plan
from harness.errors import HarnessError
from harness.llama.releases.catalogue import installed_build, installed_release
from harness.llama.releases.server_flags import check_server_flags
from harness.router.errors import RouterError

_HTTP_THREADS = 32
"""A request that waits for its turn holds one of llama-server's threads; health must still be answered."""


def check_flags(llama_server: Path, flags: Sequence[str]) -> None:
    """Refuse flags of a request that the installed release's list does not have.

    Raises:
        RouterError: there is one (400).
    """
    try:
        check_server_flags(flags, installed_build(llama_server))
    except HarnessError as error:
        raise RouterError(400, "bad_arguments", str(error)) from None


def release_args(llama_server: Path) -> list[str]:
    """Arguments of every start, by the installed release's manifest and the catalogue of releases.

    A build without a manifest, or one that the catalogue does not have, gets those that every release since
    6743 knows.
    """
    release = installed_release(llama_server)
    return list(release.server_args) if release else ["--cache-ram", "0"]


def coordinator_argv(llama_server: Path, plan: Plan, *, port: int, flags: Sequence[str] = ()) -> list[str]:
    """llama-server's command line for a plan: backends in plan order, nothing left to its defaults."""
    return [
        str(llama_server),
        *("--model", plan.model_path),
        *("--alias", plan.model),
        *("--rpc", ",".join(plan.endpoints)),
        *("--device", ",".join(f"RPC{index}" for index, _ in enumerate(plan.shares))),
        *("--n-gpu-layers", str(plan.n_gpu_layers)),
        *("--tensor-split", ",".join(f"{share.weight:g}" for share in plan.shares)),
        *("--ctx-size", str(plan.context)),
        *("--parallel", str(plan.parallel)),
        *_cache_type(plan.kv_type),
        *("--host", "127.0.0.1"),
        *("--port", str(port)),
        *("--threads-http", str(_HTTP_THREADS)),
        "--no-webui",
        "--jinja",
        *flags,
    ]


def _cache_type(kv_type: str) -> list[str]:
    if kv_type == "f16":
        return []
    # A quantised cache of values needs flash attention, which is otherwise llama.cpp's own choice.
    return ["--cache-type-k", kv_type, "--cache-type-v", kv_type, "--flash-attn", "on"]


def contradiction(plan: Plan, report: LoadReport) -> str | None:
    """How the log of a load contradicts its plan; None where they agree."""
    if report.offloaded is None:
        return distribution_gap(report)
    expected = min(plan.n_gpu_layers, plan.layers_total)
    if report.offloaded != expected or report.layers_total != plan.layers_total:
        actual = f"offloaded {report.offloaded}/{report.layers_total} layers"
        return f"{actual}, planned {expected}/{plan.layers_total}"
    return distribution_gap(report, plan) if plan.distributed else None
