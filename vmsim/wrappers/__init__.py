"""Wrappers at the seams: they pass everything on, and trace it, break it or make it repeatable."""
