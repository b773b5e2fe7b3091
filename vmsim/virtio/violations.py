"""Every way to break a virtqueue, one row each: the section it violates, the message, who tolerates it.

A ``lenient`` row is something that the specification forbids to drivers and that peers (QEMU, virtiofsd)
nevertheless accept; the ring's policy decides.
"""

from __future__ import annotations

from typing import ClassVar, Final, NamedTuple

from vmsim.errors import Blame, RingViolation
from vmsim.virtio.constants import SPEC


class DeviceRingViolation(RingViolation):
    """The device wrote something into a ring that no device may write; found by the driver side."""

    blame: ClassVar[Blame] = Blame.PEER


class Row(NamedTuple):
    """One violation: section of virtio 1.3, text with named fields, whether peers accept it, whose it is."""

    section: str
    text: str
    lenient: bool = False
    device: bool = False


ROWS: Final[dict[str, Row]] = {
    "split.size": Row("2.7", "split queue size {size} is not a power of 2 up to 32768"),
    "split.align": Row("2.7.1", "{part} at {gpa:#x} is not aligned to {align} bytes"),
    "split.memory": Row("2.7", "{part} at {gpa:#x} + {size_bytes:#x} is outside guest memory"),
    "split.avail_jump": Row(
        "2.7.6.1", "avail.idx {idx} is {pending} ahead of the device's {next_avail} in a queue of {size}"
    ),
    "split.head_range": Row("2.7.6", "available head {head} in a queue of {size}"),
    "split.head_in_flight": Row("2.7.13.1", "head {head} was made available again while in flight"),
    "split.next_range": Row(
        "2.7.5", "descriptor {index} of head {head} has next {next} in a queue of {size}"
    ),
    "split.chain_long": Row("2.7.5.2", "the chain of head {head} has more than {limit} descriptors or loops"),
    "split.chain_bytes": Row("2.7.5.2", "the chain of head {head} has {total:#x} bytes, more than 2**32"),
    "split.address": Row(
        "2.7.5", "a buffer of head {head} at {gpa:#x} + {size_bytes:#x} is outside guest memory"
    ),
    "split.zero_length": Row("2.7.4", "a descriptor of head {head} has length 0", lenient=True),
    "split.write_order": Row(
        "2.7.4.2", "head {head} has a readable descriptor after a writable", lenient=True
    ),
    "split.in_order_next": Row(
        "2.7.5.2", "IN_ORDER: descriptor {index} of head {head} has next {next}", lenient=True
    ),
    "split.indirect_feature": Row(
        "2.7.5.3.1", "head {head} uses INDIRECT, which was not negotiated", lenient=True
    ),
    "split.indirect_next": Row("2.7.5.3.1", "a descriptor of head {head} has both INDIRECT and NEXT"),
    "split.indirect_nested": Row("2.7.5.3.1", "the indirect table of head {head} contains INDIRECT"),
    "split.indirect_length": Row(
        "2.7.5.3", "the indirect table of head {head} has {size_bytes} bytes, not 1 to 32768 descriptors"
    ),
    "split.indirect_memory": Row(
        "2.7.5.3", "the indirect table of head {head} at {gpa:#x} + {size_bytes:#x} is outside guest memory"
    ),
    "split.indirect_range": Row(
        "2.7.5.3", "descriptor {index} of the indirect table of head {head} has next {next} of {size}"
    ),
    "split.indirect_in_order": Row(
        "2.7.5.3.1", "IN_ORDER: descriptor {index} of the table of head {head} has next {next}", lenient=True
    ),
    "split.used_jump": Row(
        "2.7.8",
        "used.idx {idx} is {pending} ahead of the driver's {next_used}; {outstanding} are outstanding",
        device=True,
    ),
    "split.used_id": Row("2.7.8", "used element with id {id}, which is not outstanding", device=True),
    "split.used_length": Row(
        "2.7.8.2", "used length {written} for id {id}, which has {capacity} writable bytes", device=True
    ),
    "packed.size": Row("2.8.10.1", "packed queue size {size} is not 1 to 32768"),
    "packed.align": Row("2.8.11", "{part} at {gpa:#x} is not aligned to {align} bytes"),
    "packed.memory": Row("2.8.10.1", "{part} at {gpa:#x} + {size_bytes:#x} is outside guest memory"),
    "packed.id_in_flight": Row("2.8.21.1", "buffer id {head} was made available again while in flight"),
    "packed.overrun": Row(
        "2.8.16",
        "{count} descriptors of buffer {head} overwrite ones that are not used yet (queue of {size})",
    ),
    "packed.chain_long": Row("2.8.17", "the list at slot {slot} has more than {limit} descriptors"),
    "packed.chain_bytes": Row("2.8.17", "the list of buffer {head} has {total:#x} bytes, more than 2**32"),
    "packed.unavailable": Row(
        "2.8.17", "descriptor {index} of the list at slot {slot} is not available", lenient=True
    ),
    "packed.address": Row(
        "2.8.4", "an element of buffer {head} at {gpa:#x} + {size_bytes:#x} is outside guest memory"
    ),
    "packed.zero_length": Row("2.8.4", "an element of buffer {head} has length 0", lenient=True),
    "packed.write_order": Row(
        "2.8.17", "buffer {head} has a readable element after a writable", lenient=True
    ),
    "packed.indirect_feature": Row(
        "2.8.19", "slot {slot} uses INDIRECT, which was not negotiated", lenient=True
    ),
    "packed.indirect_mixed": Row("2.8.19", "the list at slot {slot} mixes INDIRECT and NEXT"),
    "packed.indirect_length": Row(
        "2.8.7", "the indirect table of buffer {head} has {size_bytes} bytes, not 1 to 32768 descriptors"
    ),
    "packed.indirect_memory": Row(
        "2.8.7", "the indirect table of buffer {head} at {gpa:#x} + {size_bytes:#x} is outside guest memory"
    ),
    "packed.used_id": Row("2.8.6", "used descriptor with id {id}, which is not outstanding", device=True),
    "packed.used_length": Row(
        "2.8.4", "used length {written} for id {id}, which has {capacity} writable bytes", device=True
    ),
}


def violation(key: str, **details: object) -> RingViolation:
    """The error of row ``key``, its details filled in."""
    row = ROWS[key]
    kind = DeviceRingViolation if row.device else RingViolation
    return kind(
        row.text.format(**details), spec=SPEC + row.section, hint="reset the device", violation=key, **details
    )
