"""Byte layouts and their printing; knows no protocol."""
