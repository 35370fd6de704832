"""Batches for a student: crops and targets, from a store or from a teacher.

Read in this order: `order` (the stream of entries over all epochs), `targets` (what a batch contains), `ahead` (shards
fetched before they are needed), `loader` (worker processes to device), `inputs` (what a run learns from, opened),
`teacher_dataset` (a store as batches for a training loop of your own).
"""
