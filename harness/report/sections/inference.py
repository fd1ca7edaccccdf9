"""Section 5: how fast tokens came, as the client saw it and as the server counted it."""

from dataclasses import dataclass

from harness.contracts.run_records import Request
from harness.report.data import RunData
from harness.report.format import centre, quantile, slug
from harness.runs.metrics import decode_rate, server_decode_rate, stage_rate
from harness.runs.statistics import Spread, spread


@dataclass(frozen=True)
class RequestRow:
    """One request."""

    trial: str
    index: int
    warmup: bool
    route: str
    prompt: int | None
    completion: int | None
    ttft_s: float | None
    tpot_s: float | None
    itl_median_s: float | None
    e2e_s: float | None
    client_rate: float | None
    server_rate: float | None
    status: str
    text: str


@dataclass(frozen=True)
class StageRow:
    """The requests of one trial with one prompt length."""

    trial: str
    anchor: str
    """Anchor of its row; the first of a trial has the trial's own."""
    model: str
    route: str
    prompt: int | None
    concurrency: int
    """Requests in flight at once."""
    requests: int
    errors: int
    ttft: Spread | None
    """Seconds."""
    gaps: list[float]
    """Every gap between tokens, seconds."""
    itl: Spread | None
    """Of each request's median gap: the gaps within one request hang together, and say less than they are."""
    itl_p95: float | None
    """95th percentile of the gaps, seconds."""
    tpot: Spread | None
    client: Spread | None
    """Decode rate as the client saw it, tokens/s."""
    server: Spread | None
    """The same as the server counted it."""
    output_rate: float | None
    """Output tokens of all requests / wall time from the first sent to the last token."""

    @property
    def label(self) -> str:
        """Model, prompt length and concurrency, for an axis."""
        return ", ".join([self.model, *self._told()])

    @property
    def short_label(self) -> str:
        """The same with what tells the rows apart in front, for a narrow axis."""
        return ", ".join([*self._told(), self.model])

    def _told(self) -> list[str]:
        length = [f"{self.prompt} in"] if self.prompt else []
        return [*length, f"{self.concurrency} at once"] if self.concurrency > 1 else length

    @property
    def apart(self) -> float | None:
        """(client - server) / server of the decode rate's medians."""
        if not self.client or not self.server or not self.server.median:
            return None
        return (self.client.median - self.server.median) / self.server.median


def stages(run: RunData) -> list[StageRow]:
    """Requests in groups of the same trial and prompt length; warm-up left out."""
    groups: dict[tuple[str, int | None], list[Request]] = {}
    for request in run.requests:
        if not request.warmup:
            groups.setdefault((request.trial, request.prompt_tokens), []).append(request)
    streams = {t.id: int(t.metrics.get("concurrency", 1)) for t in run.trials}
    seen: set[str] = set()
    rows = []
    for (trial, prompt), members in groups.items():
        anchor = slug(trial) if trial not in seen else f"{slug(trial)}-{prompt}"
        seen.add(trial)
        rows.append(_stage(trial, anchor, prompt, streams.get(trial, 1), members))
    return rows


def request_rows(run: RunData) -> list[RequestRow]:
    """Every request, warm-up included."""
    return [_request(request) for request in run.requests]


def _stage(
    trial: str, anchor: str, prompt: int | None, concurrency: int, requests: list[Request]
) -> StageRow:
    good = [r for r in requests if r.error is None and r.token_ns]
    gaps = [gap for r in good for gap in r.itl_s]
    return StageRow(
        trial=trial,
        anchor=anchor,
        model=requests[0].model,
        route=requests[0].route,
        prompt=prompt,
        concurrency=concurrency,
        requests=len(requests),
        errors=len(requests) - len(good),
        ttft=spread([r.ttft_s for r in good if r.ttft_s is not None]),
        gaps=gaps,
        itl=spread([gap for r in good if (gap := centre(r.itl_s)) is not None]),
        itl_p95=quantile(gaps, 0.95),
        tpot=spread([r.tpot_s for r in good if r.tpot_s is not None]),
        client=spread([x for r in good if (x := decode_rate(r)) is not None]),
        server=spread([x for r in good if (x := server_decode_rate(r)) is not None]),
        output_rate=stage_rate(good),
    )


def _request(request: Request) -> RequestRow:
    status = request.error or (f"HTTP {request.status}" if request.status else "no answer")
    return RequestRow(
        trial=request.trial,
        index=request.index,
        warmup=request.warmup,
        route=request.route,
        prompt=request.prompt_tokens,
        completion=request.completion_tokens,
        ttft_s=request.ttft_s,
        tpot_s=request.tpot_s,
        itl_median_s=centre(request.itl_s),
        e2e_s=request.e2e_s,
        client_rate=decode_rate(request),
        server_rate=server_decode_rate(request),
        status=status,
        text=request.text,
    )
