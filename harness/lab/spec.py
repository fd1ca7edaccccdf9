"""The description of a lab: its name, network and machines, and where each part of it is."""

import hashlib
from collections.abc import Mapping
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from harness.common.text import first_error, parse_size
from harness.errors import HarnessError

LABS = Path("/var/lib/llama-harness/labs")
_INTERFACE_NAME_MAX = 15


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
    suite: str = Field(default="", pattern=r"^[a-z]*$")
    """Debian release of the machine (``trixie``); empty is the release of this computer."""
    user: str = Field(default="root", pattern=r"^(root|admin)$")
    """Who may log in: root, or ``admin``, who is not root and may use sudo without a password."""
    data_address: IPv4Address | None = None
    """A second address in the lab's network; SSH goes to ``address``."""
    address_delay_s: float = Field(default=0, ge=0, le=600)
    """Seconds after a boot until the machine has its addresses, as behind a slow switch."""

    @property
    def addresses(self) -> list[IPv4Address]:
        """All addresses of the machine; the first is for SSH."""
        return [self.address, *([self.data_address] if self.data_address else [])]


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
        taken = {self.gateway}
        for machine in self.machines:
            for address in machine.addresses:
                if address not in self.network or address in taken:
                    raise ValueError(
                        f"{machine.name}: address {address} is outside {self.network}, taken twice, "
                        f"or the computer's own ({self.gateway})"
                    )
                taken.add(address)
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
        """nftables table (family inet) that closes the lab's network."""
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
    def missing(self) -> list[MachineSpec]:
        """Machines whose own files are not there, or not whole."""
        existing = self.folder / "machines"
        return [
            machine for machine in self.machines if not (existing / machine.name / "machine.json").exists()
        ]

    def machine(self, name: str) -> MachineSpec:
        """The machine called ``name``; a HarnessError where there is none."""
        for machine in self.machines:
            if machine.name == name:
                return machine
        raise HarnessError(f"lab {self.name} has no machine '{name}'")


def lab_folder(variables: Mapping[str, Any]) -> Path:
    """Folder of a node's lab, by its variables in the inventory or else the role's defaults."""
    return Path(str(variables.get("lab_node_root", LABS))) / str(variables.get("lab_node_lab", "lab"))


def veth_name(lab: str, node: str) -> str:
    """Name of the computer's end of a machine's cable, within the kernel's 15 characters."""
    if len(f"{lab}-{node}") <= _INTERFACE_NAME_MAX:
        return f"{lab}-{node}"
    return f"{lab}-{hashlib.sha256(node.encode()).hexdigest()}"[:_INTERFACE_NAME_MAX]


def parse_spec(text: str) -> LabSpec:
    """Read a LabSpec from JSON.

    Raises:
        HarnessError: it is not one; the first fault is named.
    """
    try:
        return LabSpec.model_validate_json(text)
    except ValidationError as error:
        raise HarnessError(f"lab description, {first_error(error, root='lab')}") from None
