"""Image to tokens: a codec, its codebook, and the predictor that makes the tokens easy to model."""
