"""Numbers of virtio 1.3: feature bits, status bits, ring flags, ring layout."""

from __future__ import annotations

from typing import Final, NamedTuple

SPEC: Final = "virtio 1.3 section "
"""Prefix of every citation."""


class FeatureRow(NamedTuple):
    """One reserved feature bit (section 6): its number, name, and whether our rings and devices offer it."""

    bit: int
    name: str
    offered: bool


FEATURE_ROWS: Final = (
    FeatureRow(24, "NOTIFY_ON_EMPTY", False),
    FeatureRow(26, "LOG_ALL", False),
    FeatureRow(27, "ANY_LAYOUT", False),
    FeatureRow(28, "INDIRECT_DESC", True),
    FeatureRow(29, "EVENT_IDX", True),
    FeatureRow(30, "PROTOCOL_FEATURES", False),
    FeatureRow(32, "VERSION_1", True),
    FeatureRow(33, "ACCESS_PLATFORM", False),
    FeatureRow(34, "RING_PACKED", True),
    FeatureRow(35, "IN_ORDER", True),
    FeatureRow(36, "ORDER_PLATFORM", False),
    FeatureRow(37, "SR_IOV", False),
    FeatureRow(38, "NOTIFICATION_DATA", True),
    FeatureRow(39, "NOTIF_CONFIG_DATA", False),
    FeatureRow(40, "RING_RESET", True),
    FeatureRow(41, "ADMIN_VQ", False),
    FeatureRow(43, "SUSPEND", False),
)

F_NOTIFY_ON_EMPTY: Final = 1 << 24
F_LOG_ALL: Final = 1 << 26
F_ANY_LAYOUT: Final = 1 << 27
F_INDIRECT_DESC: Final = 1 << 28
F_EVENT_IDX: Final = 1 << 29
F_PROTOCOL_FEATURES: Final = 1 << 30
F_VERSION_1: Final = 1 << 32
F_ACCESS_PLATFORM: Final = 1 << 33
F_RING_PACKED: Final = 1 << 34
F_IN_ORDER: Final = 1 << 35
F_ORDER_PLATFORM: Final = 1 << 36
F_SR_IOV: Final = 1 << 37
F_NOTIFICATION_DATA: Final = 1 << 38
F_NOTIF_CONFIG_DATA: Final = 1 << 39
F_RING_RESET: Final = 1 << 40
F_ADMIN_VQ: Final = 1 << 41
F_SUSPEND: Final = 1 << 43

RING_FEATURES: Final = sum(1 << row.bit for row in FEATURE_ROWS if row.offered)
"""Everything that the rings of this package implement, VERSION_1 included."""

DEVICE_FEATURE_BITS: Final = 0xFF_FFFF | ((1 << 64) - (1 << 50))
"""Bits that belong to the device type (0 to 23, 50 and up; section 2.2)."""

STATUS_ACKNOWLEDGE: Final = 1
STATUS_DRIVER: Final = 2
STATUS_DRIVER_OK: Final = 4
STATUS_FEATURES_OK: Final = 8
STATUS_SUSPEND: Final = 16
STATUS_DEVICE_NEEDS_RESET: Final = 64
STATUS_FAILED: Final = 128

STATUS_NAMES: Final = {
    STATUS_ACKNOWLEDGE: "ACKNOWLEDGE",
    STATUS_DRIVER: "DRIVER",
    STATUS_DRIVER_OK: "DRIVER_OK",
    STATUS_FEATURES_OK: "FEATURES_OK",
    STATUS_SUSPEND: "SUSPEND",
    STATUS_DEVICE_NEEDS_RESET: "DEVICE_NEEDS_RESET",
    STATUS_FAILED: "FAILED",
}

DESC_BYTES: Final = 16
DESC_F_NEXT: Final = 1
DESC_F_WRITE: Final = 2
DESC_F_INDIRECT: Final = 4
DESC_F_AVAIL: Final = 1 << 7
DESC_F_USED: Final = 1 << 15

AVAIL_F_NO_INTERRUPT: Final = 1
USED_F_NO_NOTIFY: Final = 1

RING_EVENT_FLAGS_ENABLE: Final = 0
RING_EVENT_FLAGS_DISABLE: Final = 1
RING_EVENT_FLAGS_DESC: Final = 2

ISR_USED_BUFFER: Final = 1
ISR_CONFIG_CHANGE: Final = 2

DEVICE_ID_FS: Final = 26


def feature_names(features: int) -> list[str]:
    """The names of the reserved feature bits in ``features``; bits without a row appear as ``bit N``."""
    names = {row.bit: row.name for row in FEATURE_ROWS}
    return [names.get(bit, f"bit {bit}") for bit in range(features.bit_length()) if features >> bit & 1]


def status_names(status: int) -> list[str]:
    """The names of the bits set in a device status (section 2.1)."""
    return [name for bit, name in STATUS_NAMES.items() if status & bit]


class NotificationData(NamedTuple):
    """What an available buffer notification says (section 2.9): queue, next offset, next wrap counter.

    For a split ring ``next_off`` has 16 bits and ``next_wrap`` is its highest bit.
    """

    queue: int
    next_off: int
    next_wrap: int


def parse_notification(value: int, features: int) -> NotificationData:
    """Take the 32-bit value of a notification apart, as the negotiated ``features`` say."""
    queue = value & 0xFFFF
    if not features & F_NOTIFICATION_DATA:
        return NotificationData(queue, 0, 0)
    high = value >> 16 & 0xFFFF
    if features & F_RING_PACKED:
        return NotificationData(queue, high & 0x7FFF, high >> 15)
    return NotificationData(queue, high, high >> 15)
