"""Pictures in, numbers out: nothing here knows a network of ours."""
