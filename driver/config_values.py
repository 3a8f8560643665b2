"""Values that both blocks have: sizes, addresses of devices. Complaints name the key."""

import os

from driver.decode import Complaints
from vmlib.units import parse_size
from vmlib.vfio import PCI_ADDRESS


def with_fake() -> bool:
    """Whether jobs may name the fake hypervisor: only where our tests say so."""
    return os.environ.get("CHV_ENABLE_FAKE") == "1"


def size_bytes(complaints: Complaints, key: str, text: str) -> int:
    try:
        found = parse_size(text)
    except ValueError as exc:
        complaints.add(key, str(exc), value=text)
        return 1
    if found == 0:
        complaints.add(key, "expected more than nothing", value=text)
    return found


def pci_addresses(complaints: Complaints, key: str, texts: tuple[str, ...]) -> tuple[str, ...]:
    for index, text in enumerate(texts):
        if not PCI_ADDRESS.fullmatch(text):
            complaints.add(f"{key}[{index}]", "expected a PCI address, as 0000:65:00.0", value=text)
        elif text in texts[:index]:
            complaints.add(f"{key}[{index}]", f"the same as {key}[{texts.index(text)}]", value=text)
    return texts
