"""A plan as llama-server's command line, and what its log must say once the plan is carried out."""

from collections.abc import Sequence
from pathlib import Path

from harness.contracts.load_report import LoadReport
from harness.contracts.plan import Plan
from harness.llama.load_log import missing_backends
from harness.llama.releases.installed import installed_release

_OURS = frozenset(
    {
        "-m", "--model", "-mu", "--model-url", "-hf", "-hfr", "--hf-repo", "-dr", "--docker-repo",
        "-a", "--alias", "--rpc", "-dev", "--device", "-ngl", "--gpu-layers", "--n-gpu-layers",
        "-ctk", "--cache-type-k", "-ctv", "--cache-type-v",
        "-ts", "--tensor-split", "-c", "--ctx-size", "-np", "--parallel", "--host", "--port",
        "--log-file", "--log-disable", "--path", "--slot-save-path", "--api-key", "--api-key-file",
        "--ssl-key-file", "--ssl-cert-file", "--api-prefix",
        "--sleep-idle-seconds",  # CVE-2026-43631
    }
)  # fmt: skip

_HTTP_THREADS = 32
"""A request that waits for its turn holds one of llama-server's threads; health must still be answered."""


def refused_flags(flags: Sequence[str]) -> list[str]:
    """Flags that nobody may pass: the plan or the router sets them, or they write files or are unsafe."""
    return [flag for flag in flags if flag.split("=", 1)[0] in _OURS]


def release_args(llama_server: Path) -> list[str]:
    """What the installed release is always given, by its manifest and the catalogue of releases.

    A build without a manifest, or one that the catalogue does not know, is given
    what every release since 6743 knows.
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


def disagreements(plan: Plan, report: LoadReport) -> list[str]:
    """Where the log of a load contradicts its plan; empty where it was carried out."""
    if report.offloaded is None:
        return ["the log has no 'offloaded' line"]
    found = []
    expected = min(plan.n_gpu_layers, plan.layers_total)
    if report.offloaded != expected or report.layers_total != plan.layers_total:
        seen = f"offloaded {report.offloaded}/{report.layers_total} layers"
        found.append(f"{seen}, planned {expected}/{plan.layers_total}")
    if plan.distributed and (missing := missing_backends(report, plan)):
        found.append(f"no part of the model on {', '.join(missing)}")
    return found
