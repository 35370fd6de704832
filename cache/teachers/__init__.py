"""Teachers: from uint8 crops to named float32 targets.

Read in this order: `weights` (a file, a URL or the public checkpoint), `factory` (teachers from your own package),
`teacher` (running one), `sanity` (whether a teacher's outputs belong to these images).
"""
