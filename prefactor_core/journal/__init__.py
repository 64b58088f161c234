"""The journal: what is recorded, in files, until the API has it.

Operations and notes of open spans come in before a recording call returns, and each is appended to
a file at once; what a dead process left comes out. Without ``open_prefactor(journal=DIR)`` none of
this is imported. Read ``base`` first: what the other rooms say to a journal.

    format      records to bytes, and back
    writer      appends what the other rooms say
    segments    its files, of which old ones go    disk_sync: to the disk, in a thread
    pending     what is not settled in them        repetition: lost files are written again
    directory   who holds a journal; is its process alive     locks, files: how
    reader      what a journal holds that is not settled, in its last form
    state       the runs, spans, ids and forms that the records tell of
    sequences   the numbers of the operations that are not settled
    burial      the end of what a dead process left open
    adopted     its journal, read, ended, and written on
    heartbeat   notes that the process of a journal lives
"""
