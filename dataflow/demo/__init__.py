"""The whole of Redflag on one machine, to look at: `python -m dataflow.demo`."""
