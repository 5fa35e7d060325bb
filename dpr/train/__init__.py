"""Training of the two encoders: data, objective, loop, checkpoints, and the mining of hard negatives."""
