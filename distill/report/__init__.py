"""What came of one run or of several: one model of a report, and its renderings.

Read in this order: `record` (a run's files, parsed), `styles` (colours and styles), `charts` (what a figure shows), `model`
(what a report says), `sample_files`, `curves`, `run_report` and `comparison` (the reports of one run and of several), `canvas`,
`draw_lines`, `draw_rows` and `draw` (charts as SVG), then the renderings: `html` (with page.html.j2 and page.css), `markdown`, `terminal`, `data` (JSON
and CSV), and `write` (all of them as files).
"""
