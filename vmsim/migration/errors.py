"""What can be wrong with a migration stream, by kind; offsets count from the first byte of the stream."""

from __future__ import annotations

from vmsim.errors import PeerError, StreamError


class ChannelError(PeerError):
    """A migration channel broke: the other end is gone, or does not take or give any more bytes.

    ``errno`` is the system's word for it, 0 if it has none.
    """

    def __init__(self, message: str, *, errno: int = 0, hint: str = "") -> None:
        super().__init__(message, hint=hint, errno=errno)
        self.errno = errno


class DeliveryInDoubt(ChannelError):
    """The whole stream was handed over, and then the receiver failed: a machine may run from it."""


class BadMagic(StreamError):
    """The stream does not begin as a migration stream of the version that we know."""


class UnexpectedRecord(StreamError):
    """A record that is not allowed here, or that nobody knows."""


class BadFooter(StreamError):
    """A section's footer is missing or names another section."""


class UnknownSection(StreamError):
    """The stream has a section that this machine has not, or lacks one that it has."""


class VersionTooNew(StreamError):
    """A section or subsection is of a later version than this program knows, or of one no longer read."""


class UnknownSubsection(StreamError):
    """A subsection that this device does not know, or one that it may not do without."""


class BadField(StreamError):
    """A field's value is outside what the device allows."""


class FieldTooLarge(StreamError):
    """A length in the stream exceeds the bound for its field."""
