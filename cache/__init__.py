"""Teacher-output caching: images -> views -> teacher -> codec -> store -> reader.

The ground floor is here: `errors` (every error a user can meet), `progress` (how the library reports how far it is),
`shuffle` (named random words and permutations). The rooms, from the ground up: `storage`, `codecs`, `images`, `views`,
`networks`, `teachers`, `store`, `build`, `upkeep`.
"""
