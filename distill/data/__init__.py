"""Batches for a student: crops and targets, from a store or from a teacher.

Read in this order: `order` (the stream of entries over all epochs), `targets` (what a batch contains), `prefetch` (shards
fetched before they are needed), `slots` and `workers` (processes that make batches in shared
memory), `loader` (batches to the device), `inputs` (opens and checks what a run learns from),
`teacher_dataset` (a store as batches for a training loop of your own).
"""
