"""The guest's driver: registers, queues and the buffers of guest memory that requests lie in."""
