"""The command line: ``python -m prefactor_core``.

The arguments of a command come in; lines for a terminal, a pipe or a program go out, and every
error of the user's input is one line. Read ``main`` first: the group of all commands, and those
about runs. ``terminal`` has how a command runs, speaks and fails.
"""
