"""How the toy world in ``mgpt4_hpc/toy_world`` is made; see ``tools/build_toy_world.py``.

scenes and captions say what exists and how it is put into words; raster draws it; splits keeps the
held-out scenes apart; shards writes the data; vision and llm pre-train the towers; export stores
them in the original project's file formats; probe trains the projection on the result, to measure
what a user will see.
"""
