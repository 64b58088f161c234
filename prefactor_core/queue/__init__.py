"""Queues, and the workers that empty them."""

from prefactor_core.queue.base import Queue, QueueClosedError
from prefactor_core.queue.executor import TaskExecutor
from prefactor_core.queue.memory import InMemoryQueue

__all__ = ["InMemoryQueue", "Queue", "QueueClosedError", "TaskExecutor"]
