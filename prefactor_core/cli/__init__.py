"""The command line: ``python -m prefactor_core``.

The arguments of a command come in; lines for a terminal, a pipe or a program go out, and every
error of the user's input is one line. Read ``main`` first: the group of all commands, and those
about runs.

    journal            the commands about journals
    journal_folder     which journals a command is about, and which it may touch
    journal_contents   what a journal holds, for tables and JSON
    journal_tables     its tables
    journal_replay     its delivery
    table              tables for terminals, narrow ones, and pipes
    terminal           how a command runs, speaks and fails
"""
