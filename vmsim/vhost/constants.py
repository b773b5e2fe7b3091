"""Numbers of the vhost-user protocol that are not message ids."""

from __future__ import annotations

from typing import Final

VERSION: Final = 0x1
"""Flags bits 0-1: the protocol version."""
FLAG_VERSION_MASK: Final = 0x3
FLAG_REPLY: Final = 0x4
FLAG_NEED_REPLY: Final = 0x8
REPLY_FLAGS: Final = VERSION | FLAG_REPLY
"""What QEMU demands of every reply, to the bit."""

HEADER_BYTES: Final = 12
PAYLOAD_MAX: Final = 0x1000 - HEADER_BYTES
"""Bytes of a payload: rust-vmm takes messages of up to 0x1000 bytes."""
MESSAGE_FDS_MAX: Final = 32
"""Descriptors of one front-end message (rust-vmm); the back-end channel takes 8."""

VHOST_F_LOG_ALL: Final = 1 << 26
"""Feature bit: log every write to guest memory."""
VHOST_USER_F_PROTOCOL_FEATURES: Final = 1 << 30
"""Feature bit: GET/SET_PROTOCOL_FEATURES exist, rings start disabled."""
TRANSPORT_FEATURES: Final = VHOST_F_LOG_ALL | VHOST_USER_F_PROTOCOL_FEATURES
"""Bits of the feature word that belong to vhost and are hidden from the driver."""

VHOST_VRING_F_LOG: Final = 1
"""Ring address flag: log writes to the used ring."""
NO_FD: Final = 1 << 8
"""SET_VRING_KICK/CALL/ERR and SET_DEVICE_STATE_FD reply: no descriptor is attached."""
VRING_INDEX_MASK: Final = 0xFF

STATE_SAVE: Final = 0
STATE_LOAD: Final = 1
PHASE_STOPPED: Final = 0

LOG_PAGE: Final = 4096
"""Guest bytes per bit of the dirty log."""

F_MQ: Final = 0
F_LOG_SHMFD: Final = 1
F_RARP: Final = 2
F_REPLY_ACK: Final = 3
F_NET_MTU: Final = 4
F_BACKEND_REQ: Final = 5
F_CROSS_ENDIAN: Final = 6
F_CRYPTO_SESSION: Final = 7
F_PAGEFAULT: Final = 8
F_CONFIG: Final = 9
F_BACKEND_SEND_FD: Final = 10
F_HOST_NOTIFIER: Final = 11
F_INFLIGHT_SHMFD: Final = 12
F_RESET_DEVICE: Final = 13
F_INBAND_NOTIFICATIONS: Final = 14
F_CONFIGURE_MEM_SLOTS: Final = 15
F_STATUS: Final = 16
F_XEN_MMAP: Final = 17
F_SHARED_OBJECT: Final = 18
F_DEVICE_STATE: Final = 19
F_GET_VRING_BASE_INFLIGHT: Final = 20
F_GPA_ADDRESSES: Final = 21
F_SHMEM: Final = 22

PROTOCOL_FEATURES: Final[dict[int, str]] = {
    value: name.removeprefix("F_")
    for name, value in dict(vars()).items()
    if name.startswith("F_") and isinstance(value, int)
}
"""Bit number to name, for printing."""


def protocol_bits(*bits: int) -> int:
    """The protocol feature word with those bits set."""
    word = 0
    for bit in bits:
        word |= 1 << bit
    return word


def describe_features(word: int) -> str:
    """The protocol features of a word by name."""
    names = [PROTOCOL_FEATURES.get(bit, f"bit {bit}") for bit in range(word.bit_length()) if word >> bit & 1]
    return ", ".join(names) or "none"
