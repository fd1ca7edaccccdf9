"""Who has logged in to the dashboard: a signed cookie, which says nothing of the key it was given for.

Nothing is kept here: a router that was restarted still knows its viewers, and a new admin key ends every
session.
"""

import hashlib
import hmac
import secrets
from collections.abc import Callable

COOKIE = "llama_dashboard"
LASTS_S = 12 * 3600
_CONTEXT = b"llama-router dashboard session\0"


class Sessions:
    """Gives tokens to those who know the admin key, and knows them again.

    Args:
        admin_key: as in ``admin.key``.
        now: UTC, seconds.
    """

    def __init__(self, admin_key: str, now: Callable[[], float]) -> None:
        self._key = admin_key.encode()
        self._now = now

    def begin(self, offered: str) -> str | None:
        """A token of a new session; None where ``offered`` is not the admin key."""
        if not hmac.compare_digest(offered.strip().encode(), self._key):
            return None
        claim = f"{int(self._now()) + LASTS_S}.{secrets.token_hex(16)}"
        return f"{claim}.{self._signature(claim)}"

    def holds(self, token: str) -> bool:
        """Whether ``token`` was given here, for the key of now, and has not expired."""
        claim, _, signature = token.rpartition(".")
        if not hmac.compare_digest(signature.encode(), self._signature(claim).encode()):
            return False
        return self._now() < int(claim.partition(".")[0])

    def _signature(self, claim: str) -> str:
        return hmac.new(self._key, _CONTEXT + claim.encode(), hashlib.sha256).hexdigest()
