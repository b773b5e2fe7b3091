"""``python -m vmsim.cli``."""

from vmsim.cli import main

main()
