"""From the queue to the API: what is kept, tried again, given up, and counted."""
