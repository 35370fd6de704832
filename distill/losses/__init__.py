"""What a student minimises: cross-entropy, and the terms of a method.

Read in this order: `terms` (what a term is; logits and features), `enlarged` (cross-entropy at the
labels' size), `region` (the cells that take part) and `masked`
(softmax, norms and pools over them), `processes` (sums over processes), then the families `logits`, `attention`,
`relations`, `memory`, `generative`, `adversarial`, and `methods` (METHODS: what each method is made of).
"""
