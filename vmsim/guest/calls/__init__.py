"""What a process of the guest may call: names and semantics are those of ``os``."""
