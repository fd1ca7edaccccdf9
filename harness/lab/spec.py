"""What a lab is to be: its name, its network, its machines, and where each part of it lives."""

import hashlib
import re
from collections.abc import Mapping
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from harness.errors import HarnessError

LABS = Path("/var/lib/llama-harness/labs")
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_INTERFACE_NAME_MAX = 15


def parse_size(value: Any) -> int:
    """Bytes in ``5.6G``, ``512M`` or a plain number (binary units)."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:iB|B)?", str(value).strip(), re.IGNORECASE)
    if not found:
        raise ValueError(f"'{value}' is not a size such as 512M or 5.6G")
    return int(float(found[1]) * _UNITS[found[2].upper()])


Size = Annotated[int, BeforeValidator(parse_size)]
Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]{0,20}$")]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class MachineSpec(_Strict):
    """One machine of the lab."""

    name: Name
    address: IPv4Address
    memory: Size
    """Limit of the machine's memory cgroup, in bytes."""
    cpu: float = Field(default=0, ge=0)
    """Cores' worth of time it may use; 0 is no limit."""
    rate: str = Field(default="", pattern=r"^(\d+(\.\d+)?[kmg]bit)?$")
    """Link rate in both directions, as tc writes it (``1gbit``); empty is not shaped."""


class LabSpec(_Strict):
    """The whole lab."""

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9]{0,9}$")]
    network: IPv4Network
    root: Path = LABS
    cache: Path
    swap: Size = 0
    machine_disk: Size = 0
    """What one machine is expected to write, for the check of free space."""
    models_disk: Size = 0
    """Models that are yet to be written to the cache, for the same check."""
    models_memory: Size = 0
    """What the largest model holds once it is loaded over the machines, for the check of memory."""
    packages: list[str] = []
    roles: Path | None = None
    """Folder of the roles whose ``<role>_packages`` the image carries too."""
    host_packages: dict[str, str] = {}
    """Debian package that brings each tool this computer needs."""
    machines: list[MachineSpec] = []

    @model_validator(mode="after")
    def _addresses_fit(self) -> "LabSpec":
        seen = {self.gateway}
        for machine in self.machines:
            if machine.address not in self.network or machine.address in seen:
                raise ValueError(
                    f"{machine.name}: address {machine.address} is outside {self.network}, taken twice, "
                    f"or the computer's own ({self.gateway})"
                )
            seen.add(machine.address)
        return self

    @property
    def gateway(self) -> IPv4Address:
        """This computer's own address in the lab's network."""
        return self.network[1]

    @property
    def folder(self) -> Path:
        """Everything that ``down`` removes."""
        return self.root / self.name

    @property
    def record(self) -> Path:
        """The file that marks the lab's names as taken by it."""
        return self.folder / "lab.json"

    @property
    def bridge(self) -> str:
        return f"llh-{self.name}"

    @property
    def table(self) -> str:
        """nftables table (family inet) that keeps the lab's network to itself."""
        return f"llama_lab_{self.name}"

    @property
    def swap_file(self) -> Path:
        return self.folder / "swap"

    @property
    def group(self) -> Path:
        """The lab's cgroup, below the mount point of each hierarchy."""
        return Path("llama-lab") / self.name

    @property
    def models(self) -> Path:
        return self.cache / "models"

    @property
    def images(self) -> Path:
        return self.cache / "images"

    @property
    def unmade(self) -> list[MachineSpec]:
        """Machines whose own files are not there, or not whole."""
        made = self.folder / "machines"
        return [machine for machine in self.machines if not (made / machine.name / "machine.json").exists()]

    def machine(self, name: str) -> MachineSpec:
        """The machine called ``name``.

        Raises:
            HarnessError: there is none.
        """
        for machine in self.machines:
            if machine.name == name:
                return machine
        raise HarnessError(f"lab {self.name} has no machine '{name}'")


def lab_folder(variables: Mapping[str, Any]) -> Path:
    """Where the lab of a node stands, by its variables in the inventory or else the role's defaults."""
    return Path(str(variables.get("lab_node_root", LABS))) / str(variables.get("lab_node_lab", "lab"))


def veth_name(lab: str, node: str) -> str:
    """Name of the computer's end of a machine's cable, within the kernel's 15 characters."""
    plain = f"{lab}-{node}"
    if len(plain) <= _INTERFACE_NAME_MAX:
        return plain
    digest = hashlib.sha256(node.encode()).hexdigest()
    return f"{lab}-{digest}"[:_INTERFACE_NAME_MAX]


def parse_spec(text: str) -> LabSpec:
    """Read a LabSpec from JSON.

    Raises:
        HarnessError: it is not one; the first fault is named.
    """
    try:
        return LabSpec.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "lab"
        raise HarnessError(f"lab description, {where}: {first['msg']}") from None
