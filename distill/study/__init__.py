"""Studies of a store: how exact its targets are (`fidelity`, `gradients`, `report`), what it will cost (`trial`, `estimate`)."""
