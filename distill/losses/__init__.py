"""What a student minimises: cross-entropy, and the terms of a method.

Read in this order: `terms` (what a term is; the terms for logits and features), `enlarged` (cross-entropy at
the size of the labels), `region` (the pixels that count) and
`masked` (softmax, norms and pools over them), `processes` (sums over processes), then the families `logits`,
`attention`, `relations`, `memory`, `generative`, `adversarial`, `methods` (METHODS: the terms of each
method), and `loss` (a method's loss for a training loop of your own).
"""
