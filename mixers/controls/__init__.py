"""Controls: what a comparison shows where nothing, or next to nothing, is mixed."""
