"""Schedules, faults, traced seams and models: everything that decides, breaks or watches a run."""
