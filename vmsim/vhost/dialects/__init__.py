"""How the back-end's state is transferred: one module per protocol, chosen by configuration."""
