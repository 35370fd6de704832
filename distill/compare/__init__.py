"""Several methods under one clock: which runs there are, running them, and what they say.

Read in this order: `contest` (what was asked, and the runs this makes), `referee` (running them), `account` (one run's
progress and time), `intervals` (paired differences), `step_cost`, `teacher_cost`, `ranking`, `standings`, `breakdown`,
`verdict` (what may be concluded), `markdown` and `files` (as Markdown, JSON, CSV), `page` and its parts `page_tables`,
`page_charts`, `page_bars`, `page_samples`.
"""
