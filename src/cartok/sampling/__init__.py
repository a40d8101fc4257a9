"""Sampling: where a prior's tokens meet the tokenizer that turns them into pictures."""
