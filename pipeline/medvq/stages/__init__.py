"""The stages of the flow, one file per make target."""
