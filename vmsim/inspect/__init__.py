"""``vmsim inspect``, its lint, and ``vmsim diff``: what is in a migration stream, and what is wrong with
it.
"""
