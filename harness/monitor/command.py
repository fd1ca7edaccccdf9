"""``llama-node-monitor latest``: what Redis holds of each node, as lines of JSON."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from pydantic import ValidationError

from harness.monitor.config_file import MonitorError, read_json
from harness.monitor.redis.reader import LatestReader
from harness.monitor.redis.settings import RedisSettings


def latest(config: Path, nodes: Sequence[str], wait: Callable[[], bool]) -> Iterator[str]:
    """One line of JSON (``Heard``), then another each time that ``wait`` says to go on.

    Args:
        config: file with the reader's RedisSettings, as the role ``redis`` writes it.

    Raises:
        MonitorError: the file or the password cannot be read, or Redis does not answer.
    """
    with LatestReader(reader_settings(config)) as reader:
        while True:
            yield reader.read(nodes).model_dump_json()
            if not wait():
                return


def reader_settings(config: Path) -> RedisSettings:
    """How to reach Redis.

    Raises:
        MonitorError: one line that names the file, the key and what is wrong with it.
    """
    try:
        return RedisSettings.model_validate(read_json(config))
    except ValidationError as error:
        first = error.errors()[0]
        raise MonitorError(f"{config}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
