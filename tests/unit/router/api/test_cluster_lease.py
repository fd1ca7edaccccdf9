"""One run at a time has the cluster, and a dead one not for long."""

import pytest
from harness.router.api.cluster_lease import RunLease
from harness.router.errors import RouterError


def test_second_run_is_told_who_has_the_cluster_until_the_first_gives_it_back() -> None:
    lease = RunLease()
    lease.take("one", 30)
    lease.take("one", 30)
    with pytest.raises(RouterError, match="run one has this cluster") as refused:
        lease.take("two", 30)
    assert (refused.value.status, refused.value.error_class) == (409, "leased")
    lease.give("two")
    with pytest.raises(RouterError):
        lease.take("two", 30)
    lease.give("one")
    lease.take("two", 30)


def test_lease_that_is_not_renewed_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("harness.router.api.cluster_lease.time.monotonic", lambda: now)
    lease = RunLease()
    lease.take("one", 30)
    now += 29
    with pytest.raises(RouterError, match=r"for 29 s now.*ends in 1 s"):
        lease.take("two", 30)
    now += 2
    lease.take("two", 30)
