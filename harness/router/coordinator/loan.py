"""What one request gets of the coordinator."""

from dataclasses import dataclass

from harness.router.coordinator.start import Start


@dataclass(frozen=True)
class Loan:
    """A ready coordinator for one request, and how the request came by it."""

    start: Start
    position: int
    """Its place in the queue when it came; 1 is next."""
    waited_s: float

    @property
    def headers(self) -> dict[str, str]:
        """Headers that tell the client of its wait."""
        return {"x-llama-queue-position": str(self.position), "x-llama-queue-wait": f"{self.waited_s:.3f}"}
