"""What one run or several came to, as tables and figures.

Read in this order: `record` (a run's files, parsed), `figures`, `sample_files`, `report` (one run), `comparison` (several);
`styles`, `stylesheet`, `markup`, `axes`, `lines`, `ranks`, `dots`, `bars` draw the page of a comparison.
"""
