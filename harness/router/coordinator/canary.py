"""One token: the only proof that a coordinator behind a healthy ``/health`` still reaches its backends."""

import aiohttp

from harness.router.proxy.upstream import BROKEN

_BODY = {"prompt": "1", "n_predict": 1, "cache_prompt": False, "stream": False}


async def canary(session: aiohttp.ClientSession, base_url: str) -> bool:
    """Whether llama-server answered a request for one token, however late; False where it broke off.

    Any answer counts, an error too: it has come from a main loop that runs. Whoever asks sets the deadline.
    """
    try:
        async with session.post(
            base_url + "/completion", json=_BODY, timeout=aiohttp.ClientTimeout(total=None, connect=10)
        ) as answer:
            await answer.read()
    except BROKEN:
        return False
    return True
