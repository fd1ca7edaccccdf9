"""The facts behind a decision, from real files, doubles of the pool, and the planner."""

import asyncio
import gc
import itertools
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from harness.contracts.plan import LoadRequest
from harness.llama.gguf import GgufModel
from harness.llama.synthetic.writer import synthesise
from harness.monitor.sample import Sample
from harness.router.config import Route, RouterConfig, RouteRule
from harness.router.drained import DrainedNodes
from harness.router.errors import RouterError
from harness.router.models.catalogue import Catalogue, ModelFile
from harness.router.models.planner import Planner
from harness.router.nodes.samples import NodeSamples
from harness.router.pool.pool import Pool
from harness.router.pool.server import PoolModel, PoolSnapshot
from harness.router.routing.resolver import RouteResolver
from tests.unit.ollama_storage import pull

GIB = 1 << 30
LIBRARY = "registry.ollama.ai/library"


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synthesise("tiny", "Q4_0", tmp_path_factory.mktemp("gguf") / "tiny.gguf").path


@pytest.fixture
def storage(tmp_path: Path, gguf: Path) -> Path:
    """Ollama's, with ``big:13b`` and ``user/story:latest``."""
    pull(tmp_path / "ollama", f"{LIBRARY}/big/13b", gguf)
    pull(tmp_path / "ollama", "registry.ollama.ai/user/story/latest", gguf)
    return tmp_path / "ollama"


def config(folder: Path, storage: Path | None = None, **more: Any) -> RouterConfig:
    backend = {"node": "b", "endpoint": "10.0.0.2:50052", "memory_bytes": 4 * GIB}
    given = {"address": "10.0.0.1", "models_dir": folder, "backends": [backend], "ollama_models": storage}
    given["state_dir"] = folder / "state"
    return RouterConfig.model_validate(given | more)


def resolver(settings: RouterConfig, loaded: Callable[[], str | None] = lambda: None) -> RouteResolver:
    catalogue = Catalogue(settings.models_dir, settings.ollama_models)
    pool = Pool(settings.pool)
    for server in pool._servers:
        server.snapshot = PoolSnapshot((PoolModel("big:13b", 2 * GIB, "d"),))
    return RouteResolver(settings, catalogue, pool, NodeSamples(None), planner(settings, catalogue), loaded)


def planner(settings: RouterConfig, catalogue: Catalogue) -> Planner:
    async def no_samples(nodes: Sequence[str]) -> Mapping[str, Sample]:
        return {}

    return Planner(settings, catalogue, no_samples)


OLLAMA = {"node": "a", "url": "http://10.0.0.3:11434", "kind": "ollama"}


async def test_file_that_no_pool_server_has_is_sharded(tmp_path: Path, gguf: Path) -> None:
    (tmp_path / "m.gguf").symlink_to(gguf)
    chosen = await resolver(config(tmp_path)).decide("m")
    assert chosen.route is Route.COORDINATOR
    assert "over 1 backend of 4.00 GiB" in chosen.reason


async def test_ollamas_model_goes_to_ollama_where_it_fits_and_is_sharded_where_not(
    tmp_path: Path, storage: Path
) -> None:
    roomy = config(tmp_path, storage, pool=[OLLAMA | {"memory_bytes": 3 * GIB}])
    chosen = await resolver(roomy).decide("big:13b")
    assert (chosen.route, chosen.servers) == (Route.POOL, ("http://10.0.0.3:11434",))
    tight = config(tmp_path, storage, pool=[OLLAMA | {"memory_bytes": 1}])
    assert (await resolver(tight).decide("big:13b")).route is Route.COORDINATOR
    without = config(tmp_path, None, pool=[OLLAMA | {"memory_bytes": GIB}])
    with pytest.raises(RouterError, match="fits nowhere") as refused:
        await resolver(without).decide("big:13b")
    assert refused.value.status == 507
    assert "2.00 GiB" in refused.value.message


async def test_model_too_large_for_the_backends_is_refused_with_their_figures(
    tmp_path: Path, gguf: Path
) -> None:
    (tmp_path / "m.gguf").symlink_to(gguf)
    small = {"node": "b", "endpoint": "10.0.0.2:50052", "memory_bytes": 1 << 20, "reserve_bytes": 0}
    with pytest.raises(RouterError, match="fits nowhere") as refused:
        await resolver(config(tmp_path, backends=[small])).decide("m")
    assert (refused.value.status, refused.value.error_class) == (507, "does_not_fit")


async def test_file_that_is_no_model_is_left_to_the_load_to_refuse(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"no model at all")
    chosen = await resolver(config(tmp_path)).decide("m")
    assert chosen.route is Route.COORDINATOR
    assert "cannot be sized" in chosen.reason


