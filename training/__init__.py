"""Training: history in, model out, through the same profiles and features as the flow."""
