"""The command line: ``python -m prefactor_core``.

The arguments of a command come in; lines for a terminal, a pipe or a program go out, and every
error of the user's input is one line. Read ``main`` first: the group of all commands.

    runs, tree, span, export, terminate    the commands about stored runs
    demo, serve, view  an agent to look at, a server with pages, and pages alone
    bare               the command line of the package without its extras
    finding            the run, agent or span that a user names
    reading            what is stored, and what changes
    run_lines          runs as lines of text; span_lines: a span; texts: parts of lines
    lines              how lines are printed
    export_formats     the files of an export
    options            options that commands share
    journal            the commands about journals
    journal_folder     which journals a command is about, and which it may touch
    journal_contents   what a journal holds, for tables and JSON
    journal_tables     its tables
    journal_replay     its delivery
    relay              the commands about relays
    relay_run          a relay as a process; relay_progress: its progress
    relay_tables       what waits for relays, and what the API refused
    table              tables for terminals, narrow ones, and pipes
    terminal           how a command runs, speaks and fails
"""
