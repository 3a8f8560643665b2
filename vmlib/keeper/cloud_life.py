"""What the order of Cloud Hypervisor's events means, together with the words of its log. Pure."""

from typing import Literal

from vmlib.keeper.cloud_events import CloudEvent
from vmlib.keeper.cloud_log import LogWords

Kind = Literal["booting", "booted", "paused", "resumed", "rebooting", "rebooted", "panic", "shutdown"]

_OF_THE_VM: dict[str, Kind] = {
    "booting": "booting",
    "booted": "booted",
    "paused": "paused",
    "resumed": "resumed",
    "rebooting": "rebooting",
    "rebooted": "rebooted",
    "shutdown": "shutdown",
}


class Life:
    """Takes the events one by one. `orderly` holds while the guest has given back its devices and uses none."""

    def __init__(self) -> None:
        self.orderly = False
        self.shut_down = False

    def take(self, event: CloudEvent) -> Kind | None:
        """What it means; None when that is nothing by itself."""
        match event.source, event.event:
            case "virtio-device", "reset":
                self.orderly = True
            case "virtio-device", "activated":
                self.orderly = False  # firmware resets its devices too, when it hands over to the kernel
            case "guest", "panic":
                # `crash_loaded`: the guest is about to write its own dump, and then comes to an end by itself.
                return None if event.properties.get("event") == "crash_loaded" else "panic"
            case "vmm", "shutdown":  # without a machine that is all it says
                self.shut_down = True
                return "shutdown"
            case "vm", name if name in _OF_THE_VM:
                kind = _OF_THE_VM[name]
                if kind in ("booting", "rebooting"):
                    self.orderly = self.shut_down = False
                self.shut_down = self.shut_down or kind == "shutdown"
                return kind
        return None


def shutdown_reason(life: Life, words: LogWords) -> str | None:
    """Why the VMM shut down, in the words that the verdict knows; None when it did not."""
    # A monitor whose reader is behind loses events, and the last ones are lost when the program ends before its monitor
    # has written them [run v53.0]. The log loses nothing.
    if words.guest_exit:
        return "guest-shutdown"
    if not (life.shut_down or words.api_exit or (words.other_exit and words.tells_guest_exit)):
        return None
    if words.why_exit:
        return "vmm-error"
    if life.orderly and not words.api_exit and not (words.other_exit and words.tells_guest_exit):
        return "guest-shutdown"
    if words.other_exit:
        return "host-signal"
    return "host-api" if words.api_exit else "sudden"
