"""Generated abdominal CT, written in the public layouts, so that every command runs without real data."""
