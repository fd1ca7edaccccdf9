"""The check of a request's fields, counted in the metrics, and the body that its server gets."""

import asyncio
from collections.abc import Awaitable, Callable

from starlette.requests import Request

from harness.router.errors import RouterError
from harness.router.http.bodies import Body
from harness.router.http.json_body import Json
from harness.router.http.quotas import usage_of
from harness.router.proxy.upstream import UpstreamRequest
from harness.router.requests.check import WITH_SCHEMAS, CheckedRequest, check_request
from harness.router.requests.fields import Api


async def checked_request(
    request: Request,
    api: Api,
    fields: Json,
    spelled: Callable[[str], str] = str,
    given: Json | None = None,
) -> CheckedRequest:
    """See ``check_request``. Schemas and grammars are checked in a thread: other requests go on meanwhile.

    Raises:
        RouterError: a field is refused (400).
    """
    try:
        if WITH_SCHEMAS.isdisjoint(fields):
            return check_request(api, fields, spelled, given)
        return await asyncio.to_thread(check_request, api, fields, spelled, given)
    except RouterError:
        request.state.stats.count_fields("refused", 1)
        raise


async def body_for(
    request: Request,
    asked: Callable[[], Awaitable[CheckedRequest]],
    call: UpstreamRequest,
    original: Body,
    *,
    as_it_came: bool,
) -> Body:
    """The body for the server that was chosen; a server that gets the request later gets its own.

    ``call.headers`` then names what the server does not get.

    Args:
        asked: gives the checked request; a large one is in a file and parsed each time.
        original: the client's body; it is passed on where nothing in it changes.
        as_it_came: whether a server may get the client's own body, which was not converted.
    """

    async def make(call: UpstreamRequest) -> Body:
        checked = await asked()
        if call.kind == "ollama" and as_it_came:
            changed, call.ignored = checked.for_others()
        else:
            changed, call.ignored = checked.for_llama_server(call.upstream.build, as_it_came=as_it_came)
        if not call.last:
            request.state.stats.count_fields("ignored", len(checked.unknown) + len(checked.left_out))
        return original if changed is None else await usage_of(request).hold(changed)

    call.body_for_server = make
    return await make(call)
