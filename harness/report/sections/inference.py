"""Section 5: how fast tokens came, as the client saw it and as the server counted it."""

from dataclasses import dataclass

from harness.report.load import RunData
from harness.report.numbers import centre, quantile, slug
from harness.runs.metrics import decode_rate, server_decode_rate, stage_rate
from harness.runs.schema import Request

FEW = 12
"""Up to this many values, all are shown."""


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
    requests: int
    errors: int
    ttft_s: list[float]
    itl_s: list[float]
    tpot_s: list[float]
    client_rates: list[float]
    server_rates: list[float]
    output_rate: float | None
    """Output tokens of all requests / wall time from the first sent to the last token."""

    @property
    def label(self) -> str:
        """Model and prompt length, for an axis."""
        return f"{self.model}, {self.prompt} in" if self.prompt else self.model

    @property
    def short_label(self) -> str:
        """The same with what tells the rows apart in front, for a narrow axis."""
        return f"{self.prompt} in, {self.model}" if self.prompt else self.model

    @property
    def ttft(self) -> float | None:
        """Median TTFT, seconds."""
        return centre(self.ttft_s)

    @property
    def itl(self) -> float | None:
        """Median gap, seconds."""
        return centre(self.itl_s)

    @property
    def itl_p95(self) -> float | None:
        """95th percentile of the gaps, seconds."""
        return quantile(self.itl_s, 0.95)

    @property
    def tpot(self) -> float | None:
        """Median TPOT, seconds."""
        return centre(self.tpot_s)

    @property
    def client_rate(self) -> float | None:
        """Median decode rate as the client saw it, tokens/s."""
        return centre(self.client_rates)

    @property
    def server_rate(self) -> float | None:
        """Median decode rate as the server counted it, tokens/s."""
        return centre(self.server_rates)

    @property
    def apart(self) -> float | None:
        """(client - server) / server of the decode rate."""
        if not self.client_rate or not self.server_rate:
            return None
        return (self.client_rate - self.server_rate) / self.server_rate


def stages(run: RunData) -> list[StageRow]:
    """Requests in groups of the same trial and prompt length; warm-up left out."""
    groups: dict[tuple[str, int | None], list[Request]] = {}
    for request in run.requests:
        if not request.warmup:
            groups.setdefault((request.trial, request.prompt_tokens), []).append(request)
    seen: set[str] = set()
    rows = []
    for (trial, prompt), members in groups.items():
        anchor = slug(trial) if trial not in seen else f"{slug(trial)}-{prompt}"
        seen.add(trial)
        rows.append(_stage(trial, anchor, prompt, members))
    return rows


def request_rows(run: RunData) -> list[RequestRow]:
    """Every request, warm-up included."""
    return [_request(request) for request in run.requests]


def _stage(trial: str, anchor: str, prompt: int | None, requests: list[Request]) -> StageRow:
    good = [r for r in requests if r.error is None and r.token_ns]
    return StageRow(
        trial=trial,
        anchor=anchor,
        model=requests[0].model,
        route=requests[0].route,
        prompt=prompt,
        requests=len(requests),
        errors=len(requests) - len(good),
        ttft_s=[r.ttft_s for r in good if r.ttft_s is not None],
        itl_s=[gap for r in good for gap in r.itl_s],
        tpot_s=[r.tpot_s for r in good if r.tpot_s is not None],
        client_rates=[x for r in good if (x := decode_rate(r)) is not None],
        server_rates=[x for r in good if (x := server_decode_rate(r)) is not None],
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
