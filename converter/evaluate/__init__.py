"""What candidates answer and how good that is, by task.

For: `answers_of`, `outputs_of`, `quality` and `task_of`, which the conversion's stages use.
Not for: latency (`converter.latency`), or judging (`wire.sla`).
"""

from __future__ import annotations

from converter.evaluate.outputs import Outputs, answers_of, outputs_of
from converter.evaluate.quality import Quality, quality
from converter.evaluate.registry import task_of
from converter.evaluate.tasks import Task

__all__ = ["Outputs", "Quality", "Task", "answers_of", "outputs_of", "quality", "task_of"]
