"""Queues of operations, and the tasks and threads that work beside the agent.

Items come in by ``Queue.put_nowait`` and go out to workers. Read ``base`` first, then ``memory``
(the queue of a client), ``workers`` (tasks that outlive the body of their scope) and
``event_loop`` (how other threads reach the loop). ``portal`` lets a thread wait for the loop;
``daemon_thread`` makes calls that may block.
"""

from prefactor_core.queue.base import Queue, QueueClosedError
from prefactor_core.queue.executor import TaskExecutor
from prefactor_core.queue.memory import InMemoryQueue

__all__ = ["InMemoryQueue", "Queue", "QueueClosedError", "TaskExecutor"]
