"""vhost-user: messages, front-end and back-end state machines, device-state dialects. No I/O of its own."""
