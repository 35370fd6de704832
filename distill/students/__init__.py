"""Students: `start` (a network to train, and its initial weights), `student` (save, load and use a trained one)."""
