"""Backends that an administrator has drained: no load is planned on them until they are undrained."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path

from pydantic import TypeAdapter

from harness.common.files import write_atomic
from harness.contracts.plan import LoadRequest
from harness.router.errors import RouterError
from harness.router.json_log import log

_FILE = "drained.json"
NODE_DRAINED = "node_drained"
"""Class of the error for a load on a drained backend."""


class DrainedNodes:
    """Their names, kept in a file over restarts of the router.

    Args:
        nodes: all backends, in the inventory's order.
        folder: where the file is; None keeps the names in memory only.
    """

    def __init__(self, nodes: Sequence[str] = (), folder: Path | None = None) -> None:
        self._nodes = list(dict.fromkeys(nodes))
        self._path = folder / _FILE if folder else None
        self.version = 0
        """Another number after each change."""
        self.unreadable: str | None = None
        """Why the names are not known, and so nothing is loaded; None where they are."""
        self._kept = self._read()

    @property
    def names(self) -> list[str]:
        return [node for node in self._nodes if node in self._kept]

    @property
    def blocked(self) -> str | None:
        """Why nothing can be loaded on any backend, and the way out; names no node."""
        if self._nodes and len(self.names) == len(self._nodes):
            return "every backend is drained: undrain one with playbooks/undrain.yml"
        return self.unreadable

    def add(self, *nodes: str) -> None:
        """Plan without these backends.

        Raises:
            RouterError: there is none of this name (400); nothing is drained then.
        """
        self._check_known(nodes)
        self._write({*self._kept, *nodes})
        log("nodes_drained", nodes=list(nodes))

    def remove(self, *nodes: str) -> None:
        """Plan with them again; one that is not drained is no error.

        Raises:
            RouterError: there is none of this name (400); nothing is undrained then.
        """
        self._check_known(nodes)
        self._write(self._kept - {*nodes})
        log("nodes_undrained", nodes=list(nodes))

    def chosen(self, request: LoadRequest) -> LoadRequest:
        """The request on the backends that are not drained.

        Raises:
            RouterError: it or its plan names a drained one (409), or nothing can be loaded (503).
        """
        self.refuse(_named(request))
        if blocked := self.blocked:
            raise RouterError(503, "no_backends", blocked)
        drained = self.names
        if not drained or request.nodes is not None:
            return request
        return request.model_copy(update={"nodes": [node for node in self._nodes if node not in drained]})

    def refuse(self, nodes: Sequence[str]) -> None:
        """Refuse a load on these nodes.

        Raises:
            RouterError: one is drained (409).
        """
        if drained := [node for node in self.names if node in nodes]:
            text = f"{', '.join(drained)}: drained; undrain with playbooks/undrain.yml, or name other nodes"
            raise RouterError(409, NODE_DRAINED, text)

    def available(self, request: LoadRequest) -> LoadRequest:
        """Kept settings without the drained nodes; a plan that uses one is made anew."""
        drained = self.names
        if not set(drained) & set(_named(request)):
            return request
        nodes = [node for node in request.nodes or () if node not in drained]
        return request.model_copy(update={"nodes": nodes or None, "plan": None})

    def _check_known(self, nodes: Sequence[str]) -> None:
        if unknown := [node for node in nodes if node not in self._nodes]:
            text = f"no backend on {', '.join(unknown)}; there are: {', '.join(self._nodes) or 'none'}"
            raise RouterError(400, "unknown_node", text)

    def _read(self) -> set[str]:
        if self._path is None:
            return set()
        try:
            return set(TypeAdapter(list[str]).validate_json(self._path.read_bytes()))
        except FileNotFoundError:
            return set()
        except (OSError, ValueError) as error:
            log("drained_nodes_unreadable", level=logging.ERROR, path=str(self._path), error=str(error))
            self.unreadable = (
                f"{_FILE} is damaged, so which backends are drained is not known: "
                "drain or undrain them anew with playbooks/drain.yml or playbooks/undrain.yml"
            )
            return set()

    def _write(self, names: set[str]) -> None:
        if self._path:
            write_atomic(self._path, json.dumps(sorted(names)))
        self._kept, self.unreadable = names, None
        self.version += 1


def _named(request: LoadRequest) -> list[str]:
    shares = request.plan.shares if request.plan else []
    return [*(request.nodes or ()), *(share.node for share in shares)]
