"""Other people's weights in: files that others publish, read without trust, as networks of ours."""
