"""What an agent tells the keeper, which holds copies of the slots' listening sockets, and what it answers."""

from __future__ import annotations

import msgspec

from cortex.ids import ReplicaId


class HoldSocket(msgspec.Struct, frozen=True, kw_only=True, tag="hold"):
    """Keep this slot's listening socket: one descriptor comes with it. Replaces an earlier one."""

    replica: ReplicaId


class Release(msgspec.Struct, frozen=True, kw_only=True, tag="release"):
    """Close the kept copy."""

    replica: ReplicaId


class Slots(msgspec.Struct, frozen=True, kw_only=True, tag="slots"):
    """Hand back a copy of each: answered by `SlotHeld` messages, then `SlotsEnd`."""


class Quit(msgspec.Struct, frozen=True, kw_only=True, tag="quit"):
    """The node goes down: let everything go and end."""


KeeperRequest = HoldSocket | Release | Slots | Quit


class SlotHeld(msgspec.Struct, frozen=True, kw_only=True, tag="slot_held"):
    """Comes with one descriptor."""

    replica: ReplicaId


class SlotsEnd(msgspec.Struct, frozen=True, kw_only=True, tag="slots_end"):
    pass


KeeperReply = SlotHeld | SlotsEnd
