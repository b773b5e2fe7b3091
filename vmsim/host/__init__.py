"""The only package that touches the operating system."""
