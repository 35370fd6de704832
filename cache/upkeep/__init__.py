"""Stores over time: verified, repaired, copied, cleaned up, removed.

Read in this order: `damage` (what can be wrong), `verify` (the ledger against the objects), `recompute` (the teacher
runs again), `repair`, `transfer` (push and pull), `garbage` (what dead builders leave), `removal`.
"""
