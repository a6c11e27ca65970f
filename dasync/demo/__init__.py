"""`dasync demo`: the main job on real input, with processes that are killed on the way. Programs do not import it."""
