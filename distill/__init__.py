"""Distillation: reader -> student -> report.

The ground floor is here: `config` (the options of a run), `recipes`, `schedule`, `units` (durations and sizes as
text), `runfolder` (the files of a run), `clock` (seconds of training by the parts of a step). The rooms, from the ground
up: `losses`, `data`, `scoring`, `students`, `report`, `training`, `compare`, `study`.
"""
