"""Scores: from a network and a data set to mIoU.

Read in this order: `evaluate` (from images to a confusion matrix), `scores` (from the matrix to mIoU and accuracies),
`samples` (predictions to look at).
"""
