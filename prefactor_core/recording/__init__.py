"""Recording: the steps of runs and spans, as operations.

Calls from ``agent/`` come in, in any thread: open, start, end. Operations go out to the buffer of
``export/``. Read ``recorder`` first, then ``span_record`` (the data of a span) and ``span_steps``
(its transitions); ``instance_manager`` does the same for runs, ``run_end`` ends both.

The states of a span, and the methods of :class:`~prefactor_core.recording.recorder.Recorder` that
move it. Each operation that is recorded stands in brackets::

    constructed
        | open()                                [nothing]
        v
     pending --- start(), report(), or the create of a descendant ---> active   [create]
        |                                                                |
        | end()   [create with its end; if cancelled: create, finish]    | end(), skip()  [finish]
        | skip()  [create as pending, finish as cancelled]               |
        v                                                                v
    complete, failed, cancelled                    complete, failed, cancelled
"""