async def test_unknown_model_is_refused_beside_the_known_ones_and_not_kept(
    tmp_path: Path, gguf: Path
) -> None:
    (tmp_path / "m.gguf").symlink_to(gguf)
    asked = resolver(config(tmp_path, pool=[OLLAMA]))
    with pytest.raises(RouterError, match="model 'other' not found") as refused:
        await asked.decide("other")
    assert refused.value.hint == "there are: big:13b, m"
    assert refused.value.status == 404
    assert asked.last == []


async def test_last_decisions_are_kept_with_their_figures(tmp_path: Path, gguf: Path) -> None:
    (tmp_path / "m.gguf").symlink_to(gguf)
    rules = [{"pattern": "m*", "route": "coordinator"}]
    asked = resolver(config(tmp_path, routes=rules))
    for _ in range(300):
        await asked.decide("m")
    await asked.decide("m", record=False)
    assert len(asked.last) == 200
    last = asked.last[-1]
    assert (last["model"], last["route"], last["reason"]) == (
        "m",
        "coordinator",
        "the rule 'm*' sends it there",
    )
    assert last["need_bytes"] > last["file_bytes"] > 0
    assert last["backends_fit"] is True


def test_catalogue_lists_ollamas_models_by_their_short_names(
    tmp_path: Path, storage: Path, gguf: Path
) -> None:
    (tmp_path / "m.gguf").symlink_to(gguf)
    catalogue = Catalogue(tmp_path, storage)
    assert [file.name for file in catalogue.files()] == ["m", "big:13b", "user/story:latest"]
    for name in ("big:13b", "user/story", "user/story:latest"):
        file = catalogue.find(name)
        assert file
        assert file.path.parent == storage / "blobs"
    assert catalogue.find("big") is None


SAME = ["user/story", "user/story:latest", "User/Story", "registry.ollama.ai/user/story:latest"]


@pytest.mark.parametrize("name", SAME)
async def test_every_spelling_of_an_ollama_model_is_one_model_to_the_coordinator(
    tmp_path: Path, storage: Path, name: str
) -> None:
    chosen = await resolver(config(tmp_path, storage)).decide(name)
    assert (chosen.route, chosen.model) == (Route.COORDINATOR, "user/story:latest")


@pytest.mark.parametrize("pattern", ["user/story", "user/story:latest", "user/*:latest"])
@pytest.mark.parametrize("name", ["user/story", "user/story:latest"])
async def test_rule_holds_for_a_model_with_and_without_latest(
    tmp_path: Path, storage: Path, pattern: str, name: str
) -> None:
    rules = [{"pattern": pattern, "route": "coordinator"}]
    pool = [OLLAMA | {"models": ["user/story"]}]
    chosen = await resolver(config(tmp_path, storage, pool=pool, routes=rules)).decide(name)
    assert chosen.reason == f"the rule '{pattern}' sends it there"


async def test_model_that_storage_and_pool_spell_differently_is_listed_once(
    tmp_path: Path, storage: Path
) -> None:
    pool = [OLLAMA | {"models": ["User/story", "other"]}]
    asked = resolver(config(tmp_path, storage, pool=pool))
    assert await asked.models() == ["big:13b", "other", "user/story:latest"]


async def test_plan_and_load_may_spell_a_model_differently(tmp_path: Path, storage: Path) -> None:
    settings = config(tmp_path, storage)
    asked = planner(settings, Catalogue(tmp_path, storage))
    first = await asked.prepare(LoadRequest(model="user/story"))
    again = await asked.prepare(LoadRequest(model="USER/story:latest", plan=first.plan))
    given = first.plan.model_copy(update={"model": "user/story"})
    third = await asked.prepare(LoadRequest(model="user/story:latest", plan=given))
    assert first.argv == again.argv == third.argv


async def test_model_whose_blob_is_cut_is_the_models_fault(tmp_path: Path, storage: Path) -> None:
    for blob in (storage / "blobs").iterdir():
        blob.write_bytes(b"GGUF")
    with pytest.raises(RouterError, match="pull it again") as refused:
        await planner(config(tmp_path, storage), Catalogue(tmp_path, storage)).prepare(
            LoadRequest(model="big:13b")
        )
    assert (refused.value.status, refused.value.error_class) == (422, "model_invalid")


@pytest.mark.parametrize("name", ["a/../../x:y", "../x", "x:..", "/etc/passwd", "a//b", ""])
def test_name_cannot_lead_out_of_ollamas_storage(tmp_path: Path, storage: Path, name: str) -> None:
    assert Catalogue(tmp_path, storage).find(name) is None


def test_plan_of_an_ollama_model_carries_its_name_not_its_digest(tmp_path: Path, storage: Path) -> None:
    settings = config(tmp_path, storage)
    catalogue = Catalogue(tmp_path, storage)
    file = catalogue.find("big:13b")
    assert file
    plan = planner(settings, catalogue).plan(LoadRequest(model="big:13b"), catalogue.header(file), {})
    assert plan.model == "big:13b"
    assert plan.model_path == str(file.path)


