"""What a migration of the back-end's state may be asked for, and its defaults (reference section 2.1)."""

from __future__ import annotations

from typing import Annotated, Final, Literal, get_args

import msgspec

from vmsim.errors import UsageError
from vmsim.vhost.device_options import Option

Mode = Literal["find-paths", "file-handles"]
OnError = Literal["abort", "guest-error"]
Allowed = Literal["internal", "none"]
PREFIX: Final = "migration_"
"""Outside this package the options are spelled as virtiofsd's: ``migration_mode`` is ``mode`` here."""


class StateOptions(msgspec.Struct, frozen=True):
    """Options of saving and of loading.

    ``extension`` writes and reads what virtiofsd's blob has no room for; without it we save and load exactly
    what virtiofsd would. ``empty_state`` is for back-ends whose front-end migrates externally: nothing is
    saved (no bytes), and no bytes is what is accepted.
    """

    mode: Annotated[Mode, Option(
        "How the destination finds inodes (file-handles needs CAP_DAC_READ_SEARCH).", machines=True,
    )] = "find-paths"
    on_error: Annotated[OnError, Option(
        "What to do when an inode cannot be found at the destination.", machines=True,
    )] = "abort"
    verify_handles: Annotated[bool, Option(
        "Send file handles along, so that a replaced file is noticed.", machines=True,
    )] = False
    confirm_paths: Annotated[bool, Option(
        "Check every path again after the guest has stopped.", machines=True,
    )] = False
    extension: bool = True
    empty_state: bool = False
    save: Annotated[Allowed, Option("Whether a front-end may save the state.")] = "internal"
    load: Annotated[Allowed, Option("Whether a front-end may load a state.")] = "internal"

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
