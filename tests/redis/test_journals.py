"""A journal together with Redis: it keeps what Redis has not acknowledged."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

import anyio
import pytest
from support.commands import run_command
from support.harness import AGENT
from support.redis_contents import contents_of

from prefactor_core import PrefactorCoreClient, open_prefactor
from prefactor_core.operations import CreateSpan, FinishAgentInstance, RegisterAgentInstance
