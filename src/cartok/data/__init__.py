"""Pictures and tokens on disk, as batches in an order that resumes exactly."""
