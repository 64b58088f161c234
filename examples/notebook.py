"""A notebook: ``open()`` in one cell, ``close()`` in another, and a run that goes on in between.

    python examples/notebook.py

Each ``# %%`` begins a cell: VS Code, Spyder and Jupyter (with Jupytext) open this file as a
notebook. As a program it records the same.

A block cannot span cells, so ``client.open()`` and ``client.close()`` take the place of
``with open_prefactor_sync() as client:``, and ``start_nowait()`` and ``finish_nowait()`` that of
``with client.agent_instance(...)``. Without ``start_nowait()`` the run begins with its first span,
and is the current run only inside of its spans.

* In IPython and Jupyter, the run that a cell has started is the current one in the next cells: its
  ``@traced`` calls are recorded, and ``current_instance()`` finds it. A span of
  ``create_span_nowait()`` is the parent of the spans in the next cells until it is finished.
* In cells with ``await`` the same holds for ``client = open_prefactor(...)``,
  ``await client.initialize()``, ``await instance.start()`` and ``await client.close()``.
  Jupyter's loop goes on between the cells; that of IPython stands, so nothing is sent then. Web
  frameworks that start and stop in different tasks use the same calls.
* A cell that ends with ``instance`` shows the run, and the spans that are open.
* ``close()`` delivers as leaving the block does. It cannot see how your work ended: an open run
  ends as ``complete``, or as ``cancelled`` if nothing was done in it.
* A kernel that is shut down or restarted ends its open runs as ``cancelled``, and delivers them in
  the two seconds that Jupyter gives it. One that is killed cannot: with ``journal=DIR`` the next
  client with that folder ends them.

It leaves this tree::

    complete
    agent:run complete
      agent:tool complete
      agent:tool failed
"""

# %%
import os

from prefactor_core import SchemaRegistry, current_instance, open_prefactor_sync, traced

registry = SchemaRegistry()
registry.register("agent:run", {"type": "object"})
registry.register("agent:tool", {"type": "object"})
api_url = os.environ.get("PREFACTOR_API_URL") or "local::memory:"
client = open_prefactor_sync(api_url=api_url, schema_registry=registry).open()

# %%
instance = client.create_agent_instance("notebook", {"name": "Notebook"})
instance.start_nowait()
session = instance.create_span_nowait("agent:run", payload={"goal": "explore"})


# %%
@traced("agent:tool")
def look_for(query: str) -> int:
    if query == "valleys":
        raise LookupError("nothing there")
    return 3


look_for("peaks")

# %%
assert current_instance() is instance
try:
    look_for("valleys")
except LookupError as error:
    print(f"LookupError: {error}")

# %%
instance.finish_span_nowait(session)
instance.finish_nowait()
client.close()
print(f"{client.statistics().delivered} operations delivered")
