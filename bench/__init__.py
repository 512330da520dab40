"""xenemu against its peers, and against itself: ``python -m bench``. Never part of the tests.

A group (`groups.py`) is a few rows that are measured together. They take turns, round by round, so
that what else the machine does falls on all of them alike. What was measured is kept in
``results.json``, and from there the tables and the pictures of the documents are made. `gate.py` is
the short measurement that tells whether a change has made something slower.
"""
