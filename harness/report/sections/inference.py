"""Section 5: speed of the answers by the client's clock and by the server's, soaks and parity."""

from dataclasses import dataclass
from statistics import median

import numpy as np

from harness.contracts.run_records import Request, Trial
from harness.report.data import Row, RunData
from harness.report.format import slug
from harness.report.sections.cluster import colour_place
from harness.report.sections.verdict import Mark, detail_dict, outcome_mark
from harness.runs.metrics import decode_rate, server_decode_rate, stage_rate
from harness.runs.statistics import Spread, spread


@dataclass(frozen=True)
class StageRow:
    """The requests of one trial with one prompt length."""

    trial: str
    anchor: str
    """Anchor of its row; the first of a trial has the trial's own."""
    model: str
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
    """Of each request's median gap: gaps within one request are not independent."""
    itl_p95: float | None
    """95th percentile of the gaps, seconds."""
    tpot: Spread | None
    client: Spread | None
    """Decode rate as the client saw it, tokens/s."""
    server: Spread | None
    """The same as the server counted it."""
    output_rate: float | None
    """Output tokens of all requests / wall time from the first request sent to the last token."""

    @property
    def label(self) -> str:
        """Model, prompt length and concurrency, for an axis."""
        return ", ".join([self.model, *self._parameters()])

    @property
    def short_label(self) -> str:
        """The same with the model last, for a narrow axis."""
        return ", ".join([*self._parameters(), self.model])

    def _parameters(self) -> list[str]:
        length = [f"{self.prompt} in"] if self.prompt else []
        return [*length, f"{self.concurrency} at once"] if self.concurrency > 1 else length

    @property
    def apart(self) -> float | None:
        """(client - server) / server of the decode rate's medians."""
        if not self.client or not self.server or not self.server.median:
            return None
        return (self.client.median - self.server.median) / self.server.median


def stage_rows(run: RunData) -> list[StageRow]:
    """Requests in groups of the same trial and prompt length; warm-up left out."""
    groups: dict[tuple[str, int | None], list[Request]] = {}
    for request in run.requests:
        if not request.warmup:
            groups.setdefault((request.trial, request.prompt_tokens), []).append(request)
    streams = {t.id: int(t.metrics.get("concurrency", 1)) for t in run.trials}
    trials: set[str] = set()
    rows = []
    for (trial, prompt), members in groups.items():
        anchor = slug(trial) if trial not in trials else f"{slug(trial)}-{prompt}"
        trials.add(trial)
        rows.append(_stage(trial, anchor, prompt, streams.get(trial, 1), members))
    return rows


def _stage(
    trial: str, anchor: str, prompt: int | None, concurrency: int, requests: list[Request]
) -> StageRow:
    good = [r for r in requests if r.error is None and r.token_ns]
    gaps = [gap for r in good for gap in r.itl_s]
    return StageRow(
        trial=trial,
        anchor=anchor,
        model=requests[0].model,
        prompt=prompt,
        concurrency=concurrency,
        requests=len(requests),
        errors=len(requests) - len(good),
        ttft=spread([r.ttft_s for r in good if r.ttft_s is not None]),
        gaps=gaps,
        itl=spread([median(r.itl_s) for r in good if r.itl_s]),
        itl_p95=float(np.quantile(gaps, 0.95)) if gaps else None,
        tpot=spread([r.tpot_s for r in good if r.tpot_s is not None]),
        client=spread([x for r in good if (x := decode_rate(r)) is not None]),
        server=spread([x for r in good if (x := server_decode_rate(r)) is not None]),
        output_rate=stage_rate(good),
    )


def request_status(request: Request) -> str:
    """The request's error, else its HTTP status."""
    return request.error or (f"HTTP {request.status}" if request.status else "no answer")


@dataclass(frozen=True)
class SoakRow:
    """One soak."""

    trial: str
    anchor: str
    mark: Mark
    took_s: float
    requests: int
    errors: list[tuple[str, int]]
    """Message and how often."""
    failed: int
    restarts: int
    drifts: list[Row]
    rates: list[tuple[float, float]]
    """Seconds since the trial's start, and decode rate by the client's clock."""


def soak_rows(run: RunData) -> list[SoakRow]:
    """Soak trials in order."""
    return [_soak(run, trial) for trial in run.trials if trial.kind == "soak"]


def _soak(run: RunData, trial: Trial) -> SoakRow:
    requests = [r for r in run.requests if r.trial == trial.id and not r.warmup]
    rates = [((r.sent_ns - trial.started_ns) / 1e9, rate) for r in requests if (rate := decode_rate(r))]
    return SoakRow(
        trial=trial.id,
        anchor=slug(trial.id),
        mark=outcome_mark(trial.outcome),
        took_s=(trial.ended_ns - trial.started_ns) / 1e9,
        requests=int(trial.metrics.get("requests", len(requests))),
        errors=list(detail_dict(trial.details, "errors").items()),
        failed=int(trial.metrics.get("errors", 0)),
        restarts=int(trial.metrics.get("restarts", 0)),
        drifts=_drifts(run, trial),
        rates=rates,
    )


def _drifts(run: RunData, trial: Trial) -> list[Row]:
    """How the rate (per cent of the median) and each node's memory (bytes) moved over a soak, per hour."""
    rate, memory = (detail_dict(trial.details, key) for key in ("rate_drift", "memory_drift"))
    rows = [_drift("tokens/s", None, rate, "percent_per_hour")] if rate else []
    for node in memory:
        if drift := detail_dict(memory, node):
            rows.append(_drift(node, colour_place(run, node), drift, "bytes_per_hour"))
    return rows


def _drift(what: str, colour: int | None, drift: Row, key: str) -> Row:
    numbers = {name: value for name, value in drift.items() if isinstance(value, int | float)}
    return {
        "what": what,
        "colour": colour,
        "per_hour": numbers.get(key, 0.0),
        "low": numbers.get("low"),
        "high": numbers.get("high"),
        "beyond_noise": bool(drift.get("beyond_noise")),
    }


def parity_rows(run: RunData) -> list[Row]:
    """Parity trials in order."""
    return [_parity(trial) for trial in run.trials if trial.kind == "parity"]


def _parity(trial: Trial) -> Row:
    reference, backends = detail_dict(trial.details, "reference"), detail_dict(trial.details, "seen")
    texts = str(reference.get("text", "")), str(backends.get("text", ""))
    pairs = zip(*texts, strict=False)
    compared, equal = trial.metrics.get("tokens_compared"), trial.metrics.get("tokens_equal")
    return {
        "trial": trial.id,
        "anchor": slug(trial.id),
        "mark": outcome_mark(trial.outcome),
        "compared": None if compared is None else int(compared),
        "equal": None if equal is None else int(equal),
        "gap": trial.metrics.get("largest_logprob_gap"),
        "reference": texts[0],
        "reference_where": reference.get("where", "one node"),
        "backends": texts[1],
        "backends_where": backends.get("where", "the backends"),
        # Characters that the two texts share from their beginning.
        "common": next((n for n, (a, b) in enumerate(pairs) if a != b), min(map(len, texts))),
    }
