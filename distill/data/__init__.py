"""Batches for a student: crops and targets, from a store or from a teacher.

Read in this order: `order` (the stream of entries over all epochs), `targets` (what a batch contains), `ahead` (shards
fetched before they are needed), `slots` and `workers` (processes that make batches in shared
memory), `loader` (batches to the device), `inputs` (what a run learns from, opened).
"""
