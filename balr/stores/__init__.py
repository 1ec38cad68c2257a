"""Where embeddings go, and the manifest that lists them."""
