"""Scores: from a network and a data set to mIoU.

Read in this order: `evaluate` (whole images or sliding windows to a confusion matrix), `scores` (mIoU and the rest),
`samples` (predictions to look at).
"""
