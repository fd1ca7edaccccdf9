"""The live view as a table for people."""

from rich import box
from rich.console import Group
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from harness.common.text import GIB
from harness.monitor.backend_state import State
from harness.monitor.sample import Gpu
from harness.watch.view import ClusterView, NodeView, RouterView

_COLOUR: dict[str, str] = {
    State.IDLE: "green",
    State.BUSY: "cyan",
    State.STARTING: "yellow",
    State.DOWN: "bold red",
    State.SILENT: "bold magenta",
    State.UP: "green",
}
_PLAIN = frozenset({State.IDLE, State.UP})
"""States that explain themselves."""
_NOTHING = "-"


def table(view: ClusterView) -> Group:
    """Everything on one screen; the last figures of a silent node are dimmed."""
    rows = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("node", "backend"):
        rows.add_column(column, no_wrap=True)
    rows.add_column("model, layers, GiB", overflow="fold")
    for column in ("memory GiB", "swap GiB", "GPU", "load", "restarts", "age"):
        rows.add_column(column, justify="right", overflow="fold")
    rows.add_column("reason", overflow="fold")
    for node in view.nodes:
        rows.add_row(*_row(node))
    return Group(rows, _router(view.router), _source(view))


def _row(node: NodeView) -> list[Text]:
    style = "dim" if node.state == State.SILENT else ""
    figures = [
        _share(node),
        _of(node.memory_used_bytes, node.memory_total_bytes),
        _of(node.swap_used_bytes, node.swap_total_bytes),
        "\n".join(_gpu(gpu) for gpu in node.gpus) or _NOTHING,
        _NOTHING if node.load1 is None else f"{node.load1:.1f}",
        _NOTHING if node.restarts is None else str(node.restarts),
        _NOTHING if node.age_s is None else f"{node.age_s:.0f} s",
    ]
    state = Text(node.state, style=_COLOUR.get(node.state, ""))
    reasons = [] if node.state in _PLAIN else [node.reason]
    reasons += [f"no firewall: {unit} does not run" for unit in node.missing_firewalls]
    text = "; ".join(reasons)
    return [Text(node.name, style="bold"), state, *(Text(figure, style) for figure in figures), Text(text)]


def _share(node: NodeView) -> str:
    share = node.share
    if share is None:
        return _NOTHING
    layers = f"{share.first_layer}-{share.last_layer}/{share.layers_total}"
    return f"{share.model} {layers} {share.model_bytes / GIB:.1f}"


def _of(used: int | None, total: int | None) -> str:
    if used is None or total is None:
        return _NOTHING
    return f"{used / GIB:.1f}/{total / GIB:.1f}" if total else "none"


def _gpu(gpu: Gpu) -> str:
    if gpu.problem:
        return f"{gpu.index}: {gpu.problem}"
    parts = [f"{gpu.index}: {_of(gpu.memory_used_bytes, gpu.memory_total_bytes)}"]
    if gpu.use_percent is not None:
        parts.append(f"{gpu.use_percent:.0f}%")
    if gpu.temperature_c is not None:
        parts.append(f"{gpu.temperature_c:.0f} C")
    return " ".join(parts)


def _router(router: RouterView) -> Text:
    if router.problem:
        return Text.from_markup(f"[yellow]router:[/] {escape(router.problem)}")
    model = f"{router.model} " if router.model else "coordinator "
    return Text(f"router: {model}{router.phase}, {router.requests_in_flight} requests in flight")


def _source(view: ClusterView) -> Text:
    if view.source_problem is None:
        return Text("samples: Redis on the head node", style="dim")
    problem = escape(view.source_problem)
    return Text.from_markup(f"[yellow]samples:[/] each node's ring over SSH, without Redis ({problem})")
