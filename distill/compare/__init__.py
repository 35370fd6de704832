"""Several methods under one clock: which runs there are, running them, and what they say.

Read in this order: `contest` (what was asked, and the runs this makes), `referee` (running them), `account` (one run's
progress and time), `intervals` (paired differences), `step_cost`, `teacher_cost`, `ranking`, `cautions` (what keeps numbers
from meaning what they seem to), `standings` (all of that), `breakdown` (by length and by views), `verdict` (what one may
conclude), then the report: `figures`, `breakdown_figures`, `tables`, and `report`, which puts them together.
"""
