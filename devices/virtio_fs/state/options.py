"""What a migration of the back-end's state may be asked for, and its defaults (reference section 2.1)."""

from __future__ import annotations

from typing import Literal, get_args

import msgspec

from vmsim.errors import UsageError

Mode = Literal["find-paths", "file-handles"]
OnError = Literal["abort", "guest-error"]
Allowed = Literal["internal", "none"]


class StateOptions(msgspec.Struct, frozen=True):
    """Options of saving (``mode``, ``verify_handles``, ``confirm_paths``) and of loading (``on_error``).

    ``extension`` writes and reads what virtiofsd's blob has no room for; without it we save and load exactly
    what virtiofsd would. ``save`` and ``load`` say whether this back-end may be saved and loaded at all
    (``none``: it may not, ``internal``: with its state). ``empty_state`` is for back-ends whose front-end
    migrates externally: nothing is saved (no bytes), and no bytes is what is accepted.
    """

    mode: Mode = "find-paths"
    on_error: OnError = "abort"
    verify_handles: bool = False
    confirm_paths: bool = False
    extension: bool = True
    empty_state: bool = False
    save: Allowed = "internal"
    load: Allowed = "internal"

    def check(self) -> StateOptions:
        """This; UsageError for options that contradict each other."""
        if self.mode not in get_args(Mode) or self.on_error not in get_args(OnError):
            raise UsageError(
                f"no such migration mode or error policy: {self.mode}, {self.on_error}",
                hint="modes are find-paths and file-handles, policies are abort and guest-error",
            )
        if self.save not in get_args(Allowed) or self.load not in get_args(Allowed):
            raise UsageError(
                f"no such kinds of migration for a back-end: {self.save}, {self.load}",
                hint="internal or none",
            )
        if self.mode == "file-handles" and (self.verify_handles or self.confirm_paths):
            raise UsageError(
                "verify-handles and confirm-paths check paths; mode file-handles has none",
                hint="use find-paths, or leave these options out",
            )
        return self
