"""Data sets: images, label maps, classes.

Read in this order: `dataset` (what a data set offers), `classes` (names and colours), `files` (image files as arrays),
`folders` (image files beside label files), `canvas`, `scene` and `streets` (scenes that the program draws), `datasets`
(data sets by name), `decoded` (images and labels kept
on this host as raw pixels), `sheet` (label maps and pictures side by side).
"""
