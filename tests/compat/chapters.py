"""The chapters of ``examples/frameworks/``, each in an environment with its framework.

A chapter prints the tree that was stored, which must be the one in its docstring. It runs without
network and key, and neither fails nor warns.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent

from support.environments import CHECKOUT, Environment

EXAMPLES = CHECKOUT / "examples"


@dataclass(frozen=True)
class Chapter:
    """A chapter: its ``file`` below ``examples/``, and what it ``says`` instead of its tree."""

    environment: Environment
    file: str
    arguments: tuple[str, ...] = ()
    says: str | None = None

    @property
    def note(self) -> str:
        return " ".join((f"examples/{self.file}", *self.arguments))

    def problems(self, _url: str) -> list[str]:
        """Run the chapter; how what it prints differs."""
        path = EXAMPLES / self.file
        said = self.environment.run(["-W", "error", str(path), *self.arguments], timeout=120)
        expected = _shown_tree(path) if self.says is None else self.says
        return [] if said.strip() == expected else [f"it says {said!r} instead of {expected!r}"]


def _shown_tree(path: Path) -> str:
    """The tree in the docstring of a chapter."""
    docstring = ast.get_docstring(ast.parse(path.read_text("utf-8"))) or ""
    return dedent(docstring.split(" leaves this tree::\n\n")[1]).strip()


def _environment(name: str, *distributions: str) -> Environment:
    return Environment(
        "compat", f"chapter-{name}", ("-e", ".[local]", *distributions), distributions
    )


_STARLETTE = _environment("starlette", "starlette", "trio")

CHAPTERS = (
    *(
        Chapter(
            _STARLETTE,
            "web_service.py",
            (backend,),
            "/ask: Olympus Mons\n/blocking: Olympus Mons",
        )
        for backend in ("asyncio", "trio")
    ),
    Chapter(_environment("fastapi", "fastapi"), "frameworks/fastapi_service.py"),
    Chapter(_environment("langgraph", "langgraph"), "frameworks/langgraph_callbacks.py"),
    Chapter(_environment("openai-agents", "openai-agents"), "frameworks/openai_agents_hooks.py"),
    Chapter(_environment("pydantic-ai", "pydantic-ai-slim"), "frameworks/pydantic_ai_hooks.py"),
)
