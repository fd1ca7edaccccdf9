"""The progress of a run on the terminal: a live line, and a line for each trial that ended."""

from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from harness.contracts.run_records import Outcome, Trial

_COLOUR = {
    Outcome.PASSED: "green",
    Outcome.FAILED: "red",
    Outcome.SKIPPED: "yellow",
    Outcome.INTERRUPTED: "yellow",
}


class RunProgress:
    """One line per trial that ended; on a terminal, a spinner with the time of the one that runs."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._live.add_task("", total=None, visible=False)
        self._title = ""

    def __enter__(self) -> "RunProgress":
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def say(self, text: str) -> None:
        """Print a line."""
        self._console.print(escape(text), highlight=False, soft_wrap=True)

    def begin(self, number: int, total: int, trial: str, estimate_s: float) -> None:
        """A trial starts."""
        self._title = f"[{number}/{total}] {trial}"
        self._describe(f"{self._title} (about {duration(estimate_s)})", fresh=True)
        if not self._console.is_terminal:
            self.say(f"{self._title} starts, about {duration(estimate_s)}")

    def step(self, text: str) -> None:
        """What the running trial does now; shown on a terminal only."""
        self._describe(f"{self._title}: {text}")

    def end(self, trial: Trial) -> None:
        """A trial has ended: its line."""
        colour, took = _COLOUR[trial.outcome], duration((trial.ended_ns - trial.started_ns) / 1e9)
        line = f"[{colour}]{trial.outcome:<11}[/] {escape(trial.id)} ({took}): {escape(trial.answer)}"
        self._console.print(line, highlight=False, soft_wrap=True)

    def summary(self, trials: Sequence[Trial]) -> None:
        """All trials once more, a line each."""
        for trial in trials:
            self.end(trial)

    def _describe(self, text: str, *, fresh: bool = False) -> None:
        if fresh:
            self._live.reset(self._task)
        self._live.update(self._task, description=escape(text), visible=True)


def duration(seconds: float) -> str:
    """``45 s`` or ``12 min``."""
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
