"""What a lab is to be, as the role describes it."""

import json

import pytest
from harness.errors import HarnessError
from harness.lab.spec import LabSpec, MachineSpec, parse_spec, veth_name
from pydantic import ValidationError


def lab(**changes: object) -> dict[str, object]:
    machine = {"name": "node1", "address": "10.0.0.11", "memory": "1G"}
    return {"name": "t", "network": "10.0.0.0/24", "cache": "/cache", "machines": [machine], **changes}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "Lab One"}, "name"),
        ({"network": "10.0.0.0/33"}, "network"),
        ({"swap": "lots"}, "swap: "),
        ({"surprise": 1}, "surprise"),
        ({"machines": [{"name": "n", "address": "10.9.0.1", "memory": "1G"}]}, "outside 10.0.0.0/24"),
        ({"machines": [{"name": "n", "address": "10.0.0.1", "memory": "1G"}]}, "computer's own"),
        (
            {"machines": [{"name": "n", "address": "10.0.0.2", "memory": "1G", "rate": "fast"}]},
            "machines.0.rate",
        ),
    ],
)
def test_a_wrong_description_is_refused_in_one_line_that_names_the_fault(
    changes: dict[str, object], message: str
) -> None:
    with pytest.raises(HarnessError) as refusal:
        parse_spec(json.dumps(lab(**changes)))
    assert message in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_description_survives_being_written_down() -> None:
    spec = parse_spec(json.dumps(lab()))
    assert parse_spec(spec.model_dump_json()) == spec


def test_unknown_machine_is_named() -> None:
    with pytest.raises(HarnessError, match="lab t has no machine 'nobody'"):
        parse_spec(json.dumps(lab())).machine("nobody")


def test_two_machines_never_share_a_cable_and_the_kernel_takes_its_name() -> None:
    nodes = ["node1", "node2", "a-rather-long-name-1", "a-rather-long-name-2"]
    names = [veth_name("tenletters", node) for node in nodes] + [veth_name("t", node) for node in nodes]
    assert len(set(names)) == len(names)
    assert all(len(name) <= 15 for name in names)
    assert veth_name("t2", "node1") == "t2-node1"


def test_machines_do_not_share_an_address() -> None:
    two = [MachineSpec(name=n, address="10.0.0.5", memory="1G") for n in ("a", "b")]  # type: ignore[arg-type]
    with pytest.raises(ValidationError, match="taken twice"):
        LabSpec(name="t", network="10.0.0.0/24", cache="/c", machines=two)  # type: ignore[arg-type]
