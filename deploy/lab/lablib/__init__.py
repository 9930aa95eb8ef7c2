"""The parts of deploy/lab/lab. Python standard library only."""
