"""The analysts' console: alerts as they come, cases, labels, and the figures that follow from them."""
