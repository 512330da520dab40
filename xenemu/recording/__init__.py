"""Recordings: what of a run is no function of its start, so that the run can be repeated."""
