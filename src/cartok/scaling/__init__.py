"""Numbers to pages and laws: reads records and summaries, never a network."""
