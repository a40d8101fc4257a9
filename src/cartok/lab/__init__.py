"""Runs that join stages: what each verb does, the demo, the probe."""
