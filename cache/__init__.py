"""Teacher-output caching: images -> views -> teacher -> codec -> store -> reader."""
