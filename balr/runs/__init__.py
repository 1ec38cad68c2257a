"""A run on record: what it was given, what became of each utterance, and whether a folder still holds it."""
