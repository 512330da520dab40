"""Boots beside each other: what each ran and asked for, as text, JSON and an HTML page."""
