"""The worker: the rq listener, which forks, and what a forked process does with a job."""
