"""balr: exact, fast and loss-free speaker embeddings of whole corpora.

The public names live in `balr.data.dataset`, `balr.embeddings.wespeaker` and `balr.config`; nothing is imported here,
so that the command line answers without torch.
"""
