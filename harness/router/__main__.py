"""``llama-router --config PATH``: runs the router until a signal stops it."""

import argparse
import os
import sys
from pathlib import Path
from types import FrameType

import uvicorn

from harness.errors import HarnessError
from harness.router.app import Drain, create_app
from harness.router.config import RouterConfig, load_config
from harness.router.http.auth import Gate
from harness.router.http.limits import limited_protocol
from harness.router.json_log import configure_logging
from harness.settings import NODE_CONFIG


class DrainingServer(uvicorn.Server):
    """uvicorn waits for the responses in flight; the drain ends what would wait longer."""

    def __init__(self, config: uvicorn.Config, drain: Drain) -> None:
        super().__init__(config)
        self._drain = drain

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Handle SIGTERM and SIGINT."""
        self._drain.begin()
        super().handle_exit(sig, frame)


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
        dashboard = os.environ.get("SOLLOL_DASHBOARD", "").strip().lower()
        if arguments.no_dashboard or dashboard in {"0", "false", "no", "off"}:
            config = config.model_copy(update={"dashboard": False})
        drain = Drain()
        app = create_app(config, drain)
    except HarnessError as error:
        sys.exit(f"llama-router: {error}")
    if arguments.check:
        return
    configure_logging()
    server = DrainingServer(server_settings(config, app), drain)
    server.run()
    if not server.started:
        sys.exit(1)


def server_settings(config: RouterConfig, app: Gate) -> uvicorn.Config:
    """How uvicorn serves the application."""
    return uvicorn.Config(
        app,
        http=limited_protocol(config, app.metrics),
        ws="none",
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
        timeout_keep_alive=config.keep_alive_s,
        backlog=min(config.connections_limit, 2048),
        h11_max_incomplete_event_size=2 * config.head_limit_bytes,
    )


if __name__ == "__main__":
    main()
