"""Studies around a store: what it lost (`fidelity`, `gradients`, `report`), and what one will cost (`trial`, `estimate`)."""
