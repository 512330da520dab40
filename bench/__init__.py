"""xenemu against its peers on the machine at hand: ``python -m bench``. Never part of the tests.

Each row of `subjects.SUBJECTS` boots the same kernel and initramfs to the end, as a process of
its own. The rows take turns, so that what else the machine does falls on all of them alike.
"""
