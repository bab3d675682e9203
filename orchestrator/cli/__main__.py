"""``python -m orchestrator.cli`` is ``graft``."""

from orchestrator.cli import app

app()
