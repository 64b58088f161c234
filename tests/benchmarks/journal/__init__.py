"""``just bench-journal``: the cost of a journal, and the speed of its replay.

Each comparison is made in one run: with and without the journal in turns. ``__main__`` runs all.
"""
