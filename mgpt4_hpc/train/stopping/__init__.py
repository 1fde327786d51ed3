"""When training stops: signals, requests of peers, deadlines. What follows is in ``launch.job``."""
