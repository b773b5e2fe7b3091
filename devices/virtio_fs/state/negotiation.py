"""The INIT result across a migration: taken from the extension, or assumed when a state comes without one."""

from __future__ import annotations

from typing import Protocol

from vmsim.errors import StreamError
from vmsim.fuse.abi import init_flags as flag
from vmsim.fuse.negotiated import NegotiatedState

from .records import NegotiatedOpts

SPEC = "virtiofsd state V2, negotiated_opts"

VIRTIOFSD_FLAGS = 0x4844F829 | 0x100 << 32
"""What virtiofsd 1.13.2 agrees on with a Linux guest by default, without supplementary groups."""

POSIX_ACL_FLAGS = flag.POSIX_ACL | flag.DONT_MASK | flag.SETXATTR_EXT

ROWS = (
    ("writeback", "writeback", flag.WRITEBACK_CACHE),
    ("announce_submounts", "announce_submounts", flag.SUBMOUNTS),
    ("posix_acl", "posix_acl", flag.POSIX_ACL),
    ("sup_group_extension", "", flag.CREATE_SUPP_GROUP),
)
"""Per option of the blob: its name, our option that it needs (none: it is just taken over), its INIT flag."""


class ServerOptions(Protocol):
    """The options of the file server that a loaded session depends on."""

    @property
    def writeback(self) -> bool:
        """Whether WRITEBACK_CACHE is offered."""
        ...

    @property
    def announce_submounts(self) -> bool:
        """Whether SUBMOUNTS is offered."""
        ...

    @property
    def posix_acl(self) -> bool:
        """Whether POSIX_ACL is offered."""
        ...

    @property
    def security_label(self) -> bool:
        """Whether SECURITY_CTX is offered (and then demanded)."""
        ...

    @property
    def killpriv_v2(self) -> bool:
        """Whether HANDLE_KILLPRIV_V2 is offered."""
        ...


def options_of(negotiated: NegotiatedState) -> NegotiatedOpts:
    """The four options of the blob; all False while there is no session."""
    if not negotiated.initialized:
        return NegotiatedOpts()
    return NegotiatedOpts(**{name: negotiated.has(mask) for name, _, mask in ROWS})


def check_options(opts: NegotiatedOpts, options: ServerOptions) -> None:
    """StreamError if the state depends on an option that this server does not have."""
    for name, option, _ in ROWS:
        if option and getattr(opts, name) and not getattr(options, option):
            switch = option.replace("_", "-")
            raise StreamError(
                f"the guest negotiated {switch}, which is not enabled here", field=f"negotiated_opts.{name}",
                spec=SPEC, hint=f"start the destination with {switch}, as on the source",
            )


def check_agreement(opts: NegotiatedOpts, negotiated: NegotiatedState) -> None:
    """StreamError if the extension's INIT result contradicts the blob."""
    for name, _, mask in ROWS:
        if getattr(opts, name) != negotiated.has(mask):
            raise StreamError(
                f"{name} is {getattr(opts, name)} in the blob and the opposite in the INIT result",
                field="extension.negotiated.flags", spec=SPEC,
            )


def assumed(opts: NegotiatedOpts, options: ServerOptions) -> NegotiatedState:
    """The INIT result of a session that came from virtiofsd, which does not say.

    virtiofsd 1.13.2 speaks minor 38 and answers every Linux guest alike: 1 MiB writes, 256 pages, the flags
    of ``VIRTIOFSD_FLAGS``. What its options change is told by the blob's four bools (posix_acl brings
    DONT_MASK and SETXATTR_EXT along) or must be switched on here as it was there (security_label,
    killpriv_v2).
    """
    flags = VIRTIOFSD_FLAGS & ~flag.SUBMOUNTS
    for name, _, mask in ROWS:
        if getattr(opts, name):
            flags |= mask
    if opts.posix_acl:
        flags |= POSIX_ACL_FLAGS
    if options.security_label:
        flags |= flag.SECURITY_CTX
    if options.killpriv_v2:
        flags |= flag.HANDLE_KILLPRIV_V2
    return NegotiatedState(
        initialized=True, major=7, minor=38, flags=flags, max_readahead=128 << 10, max_write=1 << 20,
        max_pages=256, max_background=65535, congestion_threshold=49149, time_gran=1,
    )
