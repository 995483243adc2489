"""Training: history in, model out, through the same profiles and facts as the flow."""
