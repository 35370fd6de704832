"""Students: `start` (a network to train, and its first weights), `student` (a trained one, saved, loaded and used)."""
