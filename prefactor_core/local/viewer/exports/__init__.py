"""Exports: one recorded run as a file.

The answers of the API about a run come in, and the bytes of a file go out; nothing here reads or
writes a database. Read ``otlp`` first, which others can read; ``run_json`` keeps all that the API
says, and ``html`` is the page of the run in one file.
"""