async def test_route_is_made_anew_once_it_is_a_second_old(
    tmp_path: Path, gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr("harness.router.routing.resolver.time.monotonic", lambda: now)
    link = tmp_path / "m.gguf"
    link.symlink_to(gguf)
    ours = resolver(config(tmp_path))
    await ours.decide("m")
    link.unlink()
    assert (await ours.decide("m")).route is Route.COORDINATOR
    assert [entry["model"] for entry in ours.last] == ["m", "m"]
    assert ours.last[0]["time_ns"] < ours.last[1]["time_ns"]
    now += 1.5
    with pytest.raises(RouterError, match="not found"):
        await ours.decide("m")


async def test_refusal_is_never_kept(tmp_path: Path, gguf: Path) -> None:
    ours = resolver(config(tmp_path))
    with pytest.raises(RouterError, match="not found"):
        await ours.decide("m")
    (tmp_path / "m.gguf").symlink_to(gguf)
    assert (await ours.decide("m")).route is Route.COORDINATOR


async def test_what_the_coordinator_has_loaded_is_answered_there_from_the_same_moment(
    tmp_path: Path, storage: Path
) -> None:
    there: list[str] = []
    settings = config(tmp_path, storage, pool=[OLLAMA | {"memory_bytes": 3 * GIB}])
    ours = resolver(settings, lambda: there[0] if there else None)
    assert (await ours.decide("big:13b")).route is Route.POOL
    there.append("big:13b")
    chosen = await ours.decide("big:13b")
    assert (chosen.route, chosen.reason) == (Route.COORDINATOR, "the coordinator has it loaded")
    there.clear()
    assert (await ours.decide("big:13b")).route is Route.POOL
    ruled = settings.model_copy(update={"routes": [RouteRule(pattern="big*", route=Route.POOL)]})
    assert (await resolver(ruled, lambda: "big:13b").decide("big:13b")).route is Route.POOL, (
        "rules come first"
    )


class CountedCatalogue(Catalogue):
    """Notes the thread of each walk over the disk."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.walks: list[int] = []

    def files(self) -> list[ModelFile]:
        self.walks.append(threading.get_ident())
        return super().files()


async def test_unknown_models_share_one_walk_over_the_disk_and_stall_nobody(
    tmp_path: Path, gguf: Path
) -> None:
    (tmp_path / "m.gguf").symlink_to(gguf)
    settings, catalogue = config(tmp_path), CountedCatalogue(tmp_path)
    ours = RouteResolver(
        settings, catalogue, Pool([]), NodeSamples(None), planner(settings, catalogue), lambda: None
    )
    refusals = await asyncio.gather(*(ours.decide(f"x{n}") for n in range(20)), return_exceptions=True)
    assert {error.hint for error in refusals if isinstance(error, RouterError)} == {"there are: m"}
    assert len(catalogue.walks) == 1
    assert threading.get_ident() not in catalogue.walks


async def test_spellings_of_a_name_do_not_fill_the_memory(tmp_path: Path, storage: Path) -> None:
    ours = resolver(config(tmp_path, storage))
    letters = ((letter.lower(), letter.upper()) for letter in "userstory")
    for spelling in itertools.islice(itertools.product(*letters), 400):
        name = "".join(spelling)
        assert (await ours.decide(f"{name[:4]}/{name[4:]}")).model == "user/story:latest"
    assert len(ours._routes) <= 256


async def test_file_that_is_being_copied_leaves_one_header_in_memory(tmp_path: Path, gguf: Path) -> None:
    copy = tmp_path / "m.gguf"
    copy.symlink_to(gguf)
    ours = resolver(config(tmp_path))
    for second in range(5):
        os.utime(copy, (second, second))
        await ours.facts("m")
    gc.collect()
    headers = [one for one in gc.get_objects() if isinstance(one, GgufModel) and one.path == copy]
    assert len(headers) == 1


async def test_drain_and_undrain_decide_anew_at_once(tmp_path: Path, gguf: Path) -> None:
    (tmp_path / "m.gguf").symlink_to(gguf)
    resolve = resolver(config(tmp_path))
    drained = resolve.planner.drained = DrainedNodes([backend.node for backend in resolve.config.backends])
    assert (await resolve.decide("m")).route is Route.COORDINATOR
    drained.add(*(backend.node for backend in resolve.config.backends))
    with pytest.raises(RouterError, match="every backend is drained") as refused:
        await resolve.decide("m")
    assert refused.value.status == 503
    drained.remove(*(backend.node for backend in resolve.config.backends))
    assert (await resolve.decide("m")).route is Route.COORDINATOR
