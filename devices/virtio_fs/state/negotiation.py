"""The INIT result across a migration: taken from the extension, or assumed when a state comes without one."""

from __future__ import annotations

from vmsim.errors import StreamError
from vmsim.fuse.init import InitOptions, virtiofsd_opts, virtiofsd_state
from vmsim.fuse.negotiated import NegotiatedState

from .records import NegotiatedOpts

SPEC = "virtiofsd state V2, negotiated_opts"

DEMANDED = ("writeback", "announce_submounts", "posix_acl")
"""Options of the blob that the destination has to have as well; sup_group_extension is just taken over."""


def options_of(negotiated: NegotiatedState) -> NegotiatedOpts:
    """The four options of the blob; all False while there is no session."""
    return NegotiatedOpts(*virtiofsd_opts(negotiated)) if negotiated.initialized else NegotiatedOpts()


def check_options(opts: NegotiatedOpts, options: InitOptions) -> None:
    """StreamError if the state depends on an option that this server does not have."""
    for name in DEMANDED:
        if getattr(opts, name) and not getattr(options, name):
            switch = name.replace("_", "-")
            raise StreamError(
                f"the guest negotiated {switch}, which is not enabled here", field=f"negotiated_opts.{name}",
                spec=SPEC, hint=f"start the destination with {switch}, as on the source",
            )


def check_agreement(opts: NegotiatedOpts, negotiated: NegotiatedState) -> None:
    """StreamError if the extension's INIT result contradicts the blob."""
    if options_of(negotiated) != opts:
        raise StreamError(
            "the blob's options and the INIT result contradict each other",
            field="extension.negotiated.flags", spec=SPEC, blob=opts, extension=options_of(negotiated),
        )


def assumed(opts: NegotiatedOpts, options: InitOptions) -> NegotiatedState:
    """The INIT result of a session that came from virtiofsd, which does not say.

    virtiofsd 1.13.2 speaks minor 38 and answers every Linux guest alike. What its options change is told by
    the blob's four bools (posix_acl brings DONT_MASK and SETXATTR_EXT along, see D1), or must be switched
    on here as it was there (security_label, killpriv_v2, allow_mmap).
    """
    return virtiofsd_state(
        options, writeback=opts.writeback, announce_submounts=opts.announce_submounts,
        posix_acl=opts.posix_acl, supp_groups=opts.sup_group_extension,
    )
