"""Segmentation networks, and the checkpoints of the code bases that publish them.

Read in this order: `resnet` (backbones), `heads`, `network` (configurations and the whole network), `normalisation`
(how uint8 crops become input), `layouts` (how each code base names its parameters), `checkpoints` (files to networks).
"""
