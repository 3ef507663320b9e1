"""The students that the adaptive term competes with: stored ones, and those trained meanwhile."""
