"""``llama-router --config PATH``: runs the router until it is told to stop."""

import argparse
import gc
import os
import sys
from collections.abc import Mapping
from pathlib import Path

import uvicorn

from harness.errors import HarnessError
from harness.router.app import create_app
from harness.router.app_drain import Drain, DrainingServer
from harness.router.config import load_config
from harness.router.http.limits import guarded_protocol, limits_of
from harness.router.logs import configure_logging
from harness.settings import NODE_CONFIG


def main() -> None:
    """Entry point of ``llama-router``."""
    parser = argparse.ArgumentParser(prog="llama-router", description=__doc__)
    parser.add_argument("--config", type=Path, default=NODE_CONFIG / "router.json")
    parser.add_argument("--check", action="store_true", help="read the configuration and the keys, then exit")
    parser.add_argument(
        "--no-dashboard", action="store_true", help="serve no /dashboard; so does SOLLOL_DASHBOARD=false"
    )
    arguments = parser.parse_args()
    try:
        config = load_config(arguments.config)
        if arguments.no_dashboard or _turned_off(os.environ):
            config = config.model_copy(update={"dashboard": False})
        drain = Drain()
        app = create_app(config, drain)
    except HarnessError as error:
        sys.exit(f"llama-router: {error}")
    if arguments.check:
        return
    configure_logging()
    _spare_the_collector()
    settings = uvicorn.Config(
        app,
        http=guarded_protocol(limits_of(config)),
        # uvloop's children have every signal's default restored; the coordinator must go on ignoring SIGPIPE.
        loop="asyncio",
        host=config.address,
        port=config.port,
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        # The coordinator is stopped first, and its requests get their error: this is for what hangs then.
        timeout_graceful_shutdown=round(config.drain_s + config.stop_deadline_s) + 5,
        backlog=min(config.connections_limit, 2048),
        h11_max_incomplete_event_size=2 * config.head_limit_bytes,
    )
    server = DrainingServer(settings, drain)
    server.run()
    if not server.started:
        sys.exit(1)


def _turned_off(environment: Mapping[str, str]) -> bool:
    return environment.get("SOLLOL_DASHBOARD", "").strip().lower() in {"0", "false", "no", "off"}


def _spare_the_collector() -> None:
    """Leave what was made at the start out of every later collection, and collect a little less often.

    Looking at all modules again and again cost a tenth of a request.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(5000, 20, 20)


if __name__ == "__main__":
    main()
