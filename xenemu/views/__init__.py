"""What a run looked like, in files that the field's tools show: timelines, profiles, memory."""
