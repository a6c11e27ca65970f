"""How processes wake each other and see each other's death. Hints only: what must not be lost is in the store."""
