"""Lightning callbacks: what a run does besides training."""
