"""Stores over time: checked, repaired, copied, cleaned up, removed.

Read in this order: `damage` (what can be wrong), `verify` (ledger against objects), `recompute` (the teacher once more),
`repair`, `transfer` (push and pull), `garbage` (what dead builders leave), `removal`.
"""
