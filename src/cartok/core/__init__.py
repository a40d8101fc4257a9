"""Ground: the vocabulary and the plumbing that every stage stands on."""
