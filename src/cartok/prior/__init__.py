"""Priors: transformers that predict a picture's tokens one after another."""
